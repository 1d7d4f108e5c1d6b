"""Whether MODEL.RESNETS holds settings that a dilated ResNet can have."""

from typing import Any

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.modeling.dilated_resnet.stages import BLOCKS_PER_STAGE, multi_grid


def check_dilated_resnet(settings: CfgNode) -> None:
    """Raise InputError for MODEL.RESNETS settings that no dilated ResNet can have."""
    depth = settings.DEPTH
    _check_choice(settings, "DEPTH", tuple(BLOCKS_PER_STAGE))
    _check_choice(settings, "STEM_TYPE", ("basic", "deeplab"))
    _check_choice(settings, "RES4_DILATION", (1, 2))
    # With a dilated res4 the stride stays at 8, and res5 needs twice the dilation of res4.
    _check_choice(settings, "RES5_DILATION", (4,) if settings.RES4_DILATION == 2 else (1, 2, 4))
    blocks = BLOCKS_PER_STAGE[depth][-1]
    steps = multi_grid(settings)
    if len(steps) != blocks or not all(isinstance(step, int) and step > 0 for step in steps):
        raise InputError(
            f"MODEL.RESNETS.RES5_MULTI_GRID is {list(settings.RES5_MULTI_GRID)}; for DEPTH {depth} it must hold "
            f"{blocks} whole numbers above 0, one for each block of res5"
        )
    if depth < 50:
        _check_choice(settings, "NUM_GROUPS", (1,))
        if settings.RES2_OUT_CHANNELS > 64:
            raise InputError(
                f"MODEL.RESNETS.RES2_OUT_CHANNELS is {settings.RES2_OUT_CHANNELS}; for DEPTH {depth} it must be 64, "
                "or less for a narrow network"
            )
    if any(settings.DEFORM_ON_PER_STAGE):
        raise InputError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE: this backbone has no deformable convolutions; install Detectron2 and "
            "set MODEL.BACKBONE.NAME build_resnet_deeplab_backbone"
        )


def check_depth_of_deeplab(settings: CfgNode) -> None:
    """Raise InputError for a depth that build_resnet_deeplab_backbone does not support in Detectron2."""
    if settings.DEPTH in (18, 34):
        raise InputError(
            f"MODEL.RESNETS.DEPTH is {settings.DEPTH}; build_resnet_deeplab_backbone makes 50, 101 and 152 alone: set "
            "MODEL.BACKBONE.NAME build_dilated_resnet_backbone"
        )


def _check_choice(settings: CfgNode, key: str, choices: tuple[Any, ...]) -> None:
    if settings[key] not in choices:
        wanted = " or ".join(map(str, choices))
        with_other = f" with RES4_DILATION {settings.RES4_DILATION}" if key == "RES5_DILATION" else ""
        raise InputError(f"MODEL.RESNETS.{key} is {settings[key]!r}; it must be {wanted}{with_other}")
