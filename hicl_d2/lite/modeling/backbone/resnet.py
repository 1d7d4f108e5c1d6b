"""Residual networks (He et al., "Deep Residual Learning for Image Recognition") of 18 to 152 layers."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, cast

from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.command.errors import InputError
from hicl_d2.lite import needs_detectron2
from hicl_d2.lite.config import CfgNode
from hicl_d2.lite.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from hicl_d2.lite.modeling.backbone.backbone import BACKBONE_REGISTRY, Backbone
from hicl_d2.lite.norms import Norm

__all__ = ["BasicBlock", "BasicStem", "BottleneckBlock", "ResNet", "build_resnet_backbone"]

# Blocks in res2, res3, res4, res5.
BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _convolution(in_channels: int, out_channels: int, size: int, norm: Norm, **kwargs: Any) -> Conv2d:
    return Conv2d(
        in_channels, out_channels, kernel_size=size, bias=False, norm=get_norm(norm, out_channels), **kwargs
    )


def _fill(layers: Iterable[nn.Module | None]) -> None:
    for layer in layers:
        if layer is not None:
            weight_init.c2_msra_fill(layer)


class _ResidualBlock(CNNBlockBase):
    """A block whose input is added to its output, through a 1x1 convolution where the channels differ."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut: Conv2d | None = None
        if in_channels != out_channels:
            self.shortcut = _convolution(in_channels, out_channels, 1, norm, stride=stride)

    def residual(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H / stride, W / stride)."""
        out = self.residual(x)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BasicBlock(_ResidualBlock):
    """The block of ResNet-18 and ResNet-34: two 3x3 convolutions, the first with the stride."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _convolution(in_channels, out_channels, 3, norm, stride=stride, padding=1)
        self.conv2 = _convolution(out_channels, out_channels, 3, norm, padding=1)
        _fill([self.conv1, self.conv2, self.shortcut])

    def residual(self, x: Tensor) -> Tensor:
        """Return the two convolutions of ``x``."""
        return self.conv2(F.relu_(self.conv1(x)))


class BottleneckBlock(_ResidualBlock):
    """The block of deeper networks: 1x1 to ``bottleneck_channels``, 3x3, and 1x1 to ``out_channels``.

    The stride is in the 3x3 convolution, or with ``stride_in_1x1`` in the first 1x1 as in MSRA's weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        width = bottleneck_channels
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _convolution(in_channels, width, 1, norm, stride=first)
        self.conv2 = _convolution(
            width, width, 3, norm, stride=second, padding=dilation, groups=num_groups, dilation=dilation
        )
        self.conv3 = _convolution(width, out_channels, 1, norm)
        _fill([self.conv1, self.conv2, self.conv3, self.shortcut])

    def residual(self, x: Tensor) -> Tensor:
        """Return the three convolutions of ``x``."""
        return self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))


class BasicStem(CNNBlockBase):
    """The layers before the first block: a 7x7 convolution and max pooling, stride 4 in all."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _convolution(in_channels, out_channels, 7, norm, stride=2, padding=3)
        _fill([self.conv1])

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and stages of residual blocks, with children ``stem``, ``res2``, ``res3``, ...

    ``out_features`` names the children whose output is returned (None: the last); stages after the last of them are
    not built. The first ``freeze_at`` of stem, res2, ... are frozen. Raises InputError for a name in
    ``out_features`` that is no child.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.stem = stem
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}
        stride, channels, name = stem.stride, stem.out_channels, "stem"
        for name, blocks in _needed(stages, out_features):
            stride, channels = stride * prod(block.stride for block in blocks), blocks[-1].out_channels
            self.add_module(name, nn.Sequential(*blocks))
            self._out_feature_strides[name], self._out_feature_channels[name] = stride, channels
        self.stage_names = tuple(self._out_feature_strides)[1:]
        self._out_features = [name] if out_features is None else list(out_features)
        known = ["stem", *(f"res{n + 2}" for n in range(len(stages)))]
        if not self._out_features or not set(self._out_features) <= set(known):
            raise InputError(
                f"the ResNet has the features {', '.join(known)}; asked for: {self._out_features}"
            )
        self.freeze(freeze_at)

    @property
    def stages(self) -> list[nn.Sequential]:
        """Return the stages from res2 on."""
        return [getattr(self, name) for name in self.stage_names]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the out features of images (B, C, H, W) by name."""
        assert x.dim() == 4, f"ResNet takes images (B, C, H, W), not {tuple(x.shape)}"
        x = self.stem(x)
        seen = {"stem": x}
        for name in self.stage_names:
            x = seen[name] = getattr(self, name)(x)
        return {name: value for name, value in seen.items() if name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze parameters and batch norms of the first ``freeze_at`` of stem, res2, ...; return the network."""
        if freeze_at >= 1:
            self.stem.freeze()
        for stage in self.stages[: max(freeze_at - 1, 0)]:
            for block in stage:
                cast(CNNBlockBase, block).freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: Any, num_blocks: int, *, in_channels: int, out_channels: int, **kwargs: Any
    ) -> list[CNNBlockBase]:
        """Make the blocks of one stage.

        Keyword arguments go to each block; a list called ``<name>_per_block`` gives each its own ``<name>``.
        """
        suffix = "_per_block"
        lists = {key.removesuffix(suffix): value for key, value in kwargs.items() if key.endswith(suffix)}
        shared = {key: value for key, value in kwargs.items() if not key.endswith(suffix)}
        for key, value in lists.items():
            assert len(value) == num_blocks, f"{key}{suffix} must have {num_blocks} entries, not {len(value)}"
            assert key not in shared, f"both {key} and {key}{suffix} are given"
        blocks = []
        for index in range(num_blocks):
            own = {key: value[index] for key, value in lists.items()}
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **shared, **own))
            in_channels = out_channels
        return blocks


def _needed(
    stages: Sequence[Sequence[CNNBlockBase]], out_features: Sequence[str] | None
) -> list[tuple[str, Sequence[CNNBlockBase]]]:
    """Return named stages up to the last in ``out_features``: those after it would get no gradients."""
    named = [(f"res{number}", blocks) for number, blocks in enumerate(stages, start=2)]
    if out_features is None:
        return named
    last = max([index for index, (name, _) in enumerate(named) if name in out_features], default=-1)
    return named[: last + 1]


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet of MODEL.RESNETS; raises InputError for settings that do not go together."""
    settings = cfg.MODEL.RESNETS
    _check(settings)
    is_deep = settings.DEPTH >= 50
    stem = BasicStem(input_shape.channels, settings.STEM_OUT_CHANNELS, settings.NORM)
    in_channels, out_channels = settings.STEM_OUT_CHANNELS, settings.RES2_OUT_CHANNELS
    stages = []
    for index, num_blocks in enumerate(BLOCKS_PER_STAGE[settings.DEPTH]):
        dilation = settings.RES5_DILATION if index == 3 else 1
        first_stride = 1 if index == 0 or dilation > 1 else 2
        own: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "norm": settings.NORM,
        }
        own["stride_per_block"] = [first_stride] + [1] * (num_blocks - 1)
        if is_deep:
            own["bottleneck_channels"] = (settings.NUM_GROUPS * settings.WIDTH_PER_GROUP) << index
            own |= {"num_groups": settings.NUM_GROUPS, "stride_in_1x1": settings.STRIDE_IN_1X1}
            own["dilation"] = dilation
        stages.append(ResNet.make_stage(BottleneckBlock if is_deep else BasicBlock, num_blocks, **own))
        in_channels, out_channels = out_channels, 2 * out_channels
    return ResNet(stem, stages, out_features=settings.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _check(settings: CfgNode) -> None:
    if any(settings.DEFORM_ON_PER_STAGE):
        raise InputError(needs_detectron2("MODEL.RESNETS.DEFORM_ON_PER_STAGE"))
    allowed = {"DEPTH": tuple(BLOCKS_PER_STAGE), "RES5_DILATION": (1, 2)}
    if settings.DEPTH in (18, 34):
        allowed |= {"RES2_OUT_CHANNELS": (64,), "RES5_DILATION": (1,), "NUM_GROUPS": (1,)}
    for key, values in allowed.items():
        if settings[key] not in values:
            wanted = " or ".join(map(str, values))
            raise InputError(
                f"MODEL.RESNETS.{key} is {settings[key]}; for DEPTH {settings.DEPTH} it must be {wanted}"
            )
