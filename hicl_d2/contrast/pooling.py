"""Rows out of a feature map: single cells, and means over windows.

Only what was sampled is needed as rows, but a window's mean needs all its cells, so the levels are pooled once, each
from the level below (`link_levels`), and the rows are taken out of that pyramid. Forward and backward are one
autograd function: the gradient goes down the pyramid once, from coarse to fine, instead of once per level.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hicl_d2.contrast import host
from hicl_d2.contrast.levels import Level, Link, link_levels

__all__ = ["gather_cells", "gather_windows", "gather_windows_plainly"]

# Channels that are pooled at a time in a (B, C, h, w) map, so that what lies between stays in the cache.
_CHANNELS = 32


def gather_cells(features: Tensor, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Take cells out of features (B, C, h, w): (N, C) in ``dtype``, with gradient.

    Args:
        index: (N,) int64, positions in the flattened (B, h, w); repeats are allowed.
    """
    return gather_windows(features, index, index[:0], (), dtype)


def gather_windows(
    features: Tensor,
    cells: Tensor,
    windows: Tensor,
    levels: Sequence[Level],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Take cells and window means out of features (B, C, h, w), any float type: (A + M, C) in ``dtype``, with gradient.

    Args:
        cells: (A,) int64, positions in the flattened (B, h, w).
        windows: (M,) int64, positions in the windows of all levels: level after level, each a flattened
            (B, rows, columns).
        levels: in ascending order of their windows.
    """
    if not (features.is_contiguous() or features.is_contiguous(memory_format=torch.channels_last)):
        features = features.contiguous()
    return _GatherWindows.apply(features, cells, windows, tuple(levels), dtype)


def gather_windows_plainly(
    features: Tensor,
    cells: Tensor,
    windows: Tensor,
    levels: Sequence[Level],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Do what `gather_windows` does with one average pooling per level, for comparison."""
    features = features.to(dtype)
    rows = [features]
    for level in levels:
        if 0 not in level.extent((features.shape[2], features.shape[3])):
            rows.append(F.avg_pool2d(features, level.window, level.step))
    flat = [pooled.permute(0, 2, 3, 1).flatten(0, 2) for pooled in rows]
    components = torch.cat(flat[1:]) if len(flat) > 1 else flat[0][:0]
    return torch.cat([flat[0][cells], components[windows] if len(components) else components[:0]])


class _GatherWindows(torch.autograd.Function):
    """Gather rows from the cells and from the pyramid of window sums above them."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        cells: Tensor,
        windows: Tensor,
        levels: tuple[Level, ...],
        dtype: torch.dtype,
    ) -> Tensor:
        plan = _Plan(features, levels)
        sums = torch.empty(plan.rows, plan.channels, dtype=dtype, device=features.device)
        plan.pool(features, sums)
        in_cells, in_sums, scale = plan.locate(windows, dtype)
        rows = plan.take_cells(features, torch.cat([cells, in_cells]), dtype)
        if plan.rows:
            components = rows[len(cells) :].mul_(scale[:, :1])
            components.addcmul_(sums.index_select(0, in_sums), scale[:, 1:])
        ctx.plan = plan
        ctx.like = (features.shape, features.dtype, features.device)
        ctx.save_for_backward(cells, in_cells, in_sums, scale)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        cells, in_cells, in_sums, scale = ctx.saved_tensors
        shape, dtype, device = ctx.like
        layout = torch.channels_last if plan.channels_last else torch.contiguous_format
        grad = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
        sums = grad_rows.new_zeros(plan.rows, plan.channels)
        if plan.rows:
            components = grad_rows[len(cells) :]
            sums.index_add_(0, in_sums, components * scale[:, 1:])
            grad_rows = torch.cat([grad_rows[: len(cells)], components * scale[:, :1]])
        plan.unpool(sums, grad)
        plan.add_cells(grad, torch.cat([cells, in_cells]), grad_rows)
        return grad, None, None, None, None


class _Plan:
    """Hold the static side of a pyramid: where each level's rows lie, and what each is summed from.

    The rows of levels above one cell lie one after the other in a matrix (rows, C); a level of single cells has none,
    its rows are the feature map's own.
    """

    def __init__(self, features: Tensor, levels: Sequence[Level]) -> None:
        self.batch, self.channels, *size = features.shape
        self.channels_last = features.is_contiguous(memory_format=torch.channels_last)
        self.levels = levels
        self.links = link_levels(levels)
        self.extents = [level.extent((size[0], size[1])) for level in levels]
        self.cells = self.batch * size[0] * size[1] if levels and levels[0].window == 1 else 0
        self.starts: list[int] = []
        self.rows = 0
        for level, (rows, columns) in zip(levels, self.extents, strict=True):
            self.starts.append(self.rows)
            self.rows += 0 if level.window == 1 else self.batch * rows * columns
        # Pixels' channels lie far apart in (B, C, h, w): there, work in blocks that stay in the cache.
        self.block = (1, _CHANNELS) if host.on_host(features) else (self.batch, self.channels)

    def view(self, sums: Tensor, k: int) -> Tensor:
        """Return level k's part of ``sums`` (rows, C) as (B, rows, columns, C)."""
        rows, columns = self.extents[k]
        part = sums[self.starts[k] : self.starts[k] + self.batch * rows * columns]
        return part.view(self.batch, rows, columns, self.channels)

    def steps(self) -> list[tuple[int, Link, bool]]:
        """List (level, link, whether it is summed from the cells) for the levels that have rows, fine to coarse."""
        return [
            (k, link, link.parent < 0 or self.levels[link.parent].window == 1)
            for k, (level, link) in enumerate(zip(self.levels, self.links, strict=True))
            if level.window > 1 and 0 not in self.extents[k]
        ]

    def blocks(self, features: Tensor) -> Iterator[tuple[slice, slice]]:
        """Iterate over (images, channels) of a (B, C, h, w) map."""
        images, channels = self.block
        for b in range(0, self.batch, images):
            for c in range(0, self.channels, channels):
                yield slice(b, b + images), slice(c, c + channels)

    def pool(self, features: Tensor, sums: Tensor) -> None:
        """Fill ``sums`` with the window sums of every level."""
        for k, link, from_cells in self.steps():
            target = self.view(sums, k)
            if not from_cells:
                source = self.view(sums, link.parent)[:, :: link.pick, :: link.pick]
                _sum_slices(source, link, self.extents[k], target)
            elif self.channels_last:
                _sum_slices(features.permute(0, 2, 3, 1), link, self.extents[k], target)
            elif not host.on_host(features):
                # In one pass, without a copy of the map in the type of the sums.
                rows, columns = self.extents[k]
                places = features.unfold(2, link.factor, link.stride).unfold(3, link.factor, link.stride)
                summed = places[:, :, :rows, :columns].sum((4, 5), dtype=sums.dtype)
                target.copy_(summed.permute(0, 2, 3, 1))
            else:
                for images, channels in self.blocks(features):
                    block = features[images, channels].to(sums.dtype)
                    for dim, length in ((2, self.extents[k][0]), (3, self.extents[k][1])):
                        block = _sum_along(block, dim, link, length)
                    target[images, :, :, channels].copy_(block.permute(0, 2, 3, 1))

    def unpool(self, sums: Tensor, grad: Tensor) -> None:
        """Send the gradient of the sums down to the cells; overwrites ``grad`` (B, C, h, w)."""
        clean = False
        for k, link, from_cells in reversed(self.steps()):
            source = self.view(sums, k)
            if not from_cells:
                parent = self.view(sums, link.parent)[:, :: link.pick, :: link.pick]
                _spread(source, link, parent, overwrite=False)
                continue
            overwrite = not clean and link.stride == link.factor
            if not clean:
                self._clear(grad, k, link, overwrite)
                clean = True
            if self.channels_last:
                _spread(source, link, grad.permute(0, 2, 3, 1), overwrite)
                continue
            for images, channels in self.blocks(grad):
                block = source[images, :, :, channels].permute(0, 3, 1, 2).contiguous()
                _spread_planes(block, link, grad[images, channels], overwrite)
        if not clean:
            grad.zero_()

    def _clear(self, grad: Tensor, k: int, link: Link, covered: bool) -> None:
        """Zero what the first level to arrive will not overwrite."""
        if not covered:
            grad.zero_()
            return
        rows, columns = self.extents[k]
        grad[:, :, rows * link.factor :].zero_()
        grad[:, :, :, columns * link.factor :].zero_()

    def locate(self, windows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Find windows (M,) among the cells and among the sums.

        Returns the position in each (M,), 0 where it does not lie there, and the factors (M, 2) that turn [cell, sum]
        into a mean: one of the two is 0.
        """
        if not self.rows:
            return windows, windows, torch.ones(len(windows), 2, dtype=dtype, device=windows.device)
        is_cell = windows < self.cells
        above = windows - self.cells
        scale = torch.zeros(len(windows), 2, dtype=dtype, device=windows.device)
        scale[:, 0] = is_cell
        for start, level in zip(self.starts, self.levels, strict=True):
            if level.window > 1:
                scale[:, 1].masked_fill_(above >= start, 1.0 / level.window**2)
        return windows * is_cell, above.clamp(min=0), scale

    def take_cells(self, features: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Take cells ``index`` (N,): (N, C)."""
        if self.channels_last:
            return features.permute(0, 2, 3, 1).reshape(-1, self.channels).index_select(0, index).to(dtype)
        area = features.shape[2] * features.shape[3]
        # Neighbours share cache lines: reading in order is three times as fast.
        ordered, order = index.sort()
        taken = features.flatten(2)[ordered // area, :, ordered % area]
        rows = torch.empty(len(index), self.channels, dtype=dtype, device=features.device)
        return rows.index_copy_(0, order, taken.to(dtype))

    def add_cells(self, grad: Tensor, index: Tensor, rows: Tensor) -> None:
        """Add rows (N, C) to cells ``index`` (N,) of ``grad`` (B, C, h, w)."""
        rows = rows.to(grad.dtype)
        if self.channels_last:
            grad.permute(0, 2, 3, 1).view(-1, self.channels).index_add_(0, index, rows)
            return
        area = grad.shape[2] * grad.shape[3]
        ordered, order = index.sort()
        first = (ordered // area) * (area * self.channels) + ordered % area
        place = torch.arange(self.channels, device=index.device)[:, None] * area + first
        grad.view(-1).scatter_add_(0, place.view(-1), rows[order].t().reshape(-1))


def _slices(link: Link, extent: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Iterate over a window's places: the slices of the source that hold that place of every window."""
    rows, columns = ((length - 1) * link.stride + 1 for length in extent)
    for i in range(link.factor):
        for j in range(link.factor):
            yield slice(i, i + rows, link.stride), slice(j, j + columns, link.stride)


def _sum_slices(source: Tensor, link: Link, extent: tuple[int, int], target: Tensor) -> None:
    """Sum source (B, r, c, C) over windows into target (B, rows, columns, C)."""
    parts = [source[:, i, j] for i, j in _slices(link, extent)]
    if len(parts) == 1 or source.dtype != target.dtype:
        target.copy_(parts[0])
        rest = parts[1:]
    else:
        torch.add(parts[0], parts[1], out=target)
        rest = parts[2:]
    for part in rest:
        target += part


def _sum_along(block: Tensor, dim: int, link: Link, length: int) -> Tensor:
    """Sum windows along one axis of ``block``."""
    size = (length - 1) * link.stride + 1
    parts = [block.narrow(dim, i, size) for i in range(link.factor)]
    whole = (slice(None),) * dim
    strided = [part[(*whole, slice(None, None, link.stride))] for part in parts]
    total = strided[0] + strided[1] if len(strided) > 1 else strided[0]
    for part in strided[2:]:
        total += part
    return total


def _spread(source: Tensor, link: Link, target: Tensor, overwrite: bool) -> None:
    """Send source (B, rows, columns, C) to every place of its windows in target (B, r, c, C): adjoint of the sum."""
    rows, columns = source.shape[1:3]
    if link.stride != link.factor:
        for i, j in _slices(link, (rows, columns)):
            target[:, i, j] += source
        return
    places = _tiles(target, 1, link.factor, rows, columns)
    spread = source[:, :, None, :, None].expand_as(places)
    if overwrite:
        places.copy_(spread)
    else:
        places += spread


def _spread_planes(source: Tensor, link: Link, target: Tensor, overwrite: bool) -> None:
    """Do the same for source (B, C, rows, columns) and target (B, C, r, c)."""
    rows, columns = source.shape[2:4]
    if not overwrite:
        for i, j in _slices(link, (rows, columns)):
            target[:, :, i, j] += source
        return
    places = _tiles(target, 2, link.factor, rows, columns)
    for column in range(link.factor):
        places[:, :, :, 0, :, column] = source
    for row in range(1, link.factor):
        places[:, :, :, row] = places[:, :, :, 0]


def _tiles(target: Tensor, dim: int, factor: int, rows: int, columns: int) -> Tensor:
    """View the part of target that windows tile as (..., rows, factor, columns, factor, ...)."""
    covered = target.narrow(dim, 0, rows * factor).narrow(dim + 1, 0, columns * factor)
    return covered.unflatten(dim + 1, (columns, factor)).unflatten(dim, (rows, factor))
