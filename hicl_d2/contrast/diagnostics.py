"""Figures about a step that cost next to nothing."""

import torch
from torch import Tensor

from hicl_d2.contrast.pairing import Columns

__all__ = ["mean_similarities"]


@torch.no_grad()
def mean_similarities(
    anchors: Tensor,
    anchor_class: Tensor,
    components: Tensor,
    columns: Columns,
    own: Tensor,
    num_classes: int,
    num_levels: int,
) -> tuple[Tensor, Tensor]:
    """Return the mean similarity of positive and of negative pairs per level: (L,) each, 0 without such pairs.

    Sums of embeddings per class and level stand for the pairs, so that no A x M matrix is needed.

    Args:
        anchors: (A, D) unit rows.
        anchor_class: (A,) int64; K where there is no anchor.
        components: (M, D) unit rows.
        columns: classes and levels of the components.
        own: (A,) int64, each anchor's own window, M or more where it has none; such a pair is neither.
        num_classes: K.
        num_levels: L.
    """
    K, L, D = num_classes, num_levels, anchors.shape[1]
    anchor_sums = anchors.new_zeros(K + 1, D).index_add_(0, anchor_class, anchors)[:K]
    place = columns.classes * L + columns.levels
    component_sums = anchors.new_zeros((K + 1) * L, D).index_add_(0, place, components).view(K + 1, L, D)[:K]
    anchor_counts = _count(anchor_class, K + 1, anchors.dtype)[:K]
    component_counts = _count(place, (K + 1) * L, anchors.dtype).view(K + 1, L)[:K]
    alike = torch.bmm(component_sums, anchor_sums[:, :, None]).sum(0)[:, 0]
    everything = component_sums.sum(0) @ anchor_sums.sum(0)
    alike_count = anchor_counts @ component_counts
    every_count = anchor_counts.sum() * component_counts.sum(0)
    negative = (everything - alike) / (every_count - alike_count).clamp(min=1.0)
    has_own = (own < len(components)).to(anchors.dtype)
    if len(components):
        own_rows = components[own.clamp(max=len(components) - 1)]
        alike[0] -= ((anchors * own_rows).sum(1) * has_own).sum()
        alike_count[0] -= has_own.sum()
    return alike / alike_count.clamp(min=1.0), negative


def _count(groups: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    ones = torch.ones(len(groups), dtype=dtype, device=groups.device)
    return ones.new_zeros(length).index_add_(0, groups, ones)
