"""Norms of a model that was not trained: without statistics of its own, its signal fades to nothing in eval mode."""

from collections.abc import Callable

import torch
from torch import nn


@torch.no_grad()
def adjust_norms(model: nn.Module, run: Callable[[], object]) -> None:
    """Give every batch norm of ``model`` the statistics of what ``run`` passes through it, and leave it in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all passes
    model.train()
    run()
    model.eval()
