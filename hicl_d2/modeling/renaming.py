"""Register the parameters of a module of transformers under other names: those of the project that published the weights.

The state dict then has the original project's names, so checkpoints load in both directions without conversion. The
forward pass is still that of transformers, which finds each submodule as a plain attribute under its own name.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Pairs of (name to register, name in the module of transformers).
Names = Iterable[tuple[str, str]]


class Renamed(nn.Module):
    """A module that runs a module of transformers and registers its submodules and parameters under other names."""

    _wrapped: Any

    def rename(self, wrapped: nn.Module, names: Names) -> None:
        """Run ``wrapped``, and register each submodule that ``names`` lists in this module instead of in ``wrapped``.

        Pairs are applied in order: a later pair may register a submodule inside an earlier one. The name ``""`` is
        ``wrapped`` itself. Raises AttributeError for a submodule that this version of transformers does not have.
        """
        # A plain attribute: registered too, its parameters would be in the state dict twice.
        object.__setattr__(self, "_wrapped", wrapped)
        for ours, theirs in names:
            _register(self, ours, _take(wrapped, theirs))

    def train(self, mode: bool = True) -> "Renamed":
        """Set training or evaluation mode, of the wrapped module too: its dropout depends on it."""
        super().train(mode)
        self._wrapped.train(mode)
        return self


def _take(wrapped: nn.Module, name: str) -> nn.Module:
    """Return the submodule ``name`` and make it a plain attribute of its parent, so that it is registered only once."""
    part = wrapped.get_submodule(name)
    if name:
        parent_name, _, last = name.rpartition(".")
        parent = wrapped.get_submodule(parent_name)
        # Lists and dictionaries find their members among the registered modules only.
        if not isinstance(parent, nn.ModuleList | nn.ModuleDict):
            del parent._modules[last]
            object.__setattr__(parent, last, part)
    return part


def _register(root: nn.Module, name: str, part: nn.Module) -> None:
    *path, last = name.split(".")
    for step in path:
        if step not in root._modules:
            root.add_module(step, nn.Module())
        root = root.get_submodule(step)
    root.add_module(last, part)


class LinearPart(nn.Module):
    """Compute one of several equal parts of a linear layer's outputs, such as the query of a joint query-key-value layer."""

    def __init__(self, whole: nn.Linear, index: int, parts: int = 3) -> None:
        super().__init__()
        object.__setattr__(self, "whole", whole)
        self.whole: nn.Linear
        self.index, self.parts = index, parts

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., outputs / parts) for x (..., inputs)."""
        bias = self.whole.bias
        part = None if bias is None else bias.chunk(self.parts)[self.index]
        return F.linear(x, self.whole.weight.chunk(self.parts)[self.index], part)


class SelfAttention(nn.MultiheadAttention):
    """Torch's multi-head attention (one weight for query, key and value) with the signature that transformers calls."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, position_embeddings: Tensor | None = None, **_: object
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output (Q, B, C) and the attention weights (B, Q, Q) for queries (Q, B, C).

        Position embeddings are added to queries and keys, not to values.
        """
        placed = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        attended, weights = super().forward(placed, placed, hidden_states)
        return torch.as_tensor(attended), weights
