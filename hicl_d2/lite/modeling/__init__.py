"""Models: registries, builders, backbones, the semantic segmentor and its FPN head."""

from hicl_d2.lite import beyond_lite
from hicl_d2.lite.modeling.backbone.backbone import BACKBONE_REGISTRY, Backbone, build_backbone
from hicl_d2.lite.modeling.backbone.fpn import FPN
from hicl_d2.lite.modeling.backbone.resnet import ResNet, ResNetBlockBase, build_resnet_backbone, make_stage
from hicl_d2.lite.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from hicl_d2.lite.modeling.meta_arch.semantic_seg import (
    SEM_SEG_HEADS_REGISTRY,
    SemanticSegmentor,
    SemSegFPNHead,
    build_sem_seg_head,
)
from hicl_d2.lite.modeling.postprocessing import sem_seg_postprocess

# fmt: off
__all__ = [
    "BACKBONE_REGISTRY", "META_ARCH_REGISTRY", "SEM_SEG_HEADS_REGISTRY", "Backbone", "FPN", "ResNet",
    "ResNetBlockBase", "SemSegFPNHead", "SemanticSegmentor", "build_backbone", "build_model",
    "build_resnet_backbone", "build_sem_seg_head", "make_stage", "sem_seg_postprocess",
]
# fmt: on

__getattr__ = beyond_lite(
    __name__,
    "FCOS GeneralizedRCNN GeneralizedRCNNWithTTA MViT PanopticFPN ProposalNetwork ROIHeads RetinaNet "
    "SimpleFeaturePyramid StandardROIHeads SwinTransformer ViT detector_postprocess",
)
