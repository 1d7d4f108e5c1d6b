"""Gradients that are constants: they are refused where a graph of them is asked for, which would lack a part without a word."""

import functools
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["TEXTBOOK", "differentiable_once"]

Backward = Callable[..., Any]

# What to use instead of the fused form of the method.
TEXTBOOK = 'use implementation="textbook" (MODEL.HICL.IMPLEMENTATION)'


def differentiable_once(instead: str) -> Callable[[Backward], Backward]:
    """Decorate the ``backward`` of an autograd function whose gradients are made without a graph.

    Under ``create_graph=True`` it raises RuntimeError, which says what to use ``instead``.
    `torch.autograd.function.once_differentiable` raises only where the incoming gradient has a graph itself, which that of a
    loss has not: the second derivative would be silently wrong.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def once(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled():  # in a backward pass only with create_graph
                raise RuntimeError(
                    f"create_graph=True: this form of the loss has no second derivative; {instead}"
                )
            return backward(ctx, *gradients)

        return once

    return decorate
