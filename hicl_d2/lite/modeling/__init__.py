"""Models: registries, builders, backbones, the semantic segmentor and its FPN head."""

from hicl_d2.lite.modeling.backbone import fpn  # noqa: F401 - registers the FPN
from hicl_d2.lite.modeling.backbone.backbone import BACKBONE_REGISTRY, Backbone, build_backbone
from hicl_d2.lite.modeling.backbone.resnet import ResNet
from hicl_d2.lite.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from hicl_d2.lite.modeling.meta_arch.semantic_seg import SEM_SEG_HEADS_REGISTRY, SemanticSegmentor

__all__ = [
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "Backbone",
    "ResNet",
    "SemanticSegmentor",
    "build_backbone",
    "build_model",
]
