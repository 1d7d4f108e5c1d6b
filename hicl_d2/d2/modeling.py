"""Models: registries, builders, the semantic segmentor and the residual network's blocks."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        FPN,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        ResNet,
        ResNetBlockBase,
        SemanticSegmentor,
        build_backbone,
        build_model,
        build_resnet_backbone,
        build_sem_seg_head,
        make_stage,
    )
    from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
    from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
    from detectron2.modeling.postprocessing import sem_seg_postprocess
else:
    from hicl_d2.lite.modeling import (
        BACKBONE_REGISTRY,
        FPN,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        ResNet,
        ResNetBlockBase,
        SemanticSegmentor,
        build_backbone,
        build_model,
        build_resnet_backbone,
        build_sem_seg_head,
        make_stage,
    )
    from hicl_d2.lite.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
    from hicl_d2.lite.modeling.meta_arch.semantic_seg import SemSegFPNHead
    from hicl_d2.lite.modeling.postprocessing import sem_seg_postprocess

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "FPN",
    "META_ARCH_REGISTRY",
    "ResNet",
    "ResNetBlockBase",
    "SEM_SEG_HEADS_REGISTRY",
    "SemSegFPNHead",
    "SemanticSegmentor",
    "build_backbone",
    "build_model",
    "build_resnet_backbone",
    "build_sem_seg_head",
    "make_stage",
    "sem_seg_postprocess",
]
