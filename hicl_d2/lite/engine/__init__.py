"""Training: the loop, its hooks, and launching on several processes."""

from hicl_d2.lite.engine import hooks
from hicl_d2.lite.engine.launch import launch
from hicl_d2.lite.engine.train_loop import HookBase, TrainerBase

__all__ = ["HookBase", "TrainerBase", "hooks", "launch"]
