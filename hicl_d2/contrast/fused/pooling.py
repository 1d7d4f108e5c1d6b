"""Rows out of a feature map through one pyramid: each level is pooled from a smaller one, forward and backward.

Only sampled rows are needed, but the mean over a window needs all its cells. So every level is summed once, from the
smaller level that it is linked to (`link_levels`), and the rows are taken out of this pyramid. Forward and backward are one
autograd function: the gradient goes down the pyramid once, from coarse to fine, instead of once per level.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from hicl_d2.contrast.fused import host
from hicl_d2.contrast.fused.links import Link, link_levels
from hicl_d2.contrast.levels import Level
from hicl_d2.contrast.once import TEXTBOOK, differentiable_once

__all__ = ["gather_cells", "gather_windows"]

# Channels that are pooled at a time in a (B, C, h, w) map on a CPU, so that intermediate sums stay in the cache.
_CHANNELS = 32


def gather_cells(features: Tensor, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Take cells out of features. Arguments and result as in the plain twin, `components.gather_cells`."""
    return gather_windows(features, index, index[:0], (), dtype)


def gather_windows(
    features: Tensor,
    cells: Tensor,
    windows: Tensor,
    levels: Sequence[Level],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Take cells and means over windows out of features. Arguments and result as in `components.gather_windows`.

    The gradient at the features has their memory format, channels_last or not.
    """
    if not (features.is_contiguous() or features.is_contiguous(memory_format=torch.channels_last)):
        features = features.contiguous()
    return _GatherWindows.apply(features, cells, windows, tuple(levels), dtype)


class _GatherWindows(torch.autograd.Function):
    """Take rows out of the cells and out of the pyramid of window sums above them."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        cells: Tensor,
        windows: Tensor,
        levels: tuple[Level, ...],
        dtype: torch.dtype,
    ) -> Tensor:
        pyramid = _Pyramid(features, levels)
        sums = torch.empty(pyramid.rows, pyramid.channels, dtype=dtype, device=features.device)
        pyramid.pool(features, sums)
        in_cells, in_sums, scale = pyramid.locate(windows, dtype)
        rows = pyramid.take_cells(features, torch.cat([cells, in_cells]), dtype)
        if pyramid.rows:
            components = rows[len(cells) :].mul_(scale[:, :1])
            components.addcmul_(sums.index_select(0, in_sums), scale[:, 1:])
        ctx.pyramid = pyramid
        ctx.like = (features.shape, features.dtype, features.device)
        ctx.save_for_backward(cells, in_cells, in_sums, scale)
        return rows

    @staticmethod
    @differentiable_once(TEXTBOOK)
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor | None, ...]:
        pyramid: _Pyramid = ctx.pyramid
        cells, in_cells, in_sums, scale = ctx.saved_tensors
        shape, dtype, device = ctx.like
        layout = torch.channels_last if pyramid.channels_last else torch.contiguous_format
        grad = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
        sums = grad_rows.new_zeros(pyramid.rows, pyramid.channels)
        if pyramid.rows:
            components = grad_rows[len(cells) :]
            sums.index_add_(0, in_sums, components * scale[:, 1:])
            grad_rows = torch.cat([grad_rows[: len(cells)], components * scale[:, :1]])
        pyramid.unpool(sums, torch.cat([cells, in_cells]), grad_rows.to(dtype), grad)
        return grad, None, None, None, None


class _Pyramid:
    """Hold what a pyramid's shape decides: where each level's rows lie, and what each level is summed from.

    The window sums of all levels lie one after the other in a matrix (rows, C), without those of single cells, whose rows
    are the feature map's own.
    """

    def __init__(self, features: Tensor, levels: Sequence[Level]) -> None:
        self.batch, self.channels, *self.size = features.shape
        self.channels_last = features.is_contiguous(memory_format=torch.channels_last)
        self.levels = levels
        self.links = link_levels(levels)
        self.extents = [level.extent((self.size[0], self.size[1])) for level in levels]
        self.cells = self.batch * self.size[0] * self.size[1] if levels and levels[0].window == 1 else 0
        self.starts: list[int] = []
        self.rows = 0
        for level, (rows, columns) in zip(levels, self.extents, strict=True):
            self.starts.append(self.rows)
            self.rows += 0 if level.window == 1 else self.batch * rows * columns
        # In (B, C, h, w) the channels of a cell lie far apart: a CPU works in blocks of channels that stay in its cache.
        self.on_host = host.on_host(features)

    def view(self, sums: Tensor, k: int) -> Tensor:
        """Return level k's part of ``sums`` (rows, C) as (B, rows, columns, C)."""
        rows, columns = self.extents[k]
        part = sums[self.starts[k] : self.starts[k] + self.batch * rows * columns]
        return part.view(self.batch, rows, columns, self.channels)

    def steps(self) -> list[tuple[int, Link, bool]]:
        """List (level, link, whether it is summed from the cells) for the levels that have window sums, fine to coarse."""
        return [
            (k, link, link.parent < 0 or self.levels[link.parent].window == 1)
            for k, (level, link) in enumerate(zip(self.levels, self.links, strict=True))
            if level.window > 1 and 0 not in self.extents[k]
        ]

    def blocks(self) -> Iterator[slice]:
        """Iterate over the channels in blocks."""
        for start in range(0, self.channels, _CHANNELS):
            yield slice(start, start + _CHANNELS)

    def pool(self, features: Tensor, sums: Tensor) -> None:
        """Fill ``sums`` with the window sums of every level."""
        for k, link, from_cells in self.steps():
            target = self.view(sums, k)
            if not from_cells:
                source = self.view(sums, link.parent)[:, :: link.pick, :: link.pick]
                _sum_slices(source, link, self.extents[k], target)
            elif self.channels_last:
                _sum_slices(features.permute(0, 2, 3, 1), link, self.extents[k], target)
            elif not self.on_host:
                # One operator, without a copy of the map in the type of the sums.
                rows, columns = self.extents[k]
                places = features.unfold(2, link.factor, link.stride).unfold(3, link.factor, link.stride)
                summed = places[:, :, :rows, :columns].sum((4, 5), dtype=sums.dtype)
                target.copy_(summed.permute(0, 2, 3, 1))
            else:
                for image, channels in product(range(self.batch), self.blocks()):
                    block = features[image, channels].to(sums.dtype)
                    for dim, length in ((1, self.extents[k][0]), (2, self.extents[k][1])):
                        block = _sum_along(block, dim, link, length)
                    target[image, :, :, channels].copy_(block.permute(1, 2, 0))

    def unpool(self, sums: Tensor, index: Tensor, rows: Tensor, grad: Tensor) -> None:
        """Send the gradients of the sums and of cells down to the feature map: adjoint of `pool` and `take_cells`.

        Args:
            sums: (rows, C), the gradient of the sums; it is used up.
            index: (N,) int64, cells, and ``rows`` (N, C) their gradients.
            grad: (B, C, h, w), is overwritten.
        """
        to_cells = []
        for k, link, from_cells in reversed(self.steps()):
            if from_cells:
                to_cells.append((k, link))
            else:
                parent = self.view(sums, link.parent)[:, :: link.pick, :: link.pick]
                _spread(self.view(sums, k), link, parent, overwrite=False)
        # The first level that is sent to the cells need not be added to anything, if its windows tile them.
        tiled = bool(to_cells) and to_cells[0][1].stride == to_cells[0][1].factor
        if not tiled:
            grad.zero_()
        else:
            self._clear(grad, *to_cells[0])
        if self.channels_last:
            for number, (k, link) in enumerate(to_cells):
                _spread(self.view(sums, k), link, grad.permute(0, 2, 3, 1), tiled and number == 0)
            grad.permute(0, 2, 3, 1).view(-1, self.channels).index_add_(0, index, rows)
            return
        if not self.on_host:
            for number, (k, link) in enumerate(to_cells):
                whole = self.view(sums, k).permute(0, 3, 1, 2).contiguous()
                _spread_planes(whole, link, grad, tiled and number == 0)
            self._add_cells(grad, index, rows)
            return
        for image, place, columns in self._by_image(index, rows):
            planes = [self.view(sums, k)[image].flatten(0, 1).t().contiguous() for k, _ in to_cells]
            for channels in self.blocks():
                block = grad[image : image + 1, channels]
                for number, ((k, link), part) in enumerate(zip(to_cells, planes, strict=True)):
                    source = part[channels].view(1, -1, *self.extents[k])
                    _spread_planes(source, link, block, tiled and number == 0)
                # While the block is in the cache, where the cells of a channel lie far apart.
                columns_of = columns[channels]
                block.view(len(columns_of), -1).scatter_add_(1, place.expand_as(columns_of), columns_of)

    def _by_image(self, index: Tensor, rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield each image's number, the places (n,) of its cells on the map, ascending, and their rows as columns (C, n)."""
        area = self.size[0] * self.size[1]
        ordered, order = index.sort()
        bounds = torch.searchsorted(
            ordered, torch.arange(self.batch + 1, device=index.device) * area
        ).tolist()
        for image, (start, stop) in enumerate(pairwise(bounds)):
            yield image, ordered[start:stop] - image * area, rows[order[start:stop]].t().contiguous()

    def _clear(self, grad: Tensor, k: int, link: Link) -> None:
        """Zero what level k, which tiles the cells, will not overwrite: the last cells of axes that it does not divide."""
        rows, columns = self.extents[k]
        grad[:, :, rows * link.factor :].zero_()
        grad[:, :, :, columns * link.factor :].zero_()

    def locate(self, windows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Find windows (M,) among the cells and among the sums, since each window is in one of the two.

        Returns its position among the cells (M,) and among the sums (M,), 0 in the one that it is not in, and the factors
        (M, 2) of [cell, sum] in its mean: 0 for the one that it is not in.
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
        # Neighbouring cells share cache lines: reading them in order is three times as fast.
        ordered, order = index.sort()
        taken = features.flatten(2)[ordered // area, :, ordered % area]
        rows = torch.empty(len(index), self.channels, dtype=dtype, device=features.device)
        return rows.index_copy_(0, order, taken.to(dtype))

    def _add_cells(self, grad: Tensor, index: Tensor, rows: Tensor) -> None:
        """Add rows (N, C) to cells ``index`` (N,) of ``grad`` (B, C, h, w), all at once."""
        area = self.size[0] * self.size[1]
        ordered, order = index.sort()
        first = (ordered // area) * (area * self.channels) + ordered % area
        place = torch.arange(self.channels, device=index.device)[:, None] * area + first
        grad.view(-1).scatter_add_(0, place.view(-1), rows[order].t().reshape(-1))


def _slices(link: Link, extent: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Iterate over the places in a window; yield the slices of the source that hold that place of every window."""
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
    """Add source (B, rows, columns, C) to every place of its windows in target (B, r, c, C): adjoint of `_sum_slices`.

    With ``overwrite``, which needs windows that do not overlap, the target's values are replaced instead.
    """
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
    """Do what `_spread` does for source (B, C, rows, columns) and target (B, C, r, c)."""
    rows, columns = source.shape[2:4]
    if overwrite:
        covered = target[:, :, : rows * link.factor, : columns * link.factor]
        # Not "nearest", whose rounding takes the wrong cell for some factors.
        enlarge = torch.ops.aten._upsample_nearest_exact2d.out
        enlarge(source.to(target.dtype), covered.shape[2:], None, None, out=covered)
        return
    for i, j in _slices(link, (rows, columns)):
        target[:, :, i, j] += source


def _tiles(target: Tensor, dim: int, factor: int, rows: int, columns: int) -> Tensor:
    """View the part of ``target`` that the windows tile as (..., rows, factor, columns, factor, ...)."""
    covered = target.narrow(dim, 0, rows * factor).narrow(dim + 1, 0, columns * factor)
    return covered.unflatten(dim + 1, (columns, factor)).unflatten(dim, (rows, factor))
