"""Modules of transformers under the parameter names of the projects that their checkpoints come from.

A checkpoint of the original project then loads into the model, and the model's into the original project, without any
conversion: the names that a state dict shows are the original's. The code that runs stays that of transformers, which
goes on finding each part by the name that it knows.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows of (name here, name in the module of transformers).
Names = Iterable[tuple[str, str]]


class Rehomed(nn.Module):
    """Registers the parts of a module of transformers under other names, each of them once."""

    _runner: Any

    def adopt(self, runner: nn.Module, names: Names) -> None:
        """Make ``runner`` what this module runs, with each part that ``names`` lists registered here instead of there.

        Rows are taken in order, so that a later row may place a part inside one placed before. The name ``""`` of a
        runner is the runner itself. A name of transformers that it no longer has raises AttributeError.
        """
        # Not registered: its parts are, below this module.
        object.__setattr__(self, "_runner", runner)
        for ours, theirs in names:
            _register(self, ours, _take(runner, theirs))

    def train(self, mode: bool = True) -> "Rehomed":
        """Set training or evaluation mode, also of what is not registered (dropout asks for it)."""
        super().train(mode)
        self._runner.train(mode)
        return self


def _take(runner: nn.Module, name: str) -> nn.Module:
    """Return the part called ``name``, which from now on ``runner`` has as a plain attribute."""
    part = runner.get_submodule(name)
    if name:
        parent_name, _, last = name.rpartition(".")
        parent = runner.get_submodule(parent_name)
        if not isinstance(parent, nn.ModuleList | nn.ModuleDict):  # these look their members up as modules
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


class Rows(nn.Module):
    """One of the equal parts of a linear layer's outputs: the query, say, of a joint query, key and value."""

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
    """Torch's attention, with one weight for query, key and value, called as transformers calls Mask2Former's."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, position_embeddings: Tensor | None = None, **_: object
    ) -> tuple[Tensor, Tensor | None]:
        """Return (Q, B, C) and the weights (B, Q, Q), for queries (Q, B, C) whose positions are not in the values."""
        placed = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        attended, weights = super().forward(placed, placed, hidden_states)
        return torch.as_tensor(attended), weights
