"""Figures about a step that cost next to nothing."""

import torch
from torch import Tensor

__all__ = ["mean_similarities"]


@torch.no_grad()
def mean_similarities(
    anchors: Tensor,
    anchor_class: Tensor,
    components: Tensor,
    classes: Tensor,
    levels: Tensor,
    own: Tensor,
    num_classes: int,
    num_levels: int,
) -> tuple[Tensor, Tensor]:
    """Return the mean similarity of positive and of negative pairs per level: (L,) each, 0 without such pairs.

    Computed from the sums of embeddings per class and level, so that no A x M matrix is needed.

    Args:
        anchors: (A, D) embeddings of length one.
        anchor_class: (A,) int64; -1 for an empty place.
        components: (M, D) embeddings of length one.
        classes: (M,) int64; -1 for an empty place.
        levels: (M,) int64; 0 for an empty place.
        own: (A,) int64, the component that is the anchor's own cell, which is neither positive nor negative; -1 for none.
        num_classes: K.
        num_levels: L.
    """
    K, L, D = num_classes, num_levels, anchors.shape[1]
    # Row 0 takes what is of class -1, and is left out.
    anchor_row, component_row = anchor_class + 1, (classes + 1) * L + levels
    anchor_sums = anchors.new_zeros(K + 1, D).index_add_(0, anchor_row, anchors)[1:]
    component_sums = anchors.new_zeros((K + 1) * L, D).index_add_(0, component_row, components)
    component_sums = component_sums.view(K + 1, L, D)[1:]
    anchor_counts = _count(anchor_row, K + 1, anchors.dtype)[1:]
    component_counts = _count(component_row, (K + 1) * L, anchors.dtype).view(K + 1, L)[1:]
    positive = torch.bmm(component_sums, anchor_sums[:, :, None]).sum(0)[:, 0]
    everything = component_sums.sum(0) @ anchor_sums.sum(0)
    positive_count = anchor_counts @ component_counts
    every_count = anchor_counts.sum() * component_counts.sum(0)
    negative = (everything - positive) / (every_count - positive_count).clamp(min=1.0)
    has_own = (own >= 0).to(anchors.dtype)
    if len(components):
        own_rows = components[own.clamp(min=0)]
        positive[0] -= ((anchors * own_rows).sum(1) * has_own).sum()
        positive_count[0] -= has_own.sum()
    return positive / positive_count.clamp(min=1.0), negative


def _count(groups: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    ones = torch.ones(len(groups), dtype=dtype, device=groups.device)
    return ones.new_zeros(length).index_add_(0, groups, ones)
