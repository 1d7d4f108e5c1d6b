"""The mean probability of a window's class, without a probability for every class."""

from torch import Tensor

from hicl_d2.contrast.fused.candidates import tile_windows
from hicl_d2.contrast.levels import Level

__all__ = ["ClassScores"]


class ClassScores:
    """Turn logits into the mean predicted probability of a window's class. See the plain twin in `pruning`.

    Of the K probabilities of a cell only one is needed: its logit is gathered, and the classes meet only in the
    log-sum-exp, which all levels share.
    """

    def __init__(self, logits: Tensor) -> None:
        """Keep logits (B, K, h, w), float; they are only read."""
        self.logits = logits
        self._normaliser: Tensor | None = None

    def mean_probability(self, classes: Tensor, level: Level) -> Tensor:
        """Return the mean predicted probability of each window's class: (B, rows, columns) float.

        Args:
            classes: (B, rows, columns) integer; the figure of a window without a class (-1) has no meaning.
            level: whose windows they are.
        """
        if self._normaliser is None:
            self._normaliser = self.logits.logsumexp(dim=1)
        normaliser = self._normaliser

        def probability(rows: slice, columns: slice, spread: Tensor) -> Tensor:
            own = self.logits[:, :, rows, columns].gather(1, spread[:, None].long())[:, 0]
            return (own - normaliser[:, rows, columns]).exp()

        return tile_windows(classes.clamp(min=0), level, probability) / level.window**2
