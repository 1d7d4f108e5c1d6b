"""Components as means over the cells of one class inside a window.

A thin object fills no window: a window's purity leaves it nothing but single cells. Here every window gives one candidate
for each class that has cells in it, the mean over these cells alone, and keeps it where there are at least as many as
the window's side, which is a line across it. The form is this project's.

A candidate is known by its *first cell*, the first of the flattened (B, h, w) that belongs to it. So there are never more
places for candidates than cells, however many classes there are.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hicl_d2.contrast.levels import Level
from hicl_d2.contrast.pruning import Pruned

__all__ = ["ClassPruned", "belongs_to_component", "find_candidates", "gather_class_windows"]


class ClassPruned(Pruned):
    """Hold one level's candidates at their first cells: (P, B, h, w) each, with one P for windows that do not overlap.

    ``winners`` is the class of every cell, ``covered`` and ``pure`` are True at the first cell of a candidate, ``kept`` at
    that of a component.
    """

    __slots__ = ()

    def counts(self) -> dict[str, Tensor]:
        """Return the figures of `Pruned.counts`; a candidate of too few cells counts as pruned by purity."""
        found, kept = self.pure.sum(), self.kept.sum()
        none = torch.zeros_like(kept)
        return {
            "candidates": found,
            "pruned_coverage": none,
            "pruned_purity": found - kept,
            "pruned_confidence": none,
            "kept": kept,
        }


class _Keys(NamedTuple):
    """Hold to which candidate each cell belongs: key (N,) int64, ``size`` where to none, below ``size`` otherwise."""

    key: Tensor
    size: int


def find_candidates(classes: Tensor, num_classes: int, level: Level) -> ClassPruned:
    """Find the candidates of one level.

    Args:
        classes: (B, h, w) integer, the class of every cell that may take part; -1 for other cells.
        num_classes: K.
        level: its windows; the thresholds are those that made ``classes``.
    """
    least = level.window
    N = classes.numel()
    place = torch.arange(N, device=classes.device)
    firsts, kept = [], []
    for key, size in _keys(classes, num_classes, level):
        number = torch.zeros(size + 1, dtype=torch.int64, device=classes.device)
        number.scatter_add_(0, key, torch.ones_like(key))
        first = torch.full_like(number, N).scatter_reduce_(0, key, place, "amin")
        is_first = (first[key] == place) & (key < size)
        firsts.append(is_first)
        kept.append(is_first & (number[key] >= least))
    shape = (len(firsts), *classes.shape)
    found = torch.stack(firsts).view(shape)
    return ClassPruned(classes.expand(shape), found, found, torch.stack(kept).view(shape))


def belongs_to_component(classes: Tensor, num_classes: int, level: Level) -> Tensor:
    """Tell which cells are in a component of the level: (B, h, w) bool. Args: as in `find_candidates`."""
    member = torch.zeros(classes.numel(), dtype=torch.bool, device=classes.device)
    for key, size in _keys(classes, num_classes, level):
        number = torch.bincount(key, minlength=size + 1)
        member |= (key < size) & (number[key] >= level.window)
    return member.view(classes.shape)


def gather_class_windows(
    features: Tensor,
    cells: Tensor,
    components: Tensor,
    valid: Tensor,
    classes: Tensor,
    num_classes: int,
    levels: Sequence[Level],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Take cells and means over the cells of a class out of features (B, C, h, w): (A + M, C) in ``dtype``, with gradient.

    Args:
        features: any float type.
        cells: (A,) int64, positions in the flattened (B, h, w).
        components: (M,) int64, positions among the first cells of all levels: level after level, each a flattened
            (P, B, h, w) as in `ClassPruned`.
        valid: (M,) bool; the row of a component that is not valid is that of cell 0.
        classes: as in `find_candidates`.
        num_classes: K.
        levels: as in `find_candidates`.
        dtype: float32 or float64.
    """
    flat = features.permute(0, 2, 3, 1).flatten(0, 2).to(dtype)
    N, M = len(flat), len(components)
    rows = torch.where(valid[:, None], 0.0, flat[:1])
    start = 0
    for level in levels:
        for key, size in _keys(classes, num_classes, level):
            first = components - start
            is_here = valid & (first >= 0) & (first < N)
            first = torch.where(is_here, first, 0)
            start += N
            if level.window == 1:
                rows = rows + flat.index_select(0, first) * is_here[:, None]
                continue
            slot_of = torch.full((size + 1,), M, device=key.device)
            slot_of.scatter_(0, torch.where(is_here, key[first], size), torch.arange(M, device=key.device))
            slot_of[size:].fill_(M)
            slot = slot_of[key]
            sums = flat.new_zeros(M + 1, flat.shape[1]).index_add(0, slot, flat)
            number = flat.new_zeros(M + 1).index_add(0, slot, flat.new_ones(N))
            rows = rows + sums[:M] / number[:M, None].clamp(min=1)
    return torch.cat([flat.index_select(0, cells), rows])


def _keys(classes: Tensor, num_classes: int, level: Level) -> Iterator[_Keys]:
    """Tell to which window and class each cell belongs, once for each of the groups of windows that do not overlap."""
    B, h, w = classes.shape
    rows, columns = level.extent((h, w))
    period = -(-level.window // level.step)
    images = torch.arange(B, device=classes.device)[:, None, None]
    size = B * max(rows, 1) * max(columns, 1) * num_classes
    for i in range(period):
        for j in range(period):
            row, in_row = _windows_of(h, rows, level, i, period, classes.device)
            column, in_column = _windows_of(w, columns, level, j, period, classes.device)
            key = ((images * rows + row[:, None]) * columns + column) * num_classes + classes
            is_in = in_row[:, None] & in_column & (classes >= 0) & (classes < num_classes)
            yield _Keys(torch.where(is_in, key, size).flatten().long(), size)


def _windows_of(
    length: int, windows: int, level: Level, group: int, period: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return for each place along an axis the window of a group that covers it, and whether there is one."""
    place = torch.arange(length, device=device) - group * level.step
    number = place.div(period * level.step, rounding_mode="floor")
    window = number * period + group
    within = place - number * period * level.step
    return window, (place >= 0) & (within < level.window) & (window < windows)
