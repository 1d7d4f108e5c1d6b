"""Which class every window holds, how purely, and how much of it is labelled.

A window's labels are counted pixel by pixel at full resolution. One count per class and window would cost the number
of classes over again; where only windows with a majority can pass (purity above one half), votes find the class that
may have it (Boyer and Moore, 1981), and one comparison per level counts it exactly.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hicl_d2.contrast import host
from hicl_d2.contrast.grid import LabelGrid
from hicl_d2.contrast.levels import Level, Link, link_levels

__all__ = [
    "WindowLabels",
    "cell_classes",
    "count_labels",
    "count_labels_plainly",
    "sum_windows",
    "tile_windows",
]

# Classes counted at a time where each class is counted.
_CLASSES = 8

Maps = tuple[Tensor, ...]
Fold = Callable[[Maps, Link, tuple[int, int]], Maps]


class WindowLabels(NamedTuple):
    """Hold the label statistics of one level's windows.

    Attributes:
        classes: (B, rows, columns) integer, the most frequent class, the lowest of equals; the number of classes where
            nothing is labelled. Where no class has more than half of the labelled pixels, this and its count are
            exact only if the level's purity is at most one half: with another such windows cannot pass.
        count: (B, rows, columns) int32, the labelled pixels of that class.
        labelled: (B, rows, columns) int32, the labelled pixels.
    """

    classes: Tensor
    count: Tensor  # type: ignore[assignment]
    labelled: Tensor


def count_labels(grid: LabelGrid, levels: Sequence[Level]) -> list[WindowLabels]:
    """Count the labels in the windows of ``levels`` (ascending): one entry per level."""
    links = link_levels(levels)
    labelled = _climb((_count(_truth(torch.lt, grid.planes, grid.num_classes)),), levels, links, _fold_sums)
    classes: list[Tensor] = [labelled[0][0]] * len(levels)
    counts = list(classes)
    if any(level.purity > 0.5 for level in levels):
        for k, (voted, _) in enumerate(_climb(_vote(grid), levels, links, _fold_votes)):
            if levels[k].purity > 0.5:
                classes[k], counts[k] = voted, _count_class(grid, voted, levels[k])
    if any(level.purity <= 0.5 for level in levels):
        for k, (most_frequent, count) in enumerate(_count_every_class(grid, levels, links)):
            if levels[k].purity <= 0.5:
                classes[k], counts[k] = most_frequent, count
    return [
        WindowLabels(*parts) for parts in zip(classes, counts, (part for (part,) in labelled), strict=True)
    ]


def count_labels_plainly(grid: LabelGrid, levels: Sequence[Level]) -> list[WindowLabels]:
    """Do what `count_labels` does by pooling one-hot labels, exactly in every window, for comparison."""
    (h, w), B, s = grid.size, grid.batch_size, grid.stride
    labels = grid.planes.view(s, s, B, h, w).permute(2, 3, 0, 4, 1).reshape(B, h * s, w * s)
    one_hot = F.one_hot(labels.long(), grid.num_classes + 1)[..., :-1].permute(0, 3, 1, 2).float()
    statistics = []
    for level in levels:
        if 0 in level.extent(grid.size):
            count = one_hot.new_zeros(B, grid.num_classes, *level.extent(grid.size))
        else:
            count = F.avg_pool2d(one_hot, level.window * s, level.step * s, divisor_override=1)
        best, winner = count.max(dim=1)
        winner = torch.where(best > 0, winner, grid.num_classes)
        statistics.append(WindowLabels(winner, best.int(), count.sum(1).int()))
    return statistics


def cell_classes(grid: LabelGrid, purity: float = 0.0, coverage: float = 0.0) -> Tensor:
    """Return the class of every cell, (B, h, w) int64; -1 where purity or coverage falls short, or no label is."""
    (cells,) = count_labels(grid, [Level(1, 1, purity, coverage, (0.0, 1.0), 1.0)])
    kept = (cells.count > 0) & (cells.count / cells.labelled >= purity)
    kept &= cells.labelled / grid.stride**2 >= coverage
    return torch.where(kept, cells.classes.long(), -1)


def sum_windows(cells: Tensor, window: int, step: int) -> Tensor:
    """Sum cells (B, h, w) over the windows that lie whole on them: (B, rows, columns)."""
    level = Level(window, step, 0.0, 0.0, (0.0, 1.0), 1.0)
    return _climb((cells,), [level], link_levels([level]), _fold_sums)[0][0]


def tile_windows(windows: Tensor, level: Level, look: Callable[[slice, slice, Tensor], Tensor]) -> Tensor:
    """Sum, over each window, what its cells say about the window's value.

    Args:
        windows: (B, rows, columns), one value per window.
        level: whose windows they are.
        look: takes rows and columns of the map, h' x w' cells, and the value (B, h', w') of the window over each of
            them, and returns what to sum (B, h', w').

    Windows that overlap are taken in groups that do not.
    """
    groups = -(-level.window // level.step)
    period = groups * level.step
    sums: list[tuple[int, int, Tensor]] = []
    for i in range(groups):
        for j in range(groups):
            group = windows[:, i::groups, j::groups]
            B, rows, columns = group.shape
            if 0 in group.shape:
                continue
            top, left = i * level.step, j * level.step
            height, width = (rows - 1) * period + level.window, (columns - 1) * period + level.window
            spread = group[:, :, None, :, None].expand(B, rows, period, columns, period)
            spread = spread.reshape(B, rows * period, columns * period)[:, :height, :width]
            cells = look(slice(top, top + height), slice(left, left + width), spread)
            sums.append((i, j, sum_windows(cells, level.window, period)))
    if groups == 1 and sums:
        return sums[0][2]
    total = torch.zeros(windows.shape, dtype=sums[0][2].dtype if sums else torch.int32, device=windows.device)
    for i, j, part in sums:
        total[:, i::groups, j::groups] = part
    return total


def _climb(cells: Maps, levels: Sequence[Level], links: Sequence[Link], fold: Fold) -> list[Maps]:
    """Fold cells (B, h, w) into the windows of each level, each level from the one it is linked to."""
    size = (cells[0].shape[1], cells[0].shape[2])
    reached: list[Maps] = []
    for level, link in zip(levels, links, strict=True):
        source = cells
        if link.parent >= 0:
            source = tuple(part[:, :: link.pick, :: link.pick] for part in reached[link.parent])
        reached.append(fold(source, link, level.extent(size)))
    return reached


def _fold_sums(source: Maps, link: Link, extent: tuple[int, int]) -> Maps:
    """Sum one map over windows."""
    (part,) = source
    if link.factor == link.stride == 1:
        return (part[:, : extent[0], : extent[1]],)
    if host.on_host(part) or 0 in extent:
        return _fold(source, link, extent, lambda one, other: (one[0] + other[0],))
    places = part.unfold(1, link.factor, link.stride).unfold(2, link.factor, link.stride)
    return (places[:, : extent[0], : extent[1]].sum((3, 4), dtype=part.dtype),)


def _fold_votes(source: Maps, link: Link, extent: tuple[int, int]) -> Maps:
    """Merge classes and votes over windows."""
    return _fold(source, link, extent, _merge_votes)


def _fold(source: Maps, link: Link, extent: tuple[int, int], merge: Callable[[Maps, Maps], Maps]) -> Maps:
    """Merge the places of every window, along one axis and then along the other."""
    for dim, length in enumerate(extent, start=1):
        last = (length - 1) * link.stride + 1
        before = (slice(None),) * dim
        places = [
            tuple(part[(*before, slice(i, i + last if length else i, link.stride))] for part in source)
            for i in range(link.factor)
        ]
        source = reduce(merge, places)
    return source


def _merge_votes(one: Maps, other: Maps) -> Maps:
    """Merge two (classes, votes): equal classes add their votes, of others the stronger keeps what it has more."""
    (classes, votes), (other_classes, other_votes) = one, other
    if host.on_host(classes):
        # Arithmetic on one integer type takes a third of the time of torch.where on truth values.
        winner = (
            torch.sub(classes, other_classes).mul_(_truth(torch.ge, votes, other_votes)).add_(other_classes)
        )
    else:
        winner = torch.where(votes >= other_votes, classes, other_classes)
    weaker = torch.minimum(votes, other_votes)
    stronger = torch.maximum(votes, other_votes).sub_(weaker)
    return winner, stronger.addcmul_(_truth(torch.eq, classes, other_classes), weaker, value=2)


def _vote(grid: LabelGrid) -> Maps:
    """Let the pixels of each cell vote: classes and votes, (B, h, w) each."""
    classes = grid.planes if grid.stride**2 <= 255 else grid.planes.int()
    votes = _truth(torch.lt, classes, grid.num_classes)
    while len(classes) > 1:
        half = len(classes) // 2
        merged = _merge_votes(
            (classes[:half], votes[:half]), (classes[half : 2 * half], votes[half : 2 * half])
        )
        if len(classes) % 2:
            merged = tuple(
                torch.cat([part, all_[-1:]]) for part, all_ in zip(merged, (classes, votes), strict=True)
            )
        classes, votes = merged
    return classes[0].int(), votes[0].int()


def _truth(compare: Callable[..., Tensor], one: Tensor, other: Tensor | int) -> Tensor:
    """Compare, with 1 and 0 of the operands' type for true and false: several times as fast as bool on a CPU."""
    # An empty output takes the shape of the result; asking torch.broadcast_shapes for it costs more than comparing.
    return compare(one, other, out=one.new_empty(0))


def _count(hits: Tensor) -> Tensor:
    """Count hits (P, ...), 1 or 0 of an integer type, over the first axis: (...) int32."""
    if not host.on_host(hits):
        return hits.sum(0, dtype=torch.int32)
    counts = hits if len(hits) <= 255 else hits.int()
    while len(counts) > 1:
        half = len(counts) // 2
        halves = counts[:half] + counts[half : 2 * half]
        if len(counts) % 2:
            halves[0] += counts[-1]
        counts = halves
    return counts[0].int()


def _count_class(grid: LabelGrid, classes: Tensor, level: Level) -> Tensor:
    """Count, in every window of ``level``, the pixels of the class (B, rows, columns) given for it."""
    count = tile_windows(
        classes.to(grid.planes.dtype),
        level,
        lambda rows, columns, spread: _count(_truth(torch.eq, grid.planes[:, :, rows, columns], spread)),
    )
    return count.mul_(classes < grid.num_classes)


def _count_every_class(grid: LabelGrid, levels: Sequence[Level], links: Sequence[Link]) -> list[Maps]:
    """Find each window's most frequent class and count it: (classes, count) per level."""
    K, (h, w), B = grid.num_classes, grid.size, grid.batch_size
    best: list[Tensor] = []
    for start in range(0, K, _CLASSES):
        some = torch.arange(start, min(start + _CLASSES, K), device=grid.planes.device)
        hits = _truth(torch.eq, grid.planes[:, None], some.to(grid.planes.dtype)[:, None, None, None])
        counts = _count(hits).reshape(len(some) * B, h, w)
        # The greater count wins, and among equals the lower class.
        keys = [
            (part.view(len(some), B, *part.shape[1:]).long() * K + (K - 1 - some)[:, None, None, None]).amax(
                0
            )
            for (part,) in _climb((counts,), levels, links, _fold_sums)
        ]
        best = [torch.maximum(old, new) for old, new in zip(best, keys, strict=True)] if best else keys
    return [(torch.where(key < K, K, K - 1 - key % K), (key // K).int()) for key in best]
