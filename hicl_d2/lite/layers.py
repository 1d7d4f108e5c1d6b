"""Layers: what blocks are made of, and DeepLab's pyramid of dilated convolutions."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.lite.convolution import Activation, Conv2d
from hicl_d2.lite.norms import FrozenBatchNorm2d, Norm, get_norm

__all__ = [
    "ASPP",
    "CNNBlockBase",
    "Conv2d",
    "DepthwiseSeparableConv2d",
    "FrozenBatchNorm2d",
    "ShapeSpec",
    "get_norm",
]


@dataclass
class ShapeSpec:
    """Shape of a feature map as far as it is known when the model is built; None for the rest."""

    channels: int = None  # type: ignore[assignment]
    height: int = None  # type: ignore[assignment]
    width: int = None  # type: ignore[assignment]
    stride: int = None  # type: ignore[assignment]


class CNNBlockBase(nn.Module):
    """Base of blocks that map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Freeze the parameters and the batch norms of this block, and return it."""
        self.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self


class DepthwiseSeparableConv2d(nn.Module):
    """A depthwise and a pointwise convolution, each with its norm and activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int = 1,
        dilation: int = 1,
        *,
        norm1: Norm = None,
        activation1: Activation | None = None,
        norm2: Norm = None,
        activation2: Activation | None = None,
    ) -> None:
        super().__init__()
        first: dict[str, Any] = {"padding": padding, "dilation": dilation, "groups": in_channels}
        first |= {"norm": get_norm(norm1, in_channels), "activation": activation1, "bias": not norm1}
        second = {"norm": get_norm(norm2, out_channels), "activation": activation2, "bias": not norm2}
        self.depthwise = Conv2d(in_channels, in_channels, kernel_size, **first)
        self.pointwise = Conv2d(in_channels, out_channels, 1, **second)  # type: ignore[arg-type]
        weight_init.c2_msra_fill(self.depthwise)
        weight_init.c2_msra_fill(self.pointwise)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H', W')."""
        return self.pointwise(self.depthwise(x))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (DeepLabV3): five branches, joined by a 1x1 convolution.

    The branches are a 1x1 convolution, three dilated 3x3 convolutions and image pooling. With ``pool_kernel_size``
    (height, width), pooling averages over windows of that size (the training crop's), else over the whole map. The
    pooling branch has no norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        *,
        norm: Norm,
        activation: Activation,
        pool_kernel_size: Sequence[int] | None = None,
        dropout: float = 0.0,
        use_depthwise_separable_conv: bool = False,
    ) -> None:
        super().__init__()
        assert len(dilations) == 3, f"ASPP expects 3 dilations, not {list(dilations)}"
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout

        def convolution(channels: int, size: int = 1, dilation: int = 1) -> nn.Module:
            if size > 1 and use_depthwise_separable_conv:
                both: dict[str, Any] = {f"norm{n}": norm for n in (1, 2)}
                both |= {f"activation{n}": deepcopy(activation) for n in (1, 2)}
                return DepthwiseSeparableConv2d(channels, out_channels, size, dilation, dilation, **both)
            extra: dict[str, Any] = {"padding": dilation * (size // 2), "dilation": dilation}
            extra |= {"norm": get_norm(norm, out_channels), "activation": deepcopy(activation)}
            made = Conv2d(channels, out_channels, size, bias=norm == "", **extra)
            weight_init.c2_xavier_fill(made)
            return made

        self.convs = nn.ModuleList([convolution(in_channels)])
        self.convs.extend(convolution(in_channels, 3, dilation) for dilation in dilations)
        pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        if pool_kernel_size is not None:
            pool = nn.AvgPool2d((pool_kernel_size[0], pool_kernel_size[1]), stride=1)
        pooled = Conv2d(in_channels, out_channels, 1, bias=True, activation=deepcopy(activation))
        weight_init.c2_xavier_fill(pooled)
        self.convs.append(nn.Sequential(pool, pooled))
        self.project = convolution(5 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H, W); raises ValueError if the pooling window does not divide (H, W)."""
        size = x.shape[-2:]
        window = self.pool_kernel_size
        if window is not None and (size[0] % window[0] or size[1] % window[1]):
            raise ValueError(f"the pooling window {tuple(window)} must divide the feature map {tuple(size)}")
        branches = [branch(x) for branch in self.convs]
        branches[-1] = F.interpolate(branches[-1], size=size, mode="bilinear", align_corners=False)
        joined = self.project(torch.cat(branches, dim=1))
        return F.dropout(joined, self.dropout, training=self.training) if self.dropout > 0 else joined
