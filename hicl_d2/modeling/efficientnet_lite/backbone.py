"""EfficientNet-Lite as a backbone: inverted residual blocks without squeeze-and-excitation, with ReLU6.

Source: Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, arXiv 1905.11946.
The Lite variants (no squeeze-and-excitation, ReLU6, a stem that is not scaled) are TensorFlow's, published in 2020.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from hicl_d2.d2.modeling import Backbone
from hicl_d2.modeling.efficientnet_lite.check import FEATURES, SCALES, check_efficientnet_lite

STEM_CHANNELS = 32
# Of TensorFlow's batch norm, which the published weights were trained with.
NORM_EPSILON, NORM_MOMENTUM = 1e-3, 0.01


class Stage(NamedTuple):
    """Describe the blocks between two changes of width or stride, before scaling.

    Attributes:
        repeats: number of blocks.
        kernel: side of the depthwise convolution.
        stride: of the first block.
        expansion: factor from the width of a block's input to that of its depthwise convolution.
        channels: width of the output.
        feature: the name of the output as a feature, "" if it is not given out.
    """

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int
    feature: str


STAGES = (
    Stage(1, 3, 1, 1, 16, ""),
    Stage(2, 3, 2, 6, 24, "res2"),
    Stage(2, 5, 2, 6, 40, "res3"),
    Stage(3, 3, 2, 6, 80, ""),
    Stage(3, 5, 1, 6, 112, "res4"),
    Stage(4, 5, 2, 6, 192, ""),
    Stage(1, 3, 1, 6, 320, "res5"),
)


class SameConv2d(Conv2d):
    """A convolution padded as TensorFlow's "SAME": the output has ceil(H / stride) x ceil(W / stride) cells.

    Where the padding is odd, the bottom and the right get the larger half.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, ceil(H / stride), ceil(W / stride)) for (B, in_channels, H, W)."""
        total = [
            max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
            for size, stride, dilation, kernel in zip(
                x.shape[-2:], self.stride, self.dilation, self.kernel_size, strict=True
            )
        ]
        top, left = (amount // 2 for amount in total)
        return super().forward(F.pad(x, (left, total[1] - left, top, total[0] - top)))


class InvertedResidual(CNNBlockBase):
    """Expand by a 1 x 1 convolution, filter each channel, project; added to the input where the shapes are equal."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        dilation: int,
        expansion: int,
        drop_path: float,
        norm: str,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        inner = in_channels * expansion
        self.expand = _convolution(in_channels, inner, norm=norm) if expansion > 1 else None
        self.depthwise = _convolution(
            inner, inner, kernel=kernel, stride=stride, dilation=dilation, groups=inner, norm=norm
        )
        self.project = _convolution(inner, out_channels, norm=norm, activation=None)
        self.is_residual = stride == 1 and in_channels == out_channels
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, ceil(H / stride), ceil(W / stride)) for (B, in_channels, H, W)."""
        inner = x if self.expand is None else self.expand(x)
        out: Tensor = self.project(self.depthwise(inner))
        if not self.is_residual:
            return out
        if self.training and self.drop_path > 0.0:
            keep = 1.0 - self.drop_path
            out = out * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device) < keep) / keep
        return x + out


class EfficientNetLite(Backbone):
    """The convolutional part of EfficientNet-Lite up to the last stage that is given out.

    Features: "res2" to "res5" at the strides 4, 8, 16 and 32. With a smaller output stride, strides become dilations.
    """

    def __init__(
        self,
        variant: int = 0,
        *,
        out_features: list[str],
        output_stride: int = 32,
        norm: str = "BN",
        drop_path: float = 0.0,
        freeze_at: int = 0,
    ) -> None:
        """Make the network.

        Args:
            variant: 0, 1 or 2.
            out_features: names of the features that are given out.
            output_stride: 8, 16 or 32; the coarsest stride.
            norm: Detectron2's name of the normalisation.
            drop_path: share of images that skip the last block in training; less in the earlier ones, linearly.
            freeze_at: 1 freezes the stem, 2 to 5 also what is up to res2 to res5; 0 nothing.
        """
        super().__init__()
        self._out_features = sorted(out_features)
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}
        blocks: list[InvertedResidual] = []
        self.stem = _convolution(3, STEM_CHANNELS, kernel=3, stride=2, norm=norm)
        self._ends: dict[int, str] = {}
        for stage in _scaled_stages(variant, output_stride):
            if len(self._out_feature_channels) == len(out_features):
                break  # later blocks would have no gradients
            blocks += [InvertedResidual(**each, drop_path=drop_path, norm=norm) for each in stage.blocks]
            if stage.feature in out_features:
                self._ends[len(blocks) - 1] = stage.feature
                self._out_feature_channels[stage.feature] = blocks[-1].out_channels
                self._out_feature_strides[stage.feature] = stage.stride
        for number, block in enumerate(blocks):
            block.drop_path *= number / sum(stage.repeats for stage in _repeated(variant))
        self.blocks = nn.ModuleList(blocks)
        self._freeze(variant, freeze_at)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features (B, C, ceil(H / stride), ceil(W / stride)) of images (B, 3, H, W) by name."""
        x, features = self.stem(images), {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self._ends:
                features[self._ends[number]] = x
        return features

    @property
    def size_divisibility(self) -> int:
        """Return the stride that images are padded to a multiple of, so that every convolution is padded as in training.

        TensorFlow's "SAME" pads a map of an odd size on both sides and one of an even size on one, so the features of an odd
        map lie half a cell beside those of an even one.
        """
        return max(self._out_feature_strides.values())

    def _freeze(self, variant: int, freeze_at: int) -> None:
        if freeze_at < 1:
            return
        frozen, last = 0, FEATURES[freeze_at - 2] if freeze_at > 1 else None
        for stage in _repeated(variant) if last else ():
            frozen += stage.repeats
            if stage.feature == last:
                break
        for part in (self.stem, *self.blocks[:frozen]):
            CNNBlockBase.freeze(part)


class _Blocks(NamedTuple):
    """Hold the arguments of one stage's blocks, its feature's name and its stride from the image."""

    blocks: list[dict[str, Any]]
    feature: str
    stride: int


def _scaled_stages(variant: int, output_stride: int) -> Iterator[_Blocks]:
    """Yield the stages of a variant; a stride that would pass ``output_stride`` becomes a dilation."""
    in_channels, stride, dilation = STEM_CHANNELS, 2, 1
    for stage in _repeated(variant):
        step, first_dilation = stage.stride, dilation
        if step > 1 and stride == output_stride:
            dilation, step = dilation * step, 1
        stride *= step
        blocks = []
        for number in range(stage.repeats):
            blocks.append(
                {
                    "in_channels": in_channels,
                    "out_channels": stage.channels,
                    "kernel": stage.kernel,
                    "stride": step if number == 0 else 1,
                    # The block that would have had the stride still reads a map that is not thinned out.
                    "dilation": first_dilation if number == 0 else dilation,
                    "expansion": stage.expansion,
                }
            )
            in_channels = stage.channels
        yield _Blocks(blocks, stage.feature, stride)


def _repeated(variant: int) -> list[Stage]:
    """Return the stages with the widths and repeats of ``variant``: first and last are not deepened."""
    width, depth = SCALES[variant]
    ends = (STAGES[0], STAGES[-1])
    return [
        stage._replace(
            channels=_round_channels(stage.channels * width),
            repeats=stage.repeats if stage in ends else math.ceil(depth * stage.repeats),
        )
        for stage in STAGES
    ]


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, but not to less than nine tenths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _convolution(
    in_channels: int,
    out_channels: int,
    *,
    norm: str,
    kernel: int = 1,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    activation: Any = F.relu6,
) -> Conv2d:
    made_norm = get_norm(norm, out_channels)
    if made_norm is not None:
        made_norm.eps = NORM_EPSILON
        if hasattr(made_norm, "momentum"):
            made_norm.momentum = NORM_MOMENTUM
    make, padding = (SameConv2d, 0) if stride > 1 else (Conv2d, dilation * (kernel - 1) // 2)
    convolution = make(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=made_norm is None,
        norm=made_norm,
        activation=activation,
    )
    # As TensorFlow's: a normal distribution by the number of outputs of a filter.
    nn.init.normal_(convolution.weight, std=math.sqrt(2.0 / (kernel * kernel * out_channels / groups)))
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def build_efficientnet_lite_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> EfficientNetLite:
    """Build the backbone of MODEL.EFFICIENTNET_LITE. Raises InputError for settings that make none."""
    check_efficientnet_lite(cfg)
    settings = cfg.MODEL.EFFICIENTNET_LITE
    return EfficientNetLite(
        settings.VARIANT,
        out_features=list(settings.OUT_FEATURES),
        output_stride=settings.OUTPUT_STRIDE,
        norm=settings.NORM,
        drop_path=settings.DROP_PATH_RATE,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
