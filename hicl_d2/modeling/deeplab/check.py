"""Checks of a DeepLab head's settings: they must fit each other and the backbone."""

import math
from collections.abc import Mapping

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.modeling.deeplab.loss import LOSS_TYPES
from hicl_d2.modeling.settings import check_features

DECODER_HEADS = ("DeepLabV3PlusHead", "PanopticDeepLabSemSegHead")
DEEPLAB_HEADS = (*DECODER_HEADS, "DeepLabV3Head")


def check_deeplab_head(cfg: CfgNode, strides: Mapping[str, int]) -> None:
    """Raise InputError if MODEL.SEM_SEG_HEAD does not fit features of ``strides`` (name to stride)."""
    settings, section = cfg.MODEL.SEM_SEG_HEAD, "MODEL.SEM_SEG_HEAD"
    check_features(f"{section}.IN_FEATURES", settings.IN_FEATURES, strides)
    read = sorted(strides[name] for name in settings.IN_FEATURES)
    if settings.LOSS_TYPE not in LOSS_TYPES:
        raise InputError(
            f"{section}.LOSS_TYPE is {settings.LOSS_TYPE!r}; it must be {' or '.join(LOSS_TYPES)}"
        )
    _check_class_weights(settings, section)
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


def read_class_weights(settings: CfgNode) -> list[float]:
    """Return CLASS_WEIGHTS of MODEL.SEM_SEG_HEAD; a config without the project's keys has none."""
    return list(settings.get("CLASS_WEIGHTS", ()))


def _check_class_weights(settings: CfgNode, section: str) -> None:
    weights, classes = read_class_weights(settings), settings.NUM_CLASSES
    if not weights:
        return
    are_numbers = all(isinstance(each, int | float) and 0 <= each < math.inf for each in weights)
    if len(weights) != classes or not are_numbers or not any(weights):
        raise InputError(
            f"{section}.CLASS_WEIGHTS is {weights}; it must hold one number from 0 on for each of the {classes} classes, not "
            "all of them 0, or nothing"
        )


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


def training_crop(cfg: CfgNode) -> tuple[int, int] | None:
    """Return height and width in pixels of the training crops, or None if there are none of one fixed size."""
    crop = cfg.INPUT.CROP
    return (crop.SIZE[0], crop.SIZE[1]) if crop.ENABLED and crop.TYPE == "absolute" else None
