"""The ramp of the contrast's weight over training."""

__all__ = ["ramp"]


def ramp(iteration: int, warmup_iters: int, start_iter: int = 0) -> float:
    """Return the factor on the contrast's weight: 0 before ``start_iter``, then rising linearly to 1.

    It is 0 at ``start_iter`` itself and 1 from ``start_iter + warmup_iters`` on; without warm-up it is 1 from
    ``start_iter`` on.
    """
    if iteration < start_iter:
        return 0.0
    if warmup_iters <= 0:
        return 1.0
    return min(1.0, (iteration - start_iter) / warmup_iters)
