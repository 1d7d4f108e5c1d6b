"""Pairing: which components are an anchor's positives, and what each anchor weighs in the loss."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hicl_d2.contrast.anchors import Sample
from hicl_d2.contrast.components import Components

# Least divisor.
_TINY = 1e-30

__all__ = ["Pairing", "find_own", "pair"]


class Pairing(NamedTuple):
    """Hold how A anchors are paired with N components (those of the step and those of the bank).

    Components fall into G *loss groups*: one, or one per level. An anchor meets each group in a loss of its own.

    Attributes:
        num_classes: K.
        anchor_class: (A,) int64, ascending, then -1 for empty places.
        own: (A,) int64, the component that is the anchor's own cell; -1 where there is none.
        loss_group: (N, G) float, 1 in the group that a component belongs to; a row of zeros for an empty place.
        positive_weight: (N,) float, weight of a component as a positive, relative to others of its group.
        anchor_weight: (A, G) float, weight of the anchor's loss in that group in the batch's loss; 0 without positives.
        weight_per_positive: (A, G) float, the anchor's weight over the sum of its positives' weights: what a positive
            of weight 1 counts in the batch's loss, before `positive_focus`.
        uniform: whether there is one group and all positives weigh alike, known without reading a tensor.
    """

    num_classes: int
    anchor_class: Tensor
    own: Tensor
    loss_group: Tensor
    positive_weight: Tensor
    anchor_weight: Tensor
    weight_per_positive: Tensor
    uniform: bool


def find_own(anchors: Sample, components: Components, num_cells: int) -> Tensor:
    """Find each anchor's own cell among the components: (A,) int64, -1 where it is none of them.

    Args:
        anchors: A cells.
        components: N windows, some of which may be single cells.
        num_cells: B x h x w.
    """
    if components.cells is None:
        return torch.full_like(anchors.index, -1)
    # One more place takes the windows that are no cell, and the anchors that are empty.
    component_at = torch.full((num_cells + 1,), -1, dtype=torch.int64, device=anchors.index.device)
    cells = torch.where(components.cells < 0, num_cells, components.cells)
    component_at.scatter_(0, cells, torch.arange(len(cells), device=cells.device))
    component_at[num_cells:].fill_(-1)
    return component_at[torch.where(anchors.valid, anchors.index, num_cells)]


def pair(
    anchors: Sample,
    components: Components,
    num_cells: int,
    num_classes: int,
    level_weights: Tensor,
    *,
    separate: bool,
    uniform: bool,
    across_processes: bool = False,
) -> Pairing:
    """Pair anchors with components, and weigh the anchors that have positives so that their weights sum to 1.

    Args:
        anchors: A cells, grouped by class.
        components: N components. Windows of one cell belong to level 0.
        num_cells: B x h x w.
        num_classes: K.
        level_weights: (L,) float, above 0; its type is the type of all weights.
        separate: one loss group per level instead of one for all.
        uniform: all level weights are equal (the caller knows without reading the tensor).
        across_processes: count the anchors of all processes, and scale the weights so that the mean of the processes'
            losses is the loss over all anchors.
    """
    K, L, dtype = num_classes, len(level_weights), level_weights.dtype
    classes, levels = components.classes, components.levels
    own = find_own(anchors, components, num_cells)
    present = (classes >= 0).to(dtype)
    # Row 0 counts class -1, of which no component is present.
    counts = torch.zeros((K + 1) * L, dtype=dtype, device=classes.device)
    counts.scatter_add_(0, (classes + 1) * L + levels, present)
    positives = counts.view(K + 1, L)[anchors.group + 1]
    positives[:, 0] -= (own >= 0).to(dtype)
    if separate:
        loss_group = torch.zeros(len(levels), L, dtype=dtype, device=classes.device)
        loss_group.scatter_(1, levels[:, None], present[:, None])
        number = total = positives
        positive_weight, group_weight = present, level_weights
    else:
        loss_group = present[:, None]
        number = positives.sum(1, keepdim=True)
        total = number if uniform else (positives @ level_weights)[:, None]
        positive_weight = present if uniform else present * level_weights[levels]
        group_weight = level_weights.new_ones(1)
    anchor_weight = _weigh_anchors(number, group_weight, across_processes)
    return Pairing(
        K,
        anchors.group,
        own,
        loss_group,
        positive_weight,
        anchor_weight,
        anchor_weight / total.clamp(min=_TINY),
        uniform and not separate,
    )


def _weigh_anchors(positives: Tensor, group_weight: Tensor, across_processes: bool) -> Tensor:
    """Divide the weight of each loss group (G,) evenly among the anchors that have ``positives`` (A, G) in it: (A, G).

    All weights sum to 1, or to the number of processes over the anchors of them all. Groups in which no anchor has
    positives leave their weight to the others.
    """
    has_positives = (positives > 0).to(group_weight.dtype)
    group_anchors = has_positives.sum(0)
    world = 1
    if across_processes:
        dist.all_reduce(group_anchors)
        world = dist.get_world_size()
    group_weight = group_weight * group_anchors.clamp(max=1.0)
    per_anchor = world * group_weight / (group_weight.sum().clamp(min=_TINY) * group_anchors.clamp(min=1.0))
    return has_positives * per_anchor
