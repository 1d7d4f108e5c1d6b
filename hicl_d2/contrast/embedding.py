"""The embedding head that every contrast shares."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hicl_d2.contrast import host

__all__ = ["EmbeddingHead"]

# A length below this is taken as this, so that a zero row stays zero.
_SHORTEST = 1e-6
# Added to the variance by a LayerNorm: torch's default.
_EPSILON = 1e-5
# Rows that are worked on at a time on a CPU, so that what lies between two products stays in the cache.
_ROWS = 512


class EmbeddingHead(nn.Module):
    """Project feature rows onto the unit sphere: Linear, LayerNorm and GELU some times over, Linear, L2 normalisation."""

    def __init__(self, in_channels: int, hidden_dim: int = 256, dim: int = 256, layers: int = 2) -> None:
        """Make the head for rows of ``in_channels``: ``layers`` linear layers, ``hidden_dim`` between them, ``dim`` at the end.

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
        """Make a new head like this one for rows of ``in_channels``."""
        return EmbeddingHead(in_channels, *self._widths)

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the parameters."""
        return self.output.weight.dtype

    def forward(self, rows: Tensor) -> Tensor:
        """Embed rows (N, C), float: (N, dim), each of length one."""
        parameters: list[Tensor] = []
        for hidden, norm in zip(self.hidden, self.norms, strict=True):
            parameters += [*hidden.parameters(), *norm.parameters()]
        return _Embed.apply(rows, *parameters, self.output.weight, self.output.bias)

    def embed_plainly(self, rows: Tensor) -> Tensor:
        """Do what `forward` does, module by module, for comparison."""
        for hidden, norm in zip(self.hidden, self.norms, strict=True):
            rows = F.gelu(norm(hidden(rows)))
        return F.normalize(self.output(rows), dim=1, eps=_SHORTEST)


class _Hidden(NamedTuple):
    """Hold the parameters of one hidden layer, or their gradients."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor


class _Embed(torch.autograd.Function):
    """Embed rows block by block.

    Separate modules write and read every intermediate (N, hidden) through memory, forward and backward. Here what lies
    between two products stays in the cache, and of all intermediates of a layer one is kept: the others follow from it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *parameters: Tensor) -> Tensor:
        layers, weight, bias = _layers(parameters)
        embedded = rows.new_empty(len(rows), len(weight))
        saved = []
        for block in _blocks(rows):
            active = rows[block]
            for layer in layers:
                hidden = torch.addmm(layer.bias, active, layer.weight.t())
                normal, _, inverse_deviation = torch.native_layer_norm(
                    hidden, layer.bias.shape, None, None, _EPSILON
                )
                active = F.gelu(torch.addcmul(layer.shift, normal, layer.scale))
                saved += [normal, inverse_deviation]
            out = torch.addmm(bias, active, weight.t(), out=embedded[block])
            shrink = torch.linalg.vector_norm(out, dim=1, keepdim=True).clamp_(min=_SHORTEST).reciprocal_()
            out *= shrink
            saved.append(shrink)
        ctx.save_for_backward(rows, embedded, *parameters, *saved)
        ctx.parameters = len(parameters)
        return embedded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, embedded, *others = ctx.saved_tensors
        parameters, saved = others[: ctx.parameters], iter(others[ctx.parameters :])
        layers, weight, _ = _layers(parameters)
        weights = [*(layer.weight for layer in layers), weight]
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        grad_layers, grad_weight, grad_bias = _layers(sums)
        for block in _blocks(rows):
            normals = [(next(saved), next(saved)) for _ in layers]
            before = [
                torch.addcmul(layer.shift, normal, layer.scale)
                for layer, (normal, _) in zip(layers, normals, strict=True)
            ]
            unit, over = embedded[block], grad[block]
            along = (unit * over).sum(1, keepdim=True)
            step = torch.addcmul(over, unit, along, value=-1).mul_(next(saved))
            grad_weight.addmm_(step.t(), F.gelu(before[-1]) if layers else rows[block])
            grad_bias += step.sum(0)
            for k in reversed(range(len(layers))):
                step = torch.ops.aten.gelu_backward(step @ weights[k + 1], before[k])
                step = _through_norm(step, *normals[k], layers[k], grad_layers[k])
                grad_layers[k].weight.addmm_(step.t(), F.gelu(before[k - 1]) if k else rows[block])
                grad_layers[k].bias.add_(step.sum(0))
            if grad_rows is not None:
                torch.mm(step, weights[0], out=grad_rows[block])
        return grad_rows, *sums


def _through_norm(
    step: Tensor, normal: Tensor, inverse_deviation: Tensor, layer: _Hidden, grads: _Hidden
) -> Tensor:
    """Send a gradient (n, hidden) through a LayerNorm, adding to the gradients of its scale and shift."""
    # The normalised rows stand for the input of the normalisation: their mean is 0 and their deviation 1.
    mean, deviation = torch.zeros_like(inverse_deviation), torch.ones_like(inverse_deviation)
    step, by_scale, by_shift = torch.ops.aten.native_layer_norm_backward(
        step, normal, layer.scale.shape, mean, deviation, layer.scale, layer.shift, (True, True, True)
    )
    grads.scale.add_(by_scale)
    grads.shift.add_(by_shift)
    return step.mul_(inverse_deviation)


def _layers(parameters: Sequence[Tensor]) -> tuple[list[_Hidden], Tensor, Tensor]:
    """Return the hidden layers, and the last one's weight and bias."""
    *hidden, weight, bias = parameters
    return [_Hidden(*hidden[i : i + 4]) for i in range(0, len(hidden), 4)], weight, bias


def _blocks(rows: Tensor) -> list[slice]:
    """Split N rows into blocks; on other devices than a CPU everything is one block."""
    size = _ROWS if host.on_host(rows) else max(1, len(rows))
    return [slice(i, i + size) for i in range(0, len(rows), size)]
