"""Whether a config names a model that can be built: names first, then what must fit together.

Called before anything is built, so that a slip is one line and not a failure inside a constructor.
"""

from collections.abc import Iterable, Mapping
from math import log2

from hicl_d2.command.errors import InputError, listing, nearest
from hicl_d2.d2 import INSTALL_GUIDE, USES_DETECTRON2
from hicl_d2.d2 import transforms as T
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from hicl_d2.d2.utils import Registry
from hicl_d2.modeling.backbones.dilated_resnet import (
    check_depth_of_deeplab,
    check_dilated_resnet,
    dilated_resnet_strides,
)
from hicl_d2.modeling.efficientnet_lite.backbone import check_efficientnet_lite, efficientnet_lite_strides
from hicl_d2.modeling.losses import LOSS_TYPES
from hicl_d2.modeling.transformers_segmentor import check_transformers_segmentor
from hicl_d2.modeling.weights import check_images_suit_weights

NORMS = ("", "BN", "SyncBN", "nnSyncBN", "FrozenBN", "GN", "LN")
NORMS_OF_DETECTRON2 = ("naiveSyncBN", "naiveSyncBN_N")
DILATED_RESNETS = ("build_dilated_resnet_backbone", "build_resnet_deeplab_backbone")
EFFICIENTNET_LITE = "build_efficientnet_lite_backbone"
DECODER_HEADS = ("DeepLabV3PlusHead", "PanopticDeepLabSemSegHead")
SWIN_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
MASK_FORMERS = ("MaskFormer", "HiCLMaskFormer")
# Names in MODEL that the original Mask2Former knows more of.
ONLY_OFFERED = {
    "SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MASK_FORMER.TEST.INSTANCE_ON": False,
    "MASK_FORMER.TEST.PANOPTIC_ON": False,
}
DEEPLAB_HEADS = (*DECODER_HEADS, "DeepLabV3Head")


def check_model_config(cfg: CfgNode) -> None:
    """Raise InputError if the model of ``cfg`` cannot be built.

    Checked are the names of meta-architecture (and MODEL.HICL.BASE), backbone, head and norms, the
    settings of dilated ResNets, and for ResNet and FPN backbones that the head's features exist and suit it.
    Other backbones say what they give out once they are built: the project's heads check it then.
    """
    model = cfg.MODEL
    _check_name(META_ARCH_REGISTRY, "MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE)
    if model.META_ARCHITECTURE == "HiCL":
        _check_name(META_ARCH_REGISTRY, "MODEL.HICL.BASE", model.HICL.BASE)
    _check_name(BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME", model.BACKBONE.NAME)
    _check_name(SEM_SEG_HEADS_REGISTRY, "MODEL.SEM_SEG_HEAD.NAME", model.SEM_SEG_HEAD.NAME)
    for section in ("RESNETS", "FPN", "SEM_SEG_HEAD"):
        _check_norm(f"MODEL.{section}.NORM", model[section].NORM)
    if model.BACKBONE.NAME in DILATED_RESNETS:
        check_dilated_resnet(model.RESNETS)
        if model.BACKBONE.NAME == "build_resnet_deeplab_backbone":
            check_depth_of_deeplab(model.RESNETS)
    if model.BACKBONE.NAME == "D2SwinTransformer":
        check_swin(model.SWIN)
    if model.BACKBONE.NAME == EFFICIENTNET_LITE:
        check_efficientnet_lite(cfg)
    if base_architecture(cfg) == "PanopticDeepLab":
        check_panoptic_deeplab(cfg)
    if base_architecture(cfg) in MASK_FORMERS:
        check_mask_former(cfg)
    if base_architecture(cfg) == "TransformersSegmentor":
        check_transformers_segmentor(cfg)
    check_images_suit_weights(cfg)
    strides = backbone_strides(cfg)
    if strides is None:
        return
    if model.SEM_SEG_HEAD.NAME == "MaskFormerHead":
        check_mask_former_head(cfg, strides)
    if model.SEM_SEG_HEAD.NAME in DEEPLAB_HEADS:
        check_deeplab_head(cfg, strides)
    elif model.SEM_SEG_HEAD.NAME == "SemSegFPNHead" and _reads_features(cfg):
        _check_features("MODEL.SEM_SEG_HEAD.IN_FEATURES", model.SEM_SEG_HEAD.IN_FEATURES, strides)


def backbone_strides(cfg: CfgNode) -> dict[str, int] | None:
    """Return the stride of each feature that the backbone gives out, or None if only building it would tell.

    Raises InputError if it is asked for features that it does not have.
    """
    name, settings = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS
    if name in DILATED_RESNETS:
        strides = dilated_resnet_strides(settings)
    elif name == "D2SwinTransformer":
        return {feature: SWIN_STRIDES[feature] for feature in cfg.MODEL.SWIN.OUT_FEATURES}
    elif name == EFFICIENTNET_LITE:
        return efficientnet_lite_strides(cfg.MODEL.EFFICIENTNET_LITE)
    elif name in ("build_resnet_backbone", "build_resnet_fpn_backbone"):
        coarsest = 16 if settings.RES5_DILATION > 1 else 32
        strides = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": coarsest}
    else:
        return None
    _check_features("MODEL.RESNETS.OUT_FEATURES", settings.OUT_FEATURES, strides)
    strides = {feature: strides[feature] for feature in settings.OUT_FEATURES}
    if name != "build_resnet_fpn_backbone":
        return strides
    _check_features("MODEL.FPN.IN_FEATURES", cfg.MODEL.FPN.IN_FEATURES, strides)
    levels = [int(log2(strides[feature])) for feature in cfg.MODEL.FPN.IN_FEATURES]
    return {f"p{level}": 2**level for level in [*levels, levels[-1] + 1]}


def check_deeplab_head(cfg: CfgNode, strides: Mapping[str, int]) -> None:
    """Raise InputError if the DeepLab head of MODEL.SEM_SEG_HEAD does not suit features of ``strides``."""
    settings, section = cfg.MODEL.SEM_SEG_HEAD, "MODEL.SEM_SEG_HEAD"
    _check_features(f"{section}.IN_FEATURES", settings.IN_FEATURES, strides)
    read = sorted(strides[name] for name in settings.IN_FEATURES)
    if settings.LOSS_TYPE not in LOSS_TYPES:
        raise InputError(
            f"{section}.LOSS_TYPE is {settings.LOSS_TYPE!r}; it must be {' or '.join(LOSS_TYPES)}"
        )
    if len(settings.ASPP_DILATIONS) != 3:
        raise InputError(
            f"{section}.ASPP_DILATIONS is {list(settings.ASPP_DILATIONS)}; it must hold 3 numbers"
        )
    if settings.NAME == "DeepLabV3Head":
        _check_single_feature(settings, section)
    elif len(settings.PROJECT_CHANNELS) != len(read) - 1:
        raise InputError(
            f"{section}.PROJECT_CHANNELS is {list(settings.PROJECT_CHANNELS)}; it must hold one number for each "
            f"of IN_FEATURES {list(settings.IN_FEATURES)} but the coarsest"
        )
    if read[0] != settings.COMMON_STRIDE:
        raise InputError(
            f"{section}.COMMON_STRIDE is {settings.COMMON_STRIDE}, but the finest of IN_FEATURES "
            f"{list(settings.IN_FEATURES)} has the stride {read[0]}; they must be equal"
        )
    crop = training_crop(cfg)
    if crop is not None and any(side % read[-1] for side in crop):
        near = " x ".join(str(max(round(side / read[-1]), 1) * read[-1]) for side in crop)
        raise InputError(
            f"INPUT.CROP.SIZE is {crop[0]} x {crop[1]}; {settings.NAME} pools over it, so both must be divisible by "
            f"the stride {read[-1]} of the coarsest feature ({near} is near)"
        )


def check_panoptic_deeplab(cfg: CfgNode) -> None:
    """Raise InputError if the two heads of Detectron2's Panoptic-DeepLab do not suit each other or the backbone."""
    semantic, instances = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.INS_EMBED_HEAD
    if semantic.NAME != "PanopticDeepLabSemSegHead":
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.NAME is {semantic.NAME!r}; PanopticDeepLab needs PanopticDeepLabSemSegHead"
        )
    strides = backbone_strides(cfg)
    if strides is not None:
        _check_features("MODEL.INS_EMBED_HEAD.IN_FEATURES", instances.IN_FEATURES, strides)
    separable = cfg.MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV
    if separable != semantic.USE_DEPTHWISE_SEPARABLE_CONV:
        raise InputError(
            f"MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV is {separable} and that of MODEL.SEM_SEG_HEAD "
            f"{not separable}; make them equal"
        )


def check_mask_former(cfg: CfgNode) -> None:
    """Raise InputError for settings of Mask2Former that its original offers and this project does not."""
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
    """Raise InputError if Mask2Former's head does not suit features of ``strides``, or its widths not each other."""
    head, settings = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    _check_features("MODEL.SEM_SEG_HEAD.IN_FEATURES", head.IN_FEATURES, strides)
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


def check_swin(settings: CfgNode) -> None:
    """Raise InputError for MODEL.SWIN settings that no Swin has, or that are not offered."""
    _check_features("MODEL.SWIN.OUT_FEATURES", settings.OUT_FEATURES, SWIN_STRIDES)
    if len(settings.DEPTHS) != len(SWIN_STRIDES) or len(settings.NUM_HEADS) != len(SWIN_STRIDES):
        raise InputError(
            f"MODEL.SWIN.DEPTHS is {list(settings.DEPTHS)} and NUM_HEADS {list(settings.NUM_HEADS)}; both must hold "
            "one number for each of four stages"
        )
    for stage, heads in enumerate(settings.NUM_HEADS):
        if (settings.EMBED_DIM << stage) % heads:
            raise InputError(
                f"MODEL.SWIN.NUM_HEADS is {list(settings.NUM_HEADS)}; {heads} does not divide the "
                f"{settings.EMBED_DIM << stage} channels of stage {stage + 1} (EMBED_DIM {settings.EMBED_DIM})"
            )
    for key, offered in (("PATCH_SIZE", 4), ("APE", False), ("PATCH_NORM", True)):
        if settings[key] != offered:
            raise InputError(f"MODEL.SWIN.{key} is {settings[key]}; what is offered here is {offered}")


def base_architecture(cfg: CfgNode) -> str:
    """Return the name of the model itself, without the branch that may be attached to it."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.HICL.BASE if name == "HiCL" else name


def check_test_sizes(cfg: CfgNode, sizes: Iterable[tuple[int, int]]) -> None:
    """Raise InputError if DeepLab's image pooling does not fit test images of these (height, width), resized, or TEST.WINDOW.

    Found here it costs nothing; found by the model, it ends a training at its first evaluation.
    """
    settings, strides, crop = cfg.MODEL.SEM_SEG_HEAD, backbone_strides(cfg), None
    if settings.NAME in DEEPLAB_HEADS and strides is not None:
        crop = training_crop(cfg)
    if crop is None or strides is None:
        return
    stride = max(strides[name] for name in settings.IN_FEATURES)
    window = (crop[0] // stride, crop[1] // stride)
    if len(cfg.TEST.WINDOW):
        if not _divides(window, (-(-cfg.TEST.WINDOW[0] // stride), -(-cfg.TEST.WINDOW[1] // stride))):
            raise InputError(
                f"TEST.WINDOW is {tuple(cfg.TEST.WINDOW)}; {settings.NAME} pools over {crop[0]} x {crop[1]} "
                "(INPUT.CROP.SIZE), which must divide it: take that"
            )
        return
    for size in sorted(set(sizes)):
        resized, grid = _test_grid(cfg, size, cfg.INPUT.MIN_SIZE_TEST, stride)
        if _divides(window, grid):
            continue
        near = [cfg.INPUT.MIN_SIZE_TEST + sign * step for step in range(1, 257) for sign in (-1, 1)]
        fits = (
            side for side in near if side > 0 and _divides(window, _test_grid(cfg, size, side, stride)[1])
        )
        hint = next((f" (INPUT.MIN_SIZE_TEST {side} would fit)" for side in fits), "")
        raise InputError(
            f"test images of {size[0]} x {size[1]} are resized to {resized[0]} x {resized[1]}, {grid[0]} x {grid[1]} at "
            f"the stride {stride}, where {settings.NAME} pools over {window[0]} x {window[1]} (INPUT.CROP.SIZE), which "
            f"must divide it{hint}"
        )


def _test_grid(
    cfg: CfgNode, size: tuple[int, int], short_side: int, stride: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what a test image of ``size`` is resized to, and its feature map at ``stride``."""
    if short_side > 0:
        size = T.ResizeShortestEdge.get_output_shape(*size, short_side, cfg.INPUT.MAX_SIZE_TEST)
    return size, (-(-size[0] // stride), -(-size[1] // stride))


def _divides(window: tuple[int, int], grid: tuple[int, int]) -> bool:
    return grid[0] % window[0] == 0 and grid[1] % window[1] == 0


def training_crop(cfg: CfgNode) -> tuple[int, int] | None:
    """Return height and width of the crops that DeepLab's image pooling is made for, or None without crops.

    Raises InputError if crops have no fixed size.
    """
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return None
    if crop.TYPE != "absolute":
        raise InputError(
            f"INPUT.CROP.TYPE is {crop.TYPE!r}; {cfg.MODEL.SEM_SEG_HEAD.NAME} needs crops of one size: set it to "
            "absolute, or INPUT.CROP.ENABLED to False"
        )
    if len(crop.SIZE) != 2 or not all(isinstance(side, int) and side > 0 for side in crop.SIZE):
        raise InputError(f"INPUT.CROP.SIZE is {tuple(crop.SIZE)}; it must be height and width in pixels")
    return crop.SIZE[0], crop.SIZE[1]


def blank_size(cfg: CfgNode) -> tuple[int, int]:
    """Return height and width of an image that the model of ``cfg`` can be tried on."""
    crop = cfg.INPUT.CROP
    fixed = crop.ENABLED and crop.TYPE == "absolute"
    return (crop.SIZE[0], crop.SIZE[1]) if fixed else (128, 128)


def _check_name(registry: Registry, key: str, name: str) -> None:
    if name in registry:
        return
    known = [known for known, _ in registry]
    elsewhere = "" if USES_DETECTRON2 else f"; Detectron2 has others ({INSTALL_GUIDE})"
    raise InputError(
        f"{key} {name!r} is not registered{nearest(name, known)}; known: {listing(known)}{elsewhere}"
    )


def _check_norm(key: str, norm: str) -> None:
    known = (*NORMS, *NORMS_OF_DETECTRON2) if USES_DETECTRON2 else NORMS
    if norm not in known:
        names = listing(filter(None, known))
        raise InputError(f"{key} is {norm!r}{nearest(norm, known)}; known: {names}, or empty for none")


def _check_features(key: str, wanted: list[str], strides: Mapping[str, int]) -> None:
    missing = [name for name in wanted if name not in strides]
    if missing or not wanted:
        asked = f"names {listing(missing)}" if missing else "is empty"
        raise InputError(f"{key} {asked}; what it can name here: {', '.join(strides)}")


def _check_single_feature(settings: CfgNode, section: str) -> None:
    if len(settings.IN_FEATURES) != 1:
        raise InputError(
            f"{section}.IN_FEATURES is {list(settings.IN_FEATURES)}; DeepLabV3Head reads one feature"
        )
    if settings.CONVS_DIM != settings.ASPP_CHANNELS:
        raise InputError(
            f"{section}.CONVS_DIM is {settings.CONVS_DIM} and ASPP_CHANNELS {settings.ASPP_CHANNELS}; DeepLabV3Head "
            "has no layer between them: they must be equal"
        )


def _reads_features(cfg: CfgNode) -> bool:
    """Return whether the model has a semantic head: detection models leave its default settings unread."""
    return base_architecture(cfg) in ("SemanticSegmentor", "PanopticFPN")
