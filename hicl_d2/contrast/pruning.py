"""Which windows become components, and which cells become anchors."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hicl_d2.contrast.candidates import WindowLabels, sum_windows, tile_windows
from hicl_d2.contrast.grid import LabelGrid
from hicl_d2.contrast.levels import Level

__all__ = ["ClassScores", "Pruned", "prune", "touches_boundary"]


class Pruned(NamedTuple):
    """Hold what each criterion leaves of one level's candidates, (B, rows, columns) each.

    Attributes:
        winners: integer, the most frequent class of every candidate.
        covered: bool, labelled enough.
        pure: bool, and pure enough.
        kept: bool, and predicted within the range of confidence: a component.
    """

    winners: Tensor
    covered: Tensor
    pure: Tensor
    kept: Tensor

    @property
    def classes(self) -> Tensor:
        """Return the class of every component, (B, rows, columns) int64; -1 where the candidate was dropped."""
        return torch.where(self.kept, self.winners.long(), -1)

    def counts(self) -> dict[str, Tensor]:
        """Return, 0-d, by name: candidates, pruned_coverage, pruned_purity, pruned_confidence and kept.

        A candidate counts under the first criterion that it fails, in this order; without any label it fails coverage.
        """
        left = torch.stack(
            [torch.full_like(self.kept.sum(), self.kept.numel()), *(part.sum() for part in self[1:])]
        )
        dropped = left[:-1] - left[1:]
        names = ("pruned_coverage", "pruned_purity", "pruned_confidence")
        return {
            "candidates": left[0],
            **dict(zip(names, dropped.unbind(), strict=True)),
            "kept": left[-1],
        }


def prune(grid: LabelGrid, labels: WindowLabels, level: Level, scores: "ClassScores | None" = None) -> Pruned:
    """Keep the windows that are labelled enough, pure enough, and predicted within the level's confidence.

    Args:
        grid: the labels.
        labels: the statistics of the level's windows.
        level: with the thresholds.
        scores: predictions; without them, or with a range of (0, 1), confidence is not asked for.
    """
    # The least number of labelled pixels; the little taken off is for shares that binary fractions only come near.
    least = max(1, math.ceil(level.coverage * (level.window * grid.stride) ** 2 - 1e-6))
    covered = labels.labelled >= least
    # Where nothing is labelled, 0 / 0 passes no comparison.
    pure = covered & (labels.count / labels.labelled >= level.purity)
    if level.purity == 0.0:
        pure &= labels.count > 0
    kept = pure
    low, high = level.confidence
    if scores is not None and (low > 0.0 or high < 1.0):
        probability = scores.mean_probability(labels.classes, level)
        kept = pure & (probability >= low) & (probability <= high)
    return Pruned(labels.classes, covered, pure, kept)


class ClassScores:
    """Turn logits into the mean probability of a window's class, or tell where another class scores higher."""

    def __init__(self, logits: Tensor) -> None:
        """Keep logits (B, K, h, w); they are only read."""
        self.logits = logits
        self._normaliser: Tensor | None = None

    def mean_probability(self, classes: Tensor, level: Level) -> Tensor:
        """Return the mean predicted probability of each window's class: (B, rows, columns) float.

        Args:
            classes: (B, rows, columns) integer; what is outside 0 to K - 1 gets any figure.
            level: whose windows they are.
        """
        if self._normaliser is None:
            # One of the K probabilities is asked for: only the denominator needs them all.
            self._normaliser = self.logits.logsumexp(dim=1)
        normaliser = self._normaliser

        def probability(rows: slice, columns: slice, spread: Tensor) -> Tensor:
            own = self.logits[:, :, rows, columns].gather(1, spread[:, None].long())[:, 0]
            return (own - normaliser[:, rows, columns]).exp()

        inside = classes.clamp(0, self.logits.shape[1] - 1)
        return tile_windows(inside, level, probability) / level.window**2


def touches_boundary(cells: WindowLabels, level: Level) -> Tensor:
    """Tell which windows touch another class: (B, rows, columns) bool.

    A cell is on a boundary if it holds two classes, or if a labelled cell beside it (left, right, above, below) holds
    two or another one; a window touches a boundary if one of its cells is on one.

    Args:
        cells: the statistics of windows of one cell.
        level: whose windows are asked for.
    """
    labelled = cells.labelled > 0
    mixed = cells.count < cells.labelled
    boundary = mixed.clone()
    for dim in (1, 2):
        length = labelled.shape[dim] - 1
        here, there = (
            (lambda part, d=dim, n=length: part.narrow(d, 0, n)),
            (lambda part, d=dim, n=length: part.narrow(d, 1, n)),
        )
        differ = (here(cells.classes) != there(cells.classes)) | here(mixed) | there(mixed)
        differ &= here(labelled) & there(labelled)
        here(boundary).logical_or_(differ)
        there(boundary).logical_or_(differ)
    return sum_windows(boundary.int(), level.window, level.step) > 0
