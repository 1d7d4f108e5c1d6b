"""ResNets whose last stages are dilated instead of strided (Chen et al., "Rethinking Atrous Convolution").

Config keys, parameter names and initialisation are those of Detectron2's DeepLab project; depths 18 and 34
are ours.
"""

from collections.abc import Sequence
from typing import Any

from fvcore.nn import weight_init
from torch import Tensor
from torch.nn import functional as F

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from hicl_d2.d2.modeling import BasicBlock, BasicStem, BottleneckBlock, ResNet

# Blocks in res2, res3, res4, res5.
BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STAGES = ("res2", "res3", "res4", "res5")


class DeepLabStem(CNNBlockBase):
    """DeepLab's layers before the first block: three 3x3 convolutions and max pooling, stride 4 in all."""

    def __init__(self, in_channels: int = 3, out_channels: int = 128, norm: Any = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        half = out_channels // 2
        for number, (inputs, outputs, stride) in enumerate(
            [(in_channels, half, 2), (half, half, 1), (half, out_channels, 1)], start=1
        ):
            made_norm = get_norm(norm, outputs)
            convolution = Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False, norm=made_norm)
            self.add_module(f"conv{number}", convolution)
        for convolution in (self.conv1, self.conv2, self.conv3):
            weight_init.c2_msra_fill(convolution)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H / 4, W / 4)."""
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.relu_(convolution(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class DilatedBasicBlock(BasicBlock):
    """The block of ResNet-18 and ResNet-34 with both 3x3 convolutions dilated; its parameters are the same."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Any = "BN", dilation: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        for convolution in (self.conv1, self.conv2):
            convolution.padding = convolution.dilation = (dilation, dilation)


def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the dilated ResNet of MODEL.RESNETS, of depth 18, 34, 50, 101 or 152.

    With MODEL.RESNETS.STEM_TYPE "deeplab", depths 50 and 101 are DeepLab's R-52 and R-103. Raises InputError for
    settings that do not go together.
    """
    settings = cfg.MODEL.RESNETS
    check_dilated_resnet(settings)
    stem_class = DeepLabStem if settings.STEM_TYPE == "deeplab" else BasicStem
    stem = stem_class(input_shape.channels, settings.STEM_OUT_CHANNELS, settings.NORM)
    in_channels, out_channels = settings.STEM_OUT_CHANNELS, settings.RES2_OUT_CHANNELS
    stages = []
    # Stages after the last one that is given out are not made: they would have no gradients.
    last = max([STAGES.index(name) for name in settings.OUT_FEATURES if name in STAGES], default=-1)
    for index, (stride, dilations) in enumerate(_strides_and_dilations(settings)[: last + 1]):
        arguments = {"in_channels": in_channels, "out_channels": out_channels, "norm": settings.NORM}
        arguments["dilation_per_block"] = dilations
        arguments["stride_per_block"] = [stride] + [1] * (len(dilations) - 1)
        if settings.DEPTH >= 50:
            arguments["bottleneck_channels"] = (settings.NUM_GROUPS * settings.WIDTH_PER_GROUP) << index
            arguments["num_groups"] = settings.NUM_GROUPS
            arguments["stride_in_1x1"] = settings.STRIDE_IN_1X1
        block_class = BottleneckBlock if settings.DEPTH >= 50 else DilatedBasicBlock
        stages.append(ResNet.make_stage(block_class, len(dilations), **arguments))
        in_channels, out_channels = out_channels, 2 * out_channels
    return ResNet(stem, stages, out_features=settings.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def build_resnet_deeplab_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the same of depth 50, 101 or 152, under Detectron2's name where Detectron2 is not in use."""
    check_depth_of_deeplab(cfg.MODEL.RESNETS)
    return build_dilated_resnet_backbone(cfg, input_shape)


def dilated_resnet_strides(settings: CfgNode) -> dict[str, int]:
    """Return the stride of each feature that a dilated ResNet of these MODEL.RESNETS settings can give out."""
    strides = {"stem": 4}
    for name, (stride, _) in zip(STAGES, _strides_and_dilations(settings), strict=True):
        strides[name] = stride * list(strides.values())[-1]
    return strides


def _strides_and_dilations(settings: CfgNode) -> list[tuple[int, Sequence[int]]]:
    """Return the stride of each stage's first block and the dilation of each of its blocks."""
    plain = (1, 1, settings.RES4_DILATION)
    stages: list[tuple[int, Sequence[int]]] = []
    for index, (dilation, num_blocks) in enumerate(
        zip(plain, BLOCKS_PER_STAGE[settings.DEPTH], strict=False)
    ):
        stages.append((1 if index == 0 or dilation > 1 else 2, [dilation] * num_blocks))
    multi_grid = _multi_grid(settings)
    stages.append(
        (1 if settings.RES5_DILATION > 1 else 2, [settings.RES5_DILATION * step for step in multi_grid])
    )
    return stages


def _multi_grid(settings: CfgNode) -> list[int]:
    """Return the factors of the dilations in res5; ResNet-18, with two blocks there, takes the first two."""
    return list(settings.RES5_MULTI_GRID)[: 2 if settings.DEPTH == 18 else None]


def check_depth_of_deeplab(settings: CfgNode) -> None:
    """Raise InputError for a depth that Detectron2's builder of dilated ResNets does not know."""
    if settings.DEPTH in (18, 34):
        raise InputError(
            f"MODEL.RESNETS.DEPTH is {settings.DEPTH}; build_resnet_deeplab_backbone makes 50, 101 and 152 alone: set "
            "MODEL.BACKBONE.NAME build_dilated_resnet_backbone"
        )


def check_dilated_resnet(settings: CfgNode) -> None:
    """Raise InputError for MODEL.RESNETS settings that no dilated ResNet can have."""
    depth = settings.DEPTH
    _check_choice(settings, "DEPTH", tuple(BLOCKS_PER_STAGE))
    _check_choice(settings, "STEM_TYPE", ("basic", "deeplab"))
    _check_choice(settings, "RES4_DILATION", (1, 2))
    # A dilated res4 leaves the strides at 8: res5 then has twice its dilation.
    _check_choice(settings, "RES5_DILATION", (4,) if settings.RES4_DILATION == 2 else (1, 2, 4))
    blocks = BLOCKS_PER_STAGE[depth][-1]
    multi_grid = _multi_grid(settings)
    if len(multi_grid) != blocks or not all(isinstance(step, int) and step > 0 for step in multi_grid):
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


def _check_choice(settings: CfgNode, key: str, choices: tuple[Any, ...]) -> None:
    if settings[key] not in choices:
        wanted = " or ".join(map(str, choices))
        with_other = f" with RES4_DILATION {settings.RES4_DILATION}" if key == "RES5_DILATION" else ""
        raise InputError(f"MODEL.RESNETS.{key} is {settings[key]!r}; it must be {wanted}{with_other}")
