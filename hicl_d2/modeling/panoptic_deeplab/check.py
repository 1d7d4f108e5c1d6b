"""Checks of the settings of Detectron2's whole Panoptic-DeepLab: its two heads must fit each other and the backbone."""

from collections.abc import Iterable

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.modeling.settings import check_features


def check_panoptic_deeplab(cfg: CfgNode, features: Iterable[str] | None) -> None:
    """Raise InputError if the heads do not fit each other or the backbone.

    ``features`` are the names of the backbone's features; None leaves them unchecked.
    """
    semantic, instances = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.INS_EMBED_HEAD
    if semantic.NAME != "PanopticDeepLabSemSegHead":
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.NAME is {semantic.NAME!r}; PanopticDeepLab needs PanopticDeepLabSemSegHead"
        )
    if features is not None:
        check_features("MODEL.INS_EMBED_HEAD.IN_FEATURES", instances.IN_FEATURES, features)
    separable = cfg.MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV
    if separable != semantic.USE_DEPTHWISE_SEPARABLE_CONV:
        raise InputError(
            f"MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV is {separable} and that of MODEL.SEM_SEG_HEAD "
            f"{not separable}; make them equal"
        )
