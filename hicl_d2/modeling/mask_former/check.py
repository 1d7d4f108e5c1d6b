"""Checks of Mask2Former's settings: supported here, and fitting each other and the backbone."""

from collections.abc import Mapping

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.modeling.settings import base_architecture, check_features

MASK_FORMERS = ("MaskFormer", "HiCLMaskFormer")
# Keys below MODEL of which the original Mask2Former supports more values.
ONLY_OFFERED = {
    "SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MASK_FORMER.TEST.INSTANCE_ON": False,
    "MASK_FORMER.TEST.PANOPTIC_ON": False,
}


def check_mask_former(cfg: CfgNode) -> None:
    """Raise InputError for settings that the original Mask2Former supports and this project does not."""
    if cfg.MODEL.SEM_SEG_HEAD.NAME != "MaskFormerHead":
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.NAME is {cfg.MODEL.SEM_SEG_HEAD.NAME!r}; {base_architecture(cfg)} needs MaskFormerHead"
        )
    for key, offered in ONLY_OFFERED.items():
        section, _, last = key.rpartition(".")
        node = cfg.MODEL
        for part in section.split("."):
            node = node[part]
        if node[last] != offered:
            raise InputError(f"MODEL.{key} is {node[last]!r}; what is offered here is {offered!r}")
    if cfg.INPUT.DATASET_MAPPER_NAME != "mask_former_semantic":
        raise InputError(
            f"INPUT.DATASET_MAPPER_NAME is {cfg.INPUT.DATASET_MAPPER_NAME!r}; what is offered here is "
            "'mask_former_semantic'"
        )


def check_mask_former_head(cfg: CfgNode, strides: Mapping[str, int]) -> None:
    """Raise InputError if the head does not fit features of ``strides`` (name to stride), or its widths each other."""
    head, settings = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    check_features("MODEL.SEM_SEG_HEAD.IN_FEATURES", head.IN_FEATURES, strides)
    ordered = sorted(head.IN_FEATURES, key=lambda name: strides[name])
    coarse, key = ordered[-3:], "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"
    if len(ordered) < 3 or sorted(head[key]) != sorted(coarse):
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.{key} is {list(head[key])}; it must be the three coarsest of IN_FEATURES "
            f"{list(head.IN_FEATURES)}"
        )
    finest = min(strides[name] for name in coarse)
    fine = [strides[name] for name in ordered[:-3]]
    expected = [finest // 2**step for step in range(len(fine), 0, -1)]
    if fine != expected or (fine or [finest])[0] != head.COMMON_STRIDE:
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {head.COMMON_STRIDE} and IN_FEATURES have the strides "
            f"{[strides[name] for name in ordered]}; finer than the three coarsest there must be one for each halving "
            "down to COMMON_STRIDE"
        )
    for name, width, parts, why in (
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", head.CONVS_DIM, settings.NHEADS, "MODEL.MASK_FORMER.NHEADS"),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", head.CONVS_DIM, 32, "the groups of its normalisation"),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", settings.HIDDEN_DIM, settings.NHEADS, "MODEL.MASK_FORMER.NHEADS"),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", settings.HIDDEN_DIM, 4, "the sines and cosines of its positions"),
    ):
        if width % parts:
            raise InputError(f"{name} is {width}; it must be divisible by {parts} ({why})")
    if head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS != settings.NHEADS:
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS is {head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS} "
            f"and MODEL.MASK_FORMER.NHEADS {settings.NHEADS}; one number serves both: make them equal"
        )
    for name in ("NUM_OBJECT_QUERIES", "DEC_LAYERS", "TRAIN_NUM_POINTS"):
        if settings[name] < 1:
            raise InputError(f"MODEL.MASK_FORMER.{name} is {settings[name]}; it must be 1 or more")
