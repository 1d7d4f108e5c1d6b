"""DeepLab's poly schedule, under the import path of Detectron2's project; its config keys are in ``deeplab_config``.

Its heads and dilated backbone are the project's own for both runtimes: :mod:`hicl_d2.modeling`.
"""

import math

import torch
from torch.optim.lr_scheduler import LRScheduler

from hicl_d2.lite.config import CfgNode
from hicl_d2.lite.projects.deeplab_config import add_deeplab_config
from hicl_d2.lite.solver import build_lr_scheduler as build_other_scheduler

__all__ = ["WarmupPolyLR", "add_deeplab_config", "build_lr_scheduler"]


class WarmupPolyLR(LRScheduler):
    """Decay the learning rate by ``(1 - iteration / max_iters) ** power``; a warm-up multiplies it.

    Source: Chen et al., "DeepLab", https://arxiv.org/abs/1606.00915, section 4.1.2. An "epoch" of torch's
    scheduler is an iteration.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
        power: float = 0.9,
        constant_ending: float = 0.0,
    ) -> None:
        """``constant_ending``: share of the learning rate below which the decay stops; 0 never stops it."""
        self.max_iters = max_iters
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        self.power = power
        self.constant_ending = constant_ending
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of each parameter group at the current iteration."""
        warmup = self._warmup()
        decay = math.pow(1.0 - self.last_epoch / self.max_iters, self.power)
        if warmup == 1.0 and decay < self.constant_ending:
            decay = self.constant_ending
        return [base * warmup * decay for base in self.base_lrs]

    def _warmup(self) -> float:
        if self.last_epoch >= self.warmup_iters:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        if self.warmup_method != "linear":
            raise ValueError(f"Unknown warmup method: {self.warmup_method}")
        share = self.last_epoch / self.warmup_iters
        return self.warmup_factor * (1 - share) + share


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the schedule that SOLVER.LR_SCHEDULER_NAME names, WarmupPolyLR included."""
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_other_scheduler(cfg, optimizer)
    return WarmupPolyLR(
        optimizer,
        cfg.SOLVER.MAX_ITER,
        warmup_factor=cfg.SOLVER.WARMUP_FACTOR,
        warmup_iters=cfg.SOLVER.WARMUP_ITERS,
        warmup_method=cfg.SOLVER.WARMUP_METHOD,
        power=cfg.SOLVER.POLY_LR_POWER,
        constant_ending=cfg.SOLVER.POLY_LR_CONSTANT_ENDING,
    )
