"""ResNets whose last stages are dilated instead of strided (Chen et al., "Rethinking Atrous Convolution").

Config keys, parameter names and initialisation are those of Detectron2's DeepLab project; depths 18 and 34
are ours.
"""

from typing import Any

from fvcore.nn import weight_init
from torch import Tensor
from torch.nn import functional as F

from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from hicl_d2.d2.modeling import BasicBlock, BasicStem, BottleneckBlock, ResNet
from hicl_d2.modeling.dilated_resnet.check import check_depth_of_deeplab, check_dilated_resnet
from hicl_d2.modeling.dilated_resnet.stages import STAGES, strides_and_dilations


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
    """The block of ResNet-18 and ResNet-34 with both 3x3 convolutions dilated; parameters are unchanged."""

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
    # Stages after the last one that is output are not built: their parameters would get no gradient.
    last = max([STAGES.index(name) for name in settings.OUT_FEATURES if name in STAGES], default=-1)
    for index, (stride, dilations) in enumerate(strides_and_dilations(settings)[: last + 1]):
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
    """Build a dilated ResNet of depth 50, 101 or 152; the name that Detectron2 registers, used where it is not installed."""
    check_depth_of_deeplab(cfg.MODEL.RESNETS)
    return build_dilated_resnet_backbone(cfg, input_shape)
