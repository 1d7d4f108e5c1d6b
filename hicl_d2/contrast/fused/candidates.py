"""Label statistics of all windows without one count per class.

Pooling one-hot labels multiplies the work by the number of classes. But where only windows with a majority can pass (purity
above one half), the majority vote of Boyer and Moore (1981) finds the only class that can have it: two numbers per cell,
a class and its lead, merge pair by pair from the pixels to the largest window. One comparison per level then counts that
class exactly. Each level is made of the windows of a smaller one where they tile it (`link_levels`).

Source of the vote: R. S. Boyer, J. S. Moore, "MJRTY: A Fast Majority Vote Algorithm", 1981.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from hicl_d2.contrast.candidates import WindowLabels
from hicl_d2.contrast.fused import host
from hicl_d2.contrast.fused.links import Link, link_levels
from hicl_d2.contrast.grid import LabelGrid
from hicl_d2.contrast.levels import Level

__all__ = ["count_labels", "sum_windows", "tile_windows"]

# Classes counted at a time where every class is counted.
_CLASSES = 8

Maps = tuple[Tensor, ...]
Fold = Callable[[Maps, Link, tuple[int, int]], Maps]


def count_labels(grid: LabelGrid, levels: Sequence[Level]) -> list[WindowLabels]:
    """Count the labels in the windows of ``levels`` (ascending): one entry per level.

    Equal to the plain `hicl_d2.contrast.candidates.count_labels`, but for a window that has no majority at a level whose
    purity is above one half: such a window cannot pass, and its class and count may be those of another class.
    """
    links = link_levels(levels)
    labelled = _climb((_count(_truth(torch.lt, grid.planes, grid.unlabelled)),), levels, links, _fold_sums)
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


def sum_windows(maps: Tensor, level: Level) -> Tensor:
    """Sum maps (B, h, w) over the windows of ``level``: (B, rows, columns), in the type of ``maps``."""
    link = Link(-1, 1, level.window, level.step)
    return _fold_sums((maps,), link, level.extent((maps.shape[1], maps.shape[2])))[0]


def tile_windows(windows: Tensor, level: Level, look: Callable[[slice, slice, Tensor], Tensor]) -> Tensor:
    """Sum over each window a function of its cells and of the window's own value: (B, rows, columns).

    Args:
        windows: (B, rows, columns), one value per window.
        level: whose windows they are.
        look: the function. It takes a range of rows and of columns of the map, h' x w' cells in all, and the value
            (B, h', w') of the window that covers each of these cells, and returns what to sum (B, h', w').

    Overlapping windows are split into groups of windows that do not overlap.
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
            sums.append((i, j, sum_windows(cells, Level(level.window, period))))
    if groups == 1 and sums:
        return sums[0][2]
    total = torch.zeros(windows.shape, dtype=sums[0][2].dtype if sums else torch.int32, device=windows.device)
    for i, j, part in sums:
        total[:, i::groups, j::groups] = part
    return total


def _climb(cells: Maps, levels: Sequence[Level], links: Sequence[Link], fold: Fold) -> list[Maps]:
    """Merge maps of cells (B, h, w) into maps of each level's windows, each level from the one that it is linked to."""
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
    """Merge the cells of every window, along one axis and then along the other."""
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
    """Merge two (classes, votes): equal classes add their votes, of two classes the stronger keeps its lead."""
    (classes, votes), (other_classes, other_votes) = one, other
    if host.on_host(classes):
        # On a CPU, arithmetic on integers takes a third of the time of torch.where on bool.
        winner = (
            torch.sub(classes, other_classes).mul_(_truth(torch.ge, votes, other_votes)).add_(other_classes)
        )
    else:
        winner = torch.where(votes >= other_votes, classes, other_classes)
    weaker = torch.minimum(votes, other_votes)
    stronger = torch.maximum(votes, other_votes).sub_(weaker)
    return winner, stronger.addcmul_(_truth(torch.eq, classes, other_classes), weaker, value=2)


def _vote(grid: LabelGrid) -> Maps:
    """Let the pixels of each cell vote: classes, -1 where nothing is labelled, and votes, (B, h, w) int32 each."""
    classes = grid.planes if grid.stride**2 <= 255 else grid.planes.int()
    votes = _truth(torch.lt, classes, grid.unlabelled)
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
    winner = classes[0].int()
    return torch.where(winner == grid.unlabelled, -1, winner), votes[0].int()


def _truth(compare: Callable[..., Tensor], one: Tensor, other: Tensor | int) -> Tensor:
    """Compare, and return 1 and 0 in the operands' type: on a CPU several times as fast as bool."""
    # An empty output takes the shape of the result. Calling torch.broadcast_shapes for it costs more than the comparison.
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
    """Count, in every window of ``level``, the pixels of the class (B, rows, columns) given for it; 0 for class -1."""
    return tile_windows(
        classes.to(grid.planes.dtype),
        level,
        lambda rows, columns, spread: _count(_truth(torch.eq, grid.planes[:, :, rows, columns], spread)),
    )


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
    return [(torch.where(key < K, -1, K - 1 - key % K), (key // K).int()) for key in best]
