"""Rows gathered over the processes of a training step, in rank order."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hicl_d2.contrast.once import differentiable_once

__all__ = ["gather_rows", "is_distributed"]


def is_distributed() -> bool:
    """Tell whether there are other processes to gather from."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(rows: Tensor) -> Tensor:
    """Stack the rows (N, ...) of all processes in rank order: (world x N, ...). N must be the same on every process.

    Differentiable: the gradient at this process's rows is the sum over the processes, which all used them.
    """
    if not is_distributed():
        return rows
    return _GatherRows.apply(rows) if rows.requires_grad else _stack(rows)


def _stack(rows: Tensor) -> Tensor:
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class _GatherRows(torch.autograd.Function):
    """Gather in the forward pass, sum over processes in the backward pass."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.length = len(rows)
        return _stack(rows)

    @staticmethod
    @differentiable_once("use gather=False (MODEL.HICL.GATHER)")
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.length
        return grad[first : first + ctx.length]
