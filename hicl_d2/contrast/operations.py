"""The one place where the plain and the fused form of the method are chosen between."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hicl_d2.contrast import candidates, components, fused, loss, pruning
from hicl_d2.contrast.components import Components
from hicl_d2.contrast.embedding import EmbeddingHead
from hicl_d2.contrast.grid import LabelGrid
from hicl_d2.contrast.levels import Level
from hicl_d2.contrast.pairing import Pairing

__all__ = ["OPERATIONS", "Operations"]


class Operations(NamedTuple):
    """Hold the functions that exist in two forms, plain and fused, with the same names and signatures."""

    count_labels: Callable[[LabelGrid, Sequence[Level]], list[candidates.WindowLabels]]
    ClassScores: Callable[[Tensor], pruning.Scores]
    gather_windows: Callable[[Tensor, Tensor, Tensor, Sequence[Level], torch.dtype], Tensor]
    embed: Callable[[EmbeddingHead, Tensor], Tensor]
    contrast: Callable[[Tensor, Components, Pairing, float, float], loss.Contrasted]


OPERATIONS = {
    "fused": Operations(
        fused.count_labels, fused.ClassScores, fused.gather_windows, fused.embed, fused.contrast
    ),
    "textbook": Operations(
        candidates.count_labels,
        pruning.ClassScores,
        components.gather_windows,
        EmbeddingHead.__call__,
        loss.contrast,
    ),
}
