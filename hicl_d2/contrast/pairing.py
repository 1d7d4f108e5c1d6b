"""Who is whose positive, and what each anchor counts for."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hicl_d2.contrast.anchors import Sample

# What is divided by is at least this.
_TINY = 1e-30

__all__ = ["Columns", "Pairing", "find_own", "pair"]


class Columns(NamedTuple):
    """Hold what is known about components besides their embedding, M of them.

    Attributes:
        classes: (M,) int64; the number of classes where there is no component.
        levels: (M,) int64; 0 where there is no component.
        places: (M,) int64, ascending, the class that each place is for, whether or not there is a component in it; None
            where ``classes`` itself ascends.
    """

    classes: Tensor
    levels: Tensor
    places: Tensor | None = None


class Pairing(NamedTuple):
    """Hold how A anchors and M components are paired.

    Attributes:
        anchor_class: (A,) int64; K where there is no anchor.
        component_class: (M,) int64; K where there is no component.
        own: (A,) int64, the component that is an anchor's own window of one cell; M where it has none.
        num_classes: K.
        segments: parts of the components, one after the other, in each of which the classes ascend: what class each
            place is for, (m,) int64, whether or not there is a component in it. Anchors ascend too.
        block: (M,) int64, the block a component belongs to.
        blocks: (M, blocks) float: 1 in that block; a row of zeros where there is no component.
        weight: (M,) float, weight of a component as a positive inside its block.
        share: (A, blocks) float, what an anchor's loss counts in the whole; 0 without positives in that block.
        unit: (A, blocks) float, share by total weight of the anchor's positives.
        uniform: whether all weights are alike and there is one block, known without looking at data.
    """

    anchor_class: Tensor
    component_class: Tensor
    own: Tensor
    num_classes: int
    segments: tuple[Tensor, ...]
    block: Tensor
    blocks: Tensor
    weight: Tensor
    share: Tensor
    unit: Tensor
    uniform: bool


def find_own(anchors: Sample, components: Sample, cells: int) -> Tensor:
    """Find each anchor's own window of one cell among the components.

    Args:
        anchors: A cells.
        components: M windows; those below ``cells`` are single cells and numbered alike.
        cells: how many there are; 0 if no level has windows of one cell.

    Returns (A,) int64: a position among the components, or M for anchors that have none.
    """
    M, device = len(components.index), components.index.device
    holder = torch.full((cells + 1,), M, dtype=torch.int64, device=device)
    place = torch.where(components.valid & (components.index < cells), components.index, cells)
    holder.scatter_(0, place, torch.arange(M, device=device))
    holder[cells:].fill_(M)
    return holder[torch.where(anchors.valid, anchors.index, cells).clamp(max=cells)]


def pair(
    anchor_class: Tensor,
    segments: Sequence[Columns],
    own: Tensor,
    num_classes: int,
    level_weights: Tensor,
    *,
    separate: bool,
    uniform: bool,
    across_ranks: bool = False,
) -> Pairing:
    """Pair anchors with components, and share the loss out among the anchors that have positives.

    Args:
        anchor_class: (A,) int64; K where there is no anchor.
        segments: what is known about M components, in one or more parts.
        own: (A,) from `find_own`; a window of one cell belongs to level 0.
        num_classes: K.
        level_weights: (L,) float, above 0; its type is the type of all weights.
        separate: one block per level instead of one for all.
        uniform: the level weights are alike (the caller knows without looking at the tensor).
        across_ranks: count the anchors of all processes, and scale this one's loss so that the mean over processes is
            the loss of them all.
    """
    K, L, dtype, device = num_classes, len(level_weights), level_weights.dtype, anchor_class.device
    classes = torch.cat([segment.classes for segment in segments])
    levels = torch.cat([segment.levels for segment in segments])
    present = (classes < K).to(dtype)
    counts = torch.zeros((K + 1) * L, dtype=dtype, device=device)
    counts.scatter_add_(0, classes * L + levels, present)
    positives = counts.view(K + 1, L)[anchor_class]
    positives[:, 0] -= (own < len(classes)).to(dtype)
    if separate:
        block = levels
        blocks = torch.zeros(len(levels), L, dtype=dtype, device=device)
        blocks.scatter_(1, levels[:, None], present[:, None])
        weight, block_weight, total = present, level_weights, positives
    else:
        block, blocks = torch.zeros_like(levels), present[:, None]
        number = positives.sum(1, keepdim=True)
        weight = present if uniform else present * level_weights[levels]
        total = number if uniform else (positives @ level_weights)[:, None]
        block_weight = level_weights.new_ones(1)
    counted = ((positives if separate else number) > 0).to(dtype)
    anchors = counted.sum(0)
    world = 1
    if across_ranks:
        dist.all_reduce(anchors)
        world = dist.get_world_size()
    block_weight = block_weight * anchors.clamp(max=1.0)
    per_anchor = world * block_weight / (block_weight.sum().clamp(min=_TINY) * anchors.clamp(min=1.0))
    share = counted * per_anchor
    unit = share / total.clamp(min=_TINY)
    return Pairing(
        anchor_class,
        classes,
        own,
        K,
        tuple(segment.classes if segment.places is None else segment.places for segment in segments),
        block,
        blocks,
        weight,
        share,
        unit,
        uniform and not separate,
    )
