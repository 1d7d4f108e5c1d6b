"""Checks of Swin's settings: supported here, and fitting each other."""

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.modeling.settings import check_features

SWIN_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def check_swin(settings: CfgNode) -> None:
    """Raise InputError for MODEL.SWIN settings that contradict each other or are not supported."""
    check_features("MODEL.SWIN.OUT_FEATURES", settings.OUT_FEATURES, SWIN_STRIDES)
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
