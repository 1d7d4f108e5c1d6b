"""The rows that the peers take out of a feature map, and their classes: samples of cells, and class means."""

from typing import NamedTuple

import torch
from torch import Tensor

from hicl_d2.contrast.anchors import choose_anchors
from hicl_d2.contrast.fused import gather_cells
from hicl_d2.contrast.processes import is_distributed

__all__ = ["Pixels", "class_means", "region_means", "sample_pixels"]


class Pixels(NamedTuple):
    """Hold sampled pixels.

    Attributes:
        rows: (N, C), their features.
        classes: (N,) int64, ascending, then -1 for empty places.
        hard: (N,) bool, wrongly predicted; all False without predictions.
    """

    rows: Tensor
    classes: Tensor
    hard: Tensor


def sample_pixels(
    features: Tensor,
    classes: Tensor,
    num_classes: int,
    budget: int,
    generator: torch.Generator,
    *,
    hard: Tensor | None = None,
    hard_share: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Pixels:
    """Draw pixels from features (B, C, h, w), balanced over the ``classes`` (B, h, w) present (-1: none).

    ``hard`` (B, h, w) bool, if given, marks the wrongly predicted pixels: ``hard_share`` of each class's pixels is
    drawn from them where there are enough.
    """
    if not is_distributed():  # processes that gather rows must all have the same number of them
        budget = max(1, min(budget, classes.numel()))
    sample = choose_anchors(classes, num_classes, budget, generator, hard=hard, hard_share=hard_share)
    rows = gather_cells(features, sample.index, dtype)
    found = sample.valid if hard is None else sample.valid & hard.flatten()[sample.index]
    return Pixels(rows, sample.group, found & (hard is not None))


def class_means(features: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Average the features of each group of cells.

    Args:
        features: (B, C, h, w).
        groups: (B, h, w) integer, 0 to num_groups - 1; -1 for a cell that belongs to none.
        num_groups: G.

    Returns:
        (G, C) means, 0 for a group without cells, and (G,) int64 how many cells each has.
    """
    B, C, _, _ = features.shape
    groups = torch.where(groups < 0, num_groups, groups).view(B, -1)
    if features.is_contiguous(memory_format=torch.channels_last):
        rows = features.permute(0, 2, 3, 1).reshape(-1, C)
        sums = rows.new_zeros(num_groups + 1, C).index_add(0, groups.flatten(), rows)
    else:  # along the cells in memory order: permuting the map would cost more than the sum
        columns = features.new_zeros(C, num_groups + 1)
        for image, group in zip(features.flatten(2), groups, strict=True):
            columns = columns.index_add(1, group, image)
        sums = columns.T
    counts = torch.zeros(num_groups + 1, dtype=torch.long, device=groups.device)
    counts = counts.scatter_add(0, groups.flatten(), torch.ones_like(groups).flatten())[:num_groups]
    return sums[:num_groups] / counts.clamp(min=1)[:, None], counts


def region_means(features: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Average features (B, C, h, w) over each class (B, h, w; -1: none) of each image.

    Returns:
        (B * K, C) means, and (B * K,) int64 the class of each, -1 where the image has no such pixel.
    """
    image = torch.arange(len(classes), device=classes.device)[:, None, None]
    groups = torch.where(classes < 0, -1, image * num_classes + classes)
    means, counts = class_means(features, groups, len(classes) * num_classes)
    each = torch.arange(num_classes, device=classes.device).repeat(len(classes))
    return means, torch.where(counts > 0, each, -1)
