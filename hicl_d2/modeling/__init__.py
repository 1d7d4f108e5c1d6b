"""Models: what the project registers beside Detectron2's own, in either runtime.

Importing this package registers the backbones, the heads and the meta-architectures ``MaskFormer`` and ``HiCL``. Where
Detectron2, or another project that is imported too, has an object of the same name, theirs stands; Mask2Former is also
registered as ``HiCLMaskFormer``.
"""

import hicl_d2.d2.projects  # noqa: F401 - what Detectron2's projects register comes first
from hicl_d2.d2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from hicl_d2.modeling.backbones.dilated_resnet import (
    build_dilated_resnet_backbone,
    build_resnet_deeplab_backbone,
)
from hicl_d2.modeling.backbones.hugging_face import build_transformers_backbone
from hicl_d2.modeling.backbones.swin import D2SwinTransformer
from hicl_d2.modeling.backbones.timm import build_timm_backbone
from hicl_d2.modeling.check import check_model_config, check_test_sizes
from hicl_d2.modeling.efficientnet_lite.backbone import build_efficientnet_lite_backbone
from hicl_d2.modeling.heads.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from hicl_d2.modeling.heads.panoptic_deeplab import PanopticDeepLabSemSegHead
from hicl_d2.modeling.mask_former.head import MaskFormerHead
from hicl_d2.modeling.mask_former.model import MaskFormer
from hicl_d2.modeling.registration import register_if_free
from hicl_d2.modeling.transformers_segmentor import TransformersSegmentor

for _backbone in (
    build_dilated_resnet_backbone,
    build_resnet_deeplab_backbone,
    build_transformers_backbone,
    build_timm_backbone,
    build_efficientnet_lite_backbone,
    D2SwinTransformer,
):
    register_if_free(BACKBONE_REGISTRY, _backbone)
for _head in (DeepLabV3Head, DeepLabV3PlusHead, PanopticDeepLabSemSegHead, MaskFormerHead):
    register_if_free(SEM_SEG_HEADS_REGISTRY, _head)
for _name in ("MaskFormer", "HiCLMaskFormer"):
    register_if_free(META_ARCH_REGISTRY, MaskFormer, _name)
register_if_free(META_ARCH_REGISTRY, TransformersSegmentor)

from hicl_d2.modeling import hicl  # noqa: E402, F401 - registers HiCL

__all__ = [
    "D2SwinTransformer",
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "MaskFormer",
    "MaskFormerHead",
    "PanopticDeepLabSemSegHead",
    "build_dilated_resnet_backbone",
    "build_efficientnet_lite_backbone",
    "build_timm_backbone",
    "build_transformers_backbone",
    "check_model_config",
    "check_test_sizes",
]
