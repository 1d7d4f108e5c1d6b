"""Solver: parameter groups, gradient clipping, and schedules (DeepLab's poly among them)."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.projects.deeplab import build_lr_scheduler
    from detectron2.solver import get_default_optimizer_params
    from detectron2.solver.build import maybe_add_gradient_clipping
else:
    from hicl_d2.lite.projects.deeplab import build_lr_scheduler
    from hicl_d2.lite.solver import get_default_optimizer_params, maybe_add_gradient_clipping

__all__ = ["build_lr_scheduler", "get_default_optimizer_params", "maybe_add_gradient_clipping"]
