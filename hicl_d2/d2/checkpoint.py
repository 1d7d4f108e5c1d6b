"""Checkpoints: saving, resuming, and loading the weights of others."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.checkpoint import DetectionCheckpointer
else:
    from hicl_d2.lite.checkpoint import DetectionCheckpointer

__all__ = ["DetectionCheckpointer"]
