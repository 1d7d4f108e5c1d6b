"""The embedding head that every contrast shares."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["EmbeddingHead"]

# A length below this is taken as this, so that a zero row stays zero.
_SHORTEST = 1e-6
# Rows that are worked on at a time on a CPU, so that what lies between two products stays in the cache.
_ROWS = 512


class EmbeddingHead(nn.Module):
    """Project feature rows onto the unit sphere: Linear, LayerNorm, GELU, Linear, L2 normalisation."""

    def __init__(self, in_channels: int, hidden_dim: int = 256, dim: int = 256) -> None:
        """Make the head for rows of ``in_channels``, with ``hidden_dim`` between its two layers, ``dim`` at the end."""
        super().__init__()
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.output = nn.Linear(hidden_dim, dim)

    def forward(self, rows: Tensor) -> Tensor:
        """Embed rows (N, C), float: (N, dim), each of length one."""
        return _Embed.apply(
            rows,
            self.hidden.weight,
            self.hidden.bias,
            self.norm.weight,
            self.norm.bias,
            self.output.weight,
            self.output.bias,
            self.norm.eps,
        )

    def embed_plainly(self, rows: Tensor) -> Tensor:
        """Do what `forward` does, module by module, for comparison."""
        return F.normalize(self.output(F.gelu(self.norm(self.hidden(rows)))), dim=1, eps=_SHORTEST)


class _Embed(torch.autograd.Function):
    """Embed rows block by block.

    Separate modules write and read every intermediate (N, hidden) through memory, forward and backward. Here what lies
    between two products stays in the cache, and of all intermediates one is kept: the others follow from it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        eps: float,
    ) -> Tensor:
        embedded = rows.new_empty(len(rows), weight2.shape[0])
        saved = []
        for block in _blocks(rows):
            hidden = torch.addmm(bias1, rows[block], weight1.t())
            normal, _, inverse_deviation = torch.native_layer_norm(hidden, bias1.shape, None, None, eps)
            active = F.gelu(torch.addcmul(shift, normal, scale))
            out = torch.addmm(bias2, active, weight2.t(), out=embedded[block])
            shrink = torch.linalg.vector_norm(out, dim=1, keepdim=True).clamp_(min=_SHORTEST).reciprocal_()
            out *= shrink
            saved += [normal, inverse_deviation, shrink]
        ctx.save_for_backward(rows, weight1, scale, shift, weight2, embedded, *saved)
        return embedded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight1, scale, shift, weight2, embedded, *saved = ctx.saved_tensors
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        sums = [torch.zeros_like(p) for p in (weight1, shift, scale, shift, weight2)]
        grad_weight1, grad_bias1, grad_scale, grad_shift, grad_weight2 = sums
        grad_bias2 = grad.new_zeros(weight2.shape[0])
        for n, block in enumerate(_blocks(rows)):
            normal, inverse_deviation, shrink = saved[3 * n : 3 * n + 3]
            scaled = torch.addcmul(shift, normal, scale)
            unit, over = embedded[block], grad[block]
            along = (unit * over).sum(1, keepdim=True)
            step = torch.addcmul(over, unit, along, value=-1).mul_(shrink)
            grad_weight2.addmm_(step.t(), F.gelu(scaled))
            grad_bias2 += step.sum(0)
            step = torch.ops.aten.gelu_backward(step @ weight2, scaled)
            # The normalised rows stand for the input of the normalisation: their mean is 0 and their deviation 1.
            mean, deviation = torch.zeros_like(inverse_deviation), torch.ones_like(inverse_deviation)
            step, by_scale, by_shift = torch.ops.aten.native_layer_norm_backward(
                step, normal, scale.shape, mean, deviation, scale, shift, (True, True, True)
            )
            step *= inverse_deviation
            grad_scale += by_scale
            grad_shift += by_shift
            grad_weight1.addmm_(step.t(), rows[block])
            grad_bias1 += step.sum(0)
            if grad_rows is not None:
                torch.mm(step, weight1, out=grad_rows[block])
        return grad_rows, grad_weight1, grad_bias1, grad_scale, grad_shift, grad_weight2, grad_bias2, None


def _blocks(rows: Tensor) -> list[slice]:
    """Split N rows into blocks; on other devices than a CPU everything is one block."""
    size = _ROWS if rows.device.type == "cpu" else max(1, len(rows))
    return [slice(i, i + size) for i in range(0, len(rows), size)]
