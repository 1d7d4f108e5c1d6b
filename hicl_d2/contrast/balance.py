"""The weight of a contrast as a share of the gradient that the other losses send into the same features.

A contrast's gradient is not of the size of its loss: at weight 1 it was 122 times that of the segmentation loss at the start
of a training with ImageNet weights, and 12 to 18 times later (benchmark/results/camvid_pretrained/NOTES.md). A weight that
multiplies the loss therefore does not carry over from one model to the next. `GradientBalance` measures both gradients where
the contrast reads, every few steps, and makes the contrast's a set share of the other. The formula and its constants are this
project's.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hicl_d2.contrast.processes import is_distributed

__all__ = ["KINDS", "GradientBalance"]

# What a weight multiplies: the loss, or the loss scaled to the gradient of the others.
KINDS = ("loss", "gradient")
# Steps between two measurements, and how much of the running mean a new one replaces.
PERIOD, NEW = 10, 0.2
# The factor until the first measurement.
FIRST = 1e-3


class GradientBalance(nn.Module):
    """Measure, every `PERIOD` steps, the gradients at the features, and give the factor that makes them equal.

    The norms are root mean squares over the processes, and running means over the measurements; they are buffers, saved
    and restored with the contrast. Nothing is read back to the host.

    Attributes:
        norms: (2,) float32, the running means of the norms of [the contrast's gradient, the other losses' gradient]; 0
            before the first measurement.
        latest: (3,) float32, sums of squared norms of this process that are not yet in ``norms``, and their number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norms", torch.zeros(2))
        self.register_buffer("latest", torch.zeros(3))
        self.norms: Tensor
        self.latest: Tensor

    @torch.no_grad()
    def factor(self, step: int) -> Tensor:
        """Return what the contrast is multiplied by in ``step``, 0-d float32: other losses' norm over the contrast's.

        `FIRST` before there is a measurement. On several processes all must call it in the same steps.
        """
        if step % PERIOD == 1:
            self._take_in()
        own, others = self.norms
        return torch.where(own > 0, others / own.clamp(min=torch.finfo(own.dtype).tiny), FIRST)

    def _take_in(self) -> None:
        """Move the latest measurement into the running means, averaged over the processes."""
        latest = self.latest.clone()
        if is_distributed():
            dist.all_reduce(latest)
        found = (latest[:2] / latest[2].clamp(min=1)).sqrt()
        is_sound = (latest[2] > 0) & found.isfinite().all()
        mean = torch.where(self.norms[0] > 0, self.norms + NEW * (found - self.norms), found)
        self.norms.copy_(torch.where(is_sound, mean, self.norms))
        self.latest.zero_()

    def is_measured(self, step: int) -> bool:
        """Tell whether the gradients of ``step`` are measured."""
        return step % PERIOD == 0

    def measure(self, source: Tensor, view: Tensor, factor: Tensor) -> None:
        """Measure in the backward pass: ``view`` of ``source`` is what the contrast alone reads, multiplied by ``factor``.

        ``source`` gets the sum of both gradients after ``view`` has got the contrast's.
        """
        own: list[Tensor] = []

        def keep(grad: Tensor) -> None:
            own.append(grad.detach().clone())  # autograd may add the other gradient in place

        @torch.no_grad()
        def compare(grad: Tensor) -> None:
            if own:
                contrast = own.pop()
                self._add(contrast, grad - contrast, factor)

        view.register_hook(keep)
        source.register_hook(compare)

    def _add(self, own: Tensor, others: Tensor, factor: Tensor) -> None:
        norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in (own, others)]
        squares = torch.stack([(norms[0] / factor).square(), norms[1].square(), torch.ones_like(factor)])
        self.latest += squares
