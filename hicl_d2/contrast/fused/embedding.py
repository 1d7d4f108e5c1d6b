"""The embedding head in blocks of rows that stay in the cache."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hicl_d2.contrast.embedding import SHORTEST, EmbeddingHead
from hicl_d2.contrast.fused import host
from hicl_d2.contrast.once import TEXTBOOK, differentiable_once

__all__ = ["embed"]

# Added to the variance by a LayerNorm: torch's default.
_EPSILON = 1e-5
# Rows in a block on a CPU, so that what lies between two products stays in the cache.
_ROWS = 512


def embed(head: EmbeddingHead, rows: Tensor) -> Tensor:
    """Embed rows (N, C), float: (N, dim), each of length one. The plain twin is ``head(rows)``."""
    if any(module._forward_pre_hooks or module._forward_hooks for module in head.modules()):
        embedded: Tensor = head(rows)  # a hook may make a weight, as pruning does
        return embedded
    parameters: list[Tensor] = []
    layer: Any
    for layer in zip(head.hidden, head.norms, strict=True):
        hidden, norm = layer
        parameters += [hidden.weight, hidden.bias, norm.weight, norm.bias]
    return _Embed.apply(rows, *parameters, head.output.weight, head.output.bias)


class _Hidden(NamedTuple):
    """Hold the parameters of one hidden layer, or their gradients."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor


class _Embed(torch.autograd.Function):
    """Embed rows block by block.

    Separate modules write every intermediate (N, hidden) to memory and read it back, forward and backward. Here what lies
    between two products stays in the cache. Of each layer's intermediates only the normalised rows are kept for the
    backward pass, which recomputes the others from them.
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
            shrink = torch.linalg.vector_norm(out, dim=1, keepdim=True).clamp_(min=SHORTEST).reciprocal_()
            out *= shrink
            saved.append(shrink)
        ctx.save_for_backward(rows, embedded, *parameters, *saved)
        ctx.parameters = len(parameters)
        return embedded

    @staticmethod
    @differentiable_once(TEXTBOOK)
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
            unit, upstream = embedded[block], grad[block]
            # Through the L2 normalisation: only what is orthogonal to the row passes.
            along = (unit * upstream).sum(1, keepdim=True)
            upstream = torch.addcmul(upstream, unit, along, value=-1).mul_(next(saved))
            grad_weight.addmm_(upstream.t(), F.gelu(before[-1]) if layers else rows[block])
            grad_bias += upstream.sum(0)
            for k in reversed(range(len(layers))):
                upstream = torch.ops.aten.gelu_backward(upstream @ weights[k + 1], before[k])
                upstream = _through_norm(upstream, *normals[k], layers[k], grad_layers[k])
                grad_layers[k].weight.addmm_(upstream.t(), F.gelu(before[k - 1]) if k else rows[block])
                grad_layers[k].bias.add_(upstream.sum(0))
            if grad_rows is not None:
                torch.mm(upstream, weights[0], out=grad_rows[block])
        return grad_rows, *sums


def _through_norm(
    upstream: Tensor, normal: Tensor, inverse_deviation: Tensor, layer: _Hidden, grads: _Hidden
) -> Tensor:
    """Send a gradient (n, hidden) back through a LayerNorm, and add to the gradients of its scale and shift."""
    # The normalised rows were kept, not the layer's input: as an input they have mean 0 and deviation 1.
    mean, deviation = torch.zeros_like(inverse_deviation), torch.ones_like(inverse_deviation)
    upstream, by_scale, by_shift = torch.ops.aten.native_layer_norm_backward(
        upstream, normal, layer.scale.shape, mean, deviation, layer.scale, layer.shift, (True, True, True)
    )
    grads.scale.add_(by_scale)
    grads.shift.add_(by_shift)
    return upstream.mul_(inverse_deviation)


def _layers(parameters: Sequence[Tensor]) -> tuple[list[_Hidden], Tensor, Tensor]:
    """Return the hidden layers, and the last one's weight and bias."""
    *hidden, weight, bias = parameters
    return [_Hidden(*hidden[i : i + 4]) for i in range(0, len(hidden), 4)], weight, bias


def _blocks(rows: Tensor) -> list[slice]:
    """Split N rows into blocks; on other devices than a CPU everything is one block."""
    size = _ROWS if host.on_host(rows) else max(1, len(rows))
    return [slice(i, i + size) for i in range(0, len(rows), size)]
