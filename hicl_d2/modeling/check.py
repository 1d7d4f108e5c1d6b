"""Checks of a model's config before the model is built: registered names first, then settings that must fit together.

A mistake is then one line that names the key, not an error inside a constructor.
"""

from math import log2

from hicl_d2.command.errors import InputError, listing, nearest
from hicl_d2.d2 import INSTALL_GUIDE, USES_DETECTRON2
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from hicl_d2.d2.utils import Registry
from hicl_d2.modeling.deeplab.check import DEEPLAB_HEADS, check_deeplab_head, read_class_weights
from hicl_d2.modeling.dilated_resnet.check import check_depth_of_deeplab, check_dilated_resnet
from hicl_d2.modeling.dilated_resnet.stages import dilated_resnet_strides
from hicl_d2.modeling.efficientnet_lite.check import check_efficientnet_lite, efficientnet_lite_strides
from hicl_d2.modeling.hugging_face.config import check_transformers_segmentor
from hicl_d2.modeling.mask_former.check import (
    MASK_FORMERS,
    check_mask_former,
    check_mask_former_head,
    check_task,
)
from hicl_d2.modeling.panoptic_deeplab.check import check_panoptic_deeplab
from hicl_d2.modeling.settings import base_architecture, check_features
from hicl_d2.modeling.swin.check import SWIN_STRIDES, check_swin
from hicl_d2.modeling.weights import check_images_suit_weights

NORMS = ("", "BN", "SyncBN", "nnSyncBN", "FrozenBN", "GN", "LN")
NORMS_OF_DETECTRON2 = ("naiveSyncBN", "naiveSyncBN_N")
# Of an image, in the order of INPUT.FORMAT.
CHANNELS = 3
EFFICIENTNET_LITE = "build_efficientnet_lite_backbone"
DILATED_RESNETS = ("build_dilated_resnet_backbone", "build_resnet_deeplab_backbone")


def check_model_config(cfg: CfgNode) -> None:
    """Raise InputError if the model of ``cfg`` cannot be built.

    Checked are the names of meta-architecture (and MODEL.HICL.BASE), backbone, head and norms, the settings of each
    model that has a check of its own, and, where the backbone's strides are known from the config, that the head's
    features exist and fit it. The features of other backbones are checked by the project's heads when they are built.
    """
    import hicl_d2.modeling.models  # noqa: F401 - the names that are checked

    model = cfg.MODEL
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(model[key]) != CHANNELS:
            raise InputError(
                f"MODEL.{key} is {list(model[key])}; it must hold {CHANNELS} numbers, one for each channel"
            )
    check_task(cfg)
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
        check_panoptic_deeplab(cfg, backbone_strides(cfg))
    if base_architecture(cfg) in MASK_FORMERS:
        check_mask_former(cfg)
    if base_architecture(cfg) == "TransformersSegmentor":
        check_transformers_segmentor(cfg)
    _check_who_reads_class_weights(cfg)
    check_images_suit_weights(cfg)
    strides = backbone_strides(cfg)
    if strides is None:
        return
    if model.SEM_SEG_HEAD.NAME == "MaskFormerHead":
        check_mask_former_head(cfg, strides)
    if model.SEM_SEG_HEAD.NAME in DEEPLAB_HEADS:
        check_deeplab_head(cfg, strides)
    elif model.SEM_SEG_HEAD.NAME == "SemSegFPNHead" and _reads_features(cfg):
        check_features("MODEL.SEM_SEG_HEAD.IN_FEATURES", model.SEM_SEG_HEAD.IN_FEATURES, strides)


def backbone_strides(cfg: CfgNode) -> dict[str, int] | None:
    """Return the stride of each feature that the backbone outputs, or None if they are known only once it is built.

    Raises InputError if the config names features that the backbone does not have.
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
    check_features("MODEL.RESNETS.OUT_FEATURES", settings.OUT_FEATURES, strides)
    strides = {feature: strides[feature] for feature in settings.OUT_FEATURES}
    if name != "build_resnet_fpn_backbone":
        return strides
    check_features("MODEL.FPN.IN_FEATURES", cfg.MODEL.FPN.IN_FEATURES, strides)
    levels = [int(log2(strides[feature])) for feature in cfg.MODEL.FPN.IN_FEATURES]
    return {f"p{level}": 2**level for level in [*levels, levels[-1] + 1]}


def _check_who_reads_class_weights(cfg: CfgNode) -> None:
    settings, base = cfg.MODEL.SEM_SEG_HEAD, base_architecture(cfg)
    is_read = settings.NAME in DEEPLAB_HEADS and (_reads_features(cfg) or base == "PanopticDeepLab")
    if read_class_weights(settings) and not is_read:
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS is not read by {settings.NAME} of {base}, only by {listing(DEEPLAB_HEADS)}; "
            "leave it empty"
        )


def _check_name(registry: Registry, key: str, name: str) -> None:
    if name in registry:
        return
    known = [known for known, _ in registry]
    elsewhere = "" if USES_DETECTRON2 else f"; Detectron2 has others ({INSTALL_GUIDE})"
    raise InputError(
        f"{key} {name!r} is not registered{nearest(name, known)}; known: {listing(known)}{elsewhere}"
    )


def _check_norm(key: str, norm: str | None) -> None:
    known = (*NORMS, *NORMS_OF_DETECTRON2) if USES_DETECTRON2 else NORMS
    # Detectron2 takes None too: no norm, and no bias in its place.
    if norm is not None and norm not in known:
        names = listing(filter(None, known))
        raise InputError(f"{key} is {norm!r}{nearest(norm, known)}; known: {names}, or empty for none")


def _reads_features(cfg: CfgNode) -> bool:
    """Return whether the model has a semantic head: detection models leave its default settings unread."""
    return base_architecture(cfg) in ("SemanticSegmentor", "PanopticFPN")
