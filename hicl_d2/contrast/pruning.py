"""Pruning: which candidate windows become components, and which of them touch another class."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hicl_d2.contrast.candidates import WindowLabels, sum_windows
from hicl_d2.contrast.grid import LabelGrid
from hicl_d2.contrast.levels import Level

__all__ = ["ClassScores", "Pruned", "Scores", "prune", "touches_boundary"]


class Pruned(NamedTuple):
    """Hold what each criterion leaves of one level's candidates, (B, rows, columns) each.

    Attributes:
        winners: integer, the most frequent class of every candidate; -1 where nothing is labelled.
        covered: bool, labelled enough.
        pure: bool, covered and pure enough.
        kept: bool, pure and predicted within the range of confidence: a component.
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

        A candidate counts under the first criterion that it fails, in this order; one without labels fails coverage.
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


class Scores(Protocol):
    """What `prune` asks of predictions: `ClassScores`, plain or fused."""

    def mean_probability(self, classes: Tensor, level: Level) -> Tensor:
        """Return the mean predicted probability of each window's class."""
        ...


class ClassScores:
    """Turn logits into the mean predicted probability of a window's class."""

    def __init__(self, logits: Tensor) -> None:
        """Keep the probabilities of logits (B, K, h, w), float."""
        self.probability = logits.softmax(dim=1)

    def mean_probability(self, classes: Tensor, level: Level) -> Tensor:
        """Return the mean predicted probability of each window's class: (B, rows, columns) float.

        Args:
            classes: (B, rows, columns) integer; the figure of a window without a class (-1) has no meaning.
            level: whose windows they are.
        """
        means = sum_windows(self.probability, level) / level.window**2
        return means.gather(1, classes.clamp(min=0).long()[:, None])[:, 0]


def prune(grid: LabelGrid, labels: WindowLabels, level: Level, scores: Scores | None = None) -> Pruned:
    """Keep the windows that are labelled enough, pure enough, and predicted within the level's confidence.

    Args:
        grid: the labels.
        labels: the statistics of the level's windows.
        level: with the thresholds.
        scores: the predictions; without them, or with a range of (0, 1), confidence is not checked.
    """
    # The least number of labelled pixels. The tolerance is for shares that have no exact binary fraction.
    least = max(1, math.ceil(level.coverage * (level.window * grid.stride) ** 2 - 1e-6))
    covered = labels.labelled >= least
    # Where nothing is labelled, 0 / 0 is NaN, which passes no comparison.
    pure = covered & (labels.count / labels.labelled >= level.purity)
    if level.purity == 0.0:
        pure &= labels.count > 0
    kept = pure
    low, high = level.confidence
    if scores is not None and (low > 0.0 or high < 1.0):
        probability = scores.mean_probability(labels.classes, level)
        kept = pure & (probability >= low) & (probability <= high)
    return Pruned(labels.classes, covered, pure, kept)


def touches_boundary(cells: WindowLabels, level: Level) -> Tensor:
    """Tell which windows touch another class: (B, rows, columns) bool.

    A cell is on a boundary if it holds two classes, or if a labelled cell beside it (left, right, above, below) holds
    two classes or another one. A window touches a boundary if one of its cells is on one.

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
    return sum_windows(boundary.float(), level) > 0
