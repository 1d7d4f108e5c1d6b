"""Engine: the training loop, its hooks, and launching on several processes."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.engine import HookBase, TrainerBase, hooks, launch
else:
    from hicl_d2.lite.engine import HookBase, TrainerBase, hooks, launch

__all__ = ["HookBase", "TrainerBase", "hooks", "launch"]
