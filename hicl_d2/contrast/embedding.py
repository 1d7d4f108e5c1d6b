"""The embedding head that every contrast shares."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SHORTEST", "EmbeddingHead"]

# Least length that a row is divided by, so that a zero row stays zero.
SHORTEST = 1e-6


class EmbeddingHead(nn.Module):
    """Embed feature rows on the unit sphere: blocks of Linear, LayerNorm and GELU, then Linear and L2 normalisation."""

    def __init__(self, in_channels: int, hidden_dim: int = 256, dim: int = 256, layers: int = 2) -> None:
        """Make the head.

        Args:
            in_channels: C of the feature rows.
            hidden_dim: width between two linear layers.
            dim: D, width of the embedding.
            layers: number of linear layers; 1 is a projection.

        Raises ValueError for less than one layer.
        """
        super().__init__()
        if layers < 1:
            raise ValueError(f"an embedding has at least 1 layer, not {layers}")
        widths = [in_channels] + [hidden_dim] * (layers - 1)
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in self.hidden)
        self.output = nn.Linear(widths[-1], dim)
        self.in_channels = in_channels
        self._widths = hidden_dim, dim, layers

    def for_channels(self, in_channels: int) -> "EmbeddingHead":
        """Make a new head of the same widths for rows of ``in_channels``."""
        return EmbeddingHead(in_channels, *self._widths)

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the parameters."""
        return self.output.weight.dtype

    def forward(self, rows: Tensor) -> Tensor:
        """Embed rows (N, C), float: (N, dim), each of length one. Its fused twin is `hicl_d2.contrast.fused.embed`."""
        for hidden, norm in zip(self.hidden, self.norms, strict=True):
            rows = F.gelu(norm(hidden(rows)))
        return F.normalize(self.output(rows), dim=1, eps=SHORTEST)
