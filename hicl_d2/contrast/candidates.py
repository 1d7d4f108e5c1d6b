"""Candidates: the label statistics of every window, from which its class, purity and coverage follow.

Labels are counted pixel by pixel at full resolution, not on a label map resized to the feature grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hicl_d2.contrast.grid import LabelGrid, nearest_classes
from hicl_d2.contrast.levels import Level

__all__ = ["WindowLabels", "count_labels", "middle_labels", "sum_windows"]


class WindowLabels(NamedTuple):
    """Hold the label statistics of one level's windows.

    Attributes:
        classes: (B, rows, columns) integer, the most frequent class, the lowest of equals; -1 where nothing is labelled.
        count: (B, rows, columns) int32, the labelled pixels of that class.
        labelled: (B, rows, columns) int32, the labelled pixels.
    """

    classes: Tensor
    count: Tensor  # type: ignore[assignment]
    labelled: Tensor


def count_labels(grid: LabelGrid, levels: Sequence[Level]) -> list[WindowLabels]:
    """Count the labels in the windows of ``levels`` (ascending), by pooling one-hot labels: one entry per level."""
    (h, w), B, s = grid.size, grid.batch_size, grid.stride
    labels = grid.planes.view(s, s, B, h, w).permute(2, 3, 0, 4, 1).reshape(B, h * s, w * s)
    one_hot = F.one_hot(labels.long(), grid.num_classes + 1)[..., : grid.num_classes]
    one_hot = one_hot.permute(0, 3, 1, 2).float()
    statistics = []
    for level in levels:
        in_pixels = Level(level.window * s, level.step * s)
        counts = sum_windows(one_hot, in_pixels)
        count, winner = counts.max(dim=1)
        statistics.append(WindowLabels(torch.where(count > 0, winner, -1), count.int(), counts.sum(1).int()))
    return statistics


def middle_labels(grid: LabelGrid) -> WindowLabels:
    """Give every cell the class of its middle pixel, as though all its pixels had that class."""
    classes = nearest_classes(grid)
    pixels = torch.where(classes >= 0, grid.stride**2, 0).int()
    return WindowLabels(classes, pixels, pixels)


def sum_windows(maps: Tensor, level: Level) -> Tensor:
    """Sum maps (..., h, w), float, of three or four axes, over the windows of ``level``: (..., rows, columns)."""
    extent = level.extent((maps.shape[-2], maps.shape[-1]))
    if 0 in extent:
        return maps.new_zeros(*maps.shape[:-2], *extent)
    return F.avg_pool2d(maps, level.window, level.step, divisor_override=1)
