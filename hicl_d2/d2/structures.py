"""Structures: images of several sizes in one batch."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.structures import ImageList
else:
    from hicl_d2.lite.structures import ImageList

__all__ = ["ImageList"]
