"""Models: registries, builders, and the residual network's blocks."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        ResNet,
        SemanticSegmentor,
        build_backbone,
        build_model,
    )
    from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
    from detectron2.modeling.postprocessing import sem_seg_postprocess
else:
    from hicl_d2.lite.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        ResNet,
        SemanticSegmentor,
        build_backbone,
        build_model,
    )
    from hicl_d2.lite.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
    from hicl_d2.lite.modeling.postprocessing import sem_seg_postprocess

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "META_ARCH_REGISTRY",
    "ResNet",
    "SEM_SEG_HEADS_REGISTRY",
    "SemanticSegmentor",
    "build_backbone",
    "build_model",
    "sem_seg_postprocess",
]
