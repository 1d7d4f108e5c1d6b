"""Transforms and augmentations; import as ``from hicl_d2.d2 import transforms as T``."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.data.transforms import (
        AugInput,
        Augmentation,
        AugmentationList,
        CropTransform,
        RandomCrop,
        RandomCrop_CategoryAreaConstraint,
        RandomFlip,
        ResizeShortestEdge,
        ResizeTransform,
        Transform,
    )
else:
    from hicl_d2.lite.data.transforms import (
        AugInput,
        Augmentation,
        AugmentationList,
        CropTransform,
        RandomCrop,
        RandomCrop_CategoryAreaConstraint,
        RandomFlip,
        ResizeShortestEdge,
        ResizeTransform,
        Transform,
    )

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "CropTransform",
    "RandomCrop",
    "RandomCrop_CategoryAreaConstraint",
    "RandomFlip",
    "ResizeShortestEdge",
    "ResizeTransform",
    "Transform",
]
