"""Models: what the project registers beside Detectron2's own, in either runtime.

Importing this package registers the dilated ResNets, the DeepLab heads and the meta-architecture ``HiCL``.
Where Detectron2 has an object of the same name, Detectron2's stays.
"""

from collections.abc import Callable
from typing import Any

import hicl_d2.d2.projects  # noqa: F401 - what Detectron2's projects register comes first
from hicl_d2.d2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY
from hicl_d2.d2.utils import Registry
from hicl_d2.modeling.backbones.dilated_resnet import (
    build_dilated_resnet_backbone,
    build_resnet_deeplab_backbone,
)
from hicl_d2.modeling.check import check_model_config, check_test_sizes
from hicl_d2.modeling.heads.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from hicl_d2.modeling.heads.panoptic_deeplab import PanopticDeepLabSemSegHead


def _register_if_free(registry: Registry, made: Callable[..., Any]) -> None:
    if made.__name__ not in registry:
        registry.register(made)


for _backbone in (build_dilated_resnet_backbone, build_resnet_deeplab_backbone):
    _register_if_free(BACKBONE_REGISTRY, _backbone)
for _head in (DeepLabV3Head, DeepLabV3PlusHead, PanopticDeepLabSemSegHead):
    _register_if_free(SEM_SEG_HEADS_REGISTRY, _head)

from hicl_d2.modeling import hicl  # noqa: E402, F401 - registers HiCL

__all__ = [
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "PanopticDeepLabSemSegHead",
    "build_dilated_resnet_backbone",
    "check_model_config",
    "check_test_sizes",
]
