"""A convolution with its norm and activation, computed as a CPU is fast at it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hicl_d2.channels_last import is_pixel_by_pixel
from hicl_d2.hooks import is_watched
from hicl_d2.lite import depthwise
from hicl_d2.lite.norms import FrozenBatchNorm2d

__all__ = ["Activation", "Conv2d"]

Activation = Callable[[Tensor], Tensor]
# Activations that write over their input. In evaluation EfficientNet-Lite0 takes 0.93 of the time so.
IN_PLACE: tuple[tuple[Activation, Activation], ...] = (
    (F.relu, F.relu_),
    (F.relu6, partial(F.relu6, inplace=True)),
)
# Norms whose gradient is computed without their output.
OVERWRITABLE = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm)
# Pixels for each weight of an output channel from which on a norm is folded into the weights.
PIXELS_PER_WEIGHT = 4


class Conv2d(nn.Conv2d):
    """torch's Conv2d, followed by the optional ``norm`` and the optional ``activation``."""

    def __init__(
        self, *args: Any, norm: nn.Module | None = None, activation: Activation | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H', W') for (B, in_channels, H, W)."""
        if self._can_fold(x):
            norm: Any = self.norm
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            x = self._conv_forward(x, *fuse_conv_bn_weights(self.weight, self.bias, *statistics))
        else:
            x = super().forward(x)
            if self.norm is not None:
                x = self.norm(x)
        if self.activation is None:
            return x
        return self._in_its_place()(x)

    def _can_fold(self, x: Tensor) -> bool:
        """Return whether the norm is fixed, and nobody asks for a gradient or for what goes into the norm.

        On a CPU the weights are then multiplied in place of the map, where that is much larger: EfficientNet-Lite0 predicts in
        0.9 of the time, and a ResNet, whose large weights belong to small maps, as before.
        """
        norm = self.norm
        is_fixed = type(norm) is FrozenBatchNorm2d or (
            type(norm) is nn.BatchNorm2d and not norm.training and norm.track_running_stats
        )
        # In half precision the folded weights would be rounded once more.
        if not is_fixed or not is_pixel_by_pixel(x) or self.weight.dtype in (torch.float16, torch.bfloat16):
            return False
        if torch.is_grad_enabled() and (
            x.requires_grad or any(each.requires_grad for each in self.parameters())
        ):
            return False
        assert norm is not None
        if is_watched(norm):
            return False
        pixels = len(x) * x.shape[2] * x.shape[3] / (self.stride[0] * self.stride[1])
        return pixels > PIXELS_PER_WEIGHT * self.weight[0].numel()

    def _in_its_place(self) -> Activation:
        """Return the activation, as one that writes over its input if neither a gradient nor a hook needs that."""
        assert self.activation is not None
        is_free = type(self.norm) in OVERWRITABLE and not is_watched(self.norm)  # type: ignore[arg-type]
        known = (each for plain, each in IN_PLACE if is_free and plain is self.activation)
        return next(known, self.activation)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve; pixels that lie one after another on a CPU are the rows of a matrix to a kernel of one pixel.

        Forward and backward, the product takes 0.46 to 1.16 of the convolution's time on layers of EfficientNet-Lite0, and is
        equal to it within rounding. For depthwise convolutions see `hicl_d2.lite.depthwise`.
        """
        if self._is_pointwise() and is_pixel_by_pixel(input):
            return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        if self.is_fast_depthwise(input):
            return depthwise.convolve(input, weight, bias, self.stride, self.padding)  # type: ignore[arg-type]
        return super()._conv_forward(input, weight, bias)

    def is_fast_depthwise(self, x: Tensor) -> bool:
        """Return whether this is a depthwise convolution that is computed fast for ``x`` (B, C, H, W) in half precision too."""
        return depthwise.is_fast(self, x)

    def _is_pointwise(self) -> bool:
        ones = (*self.kernel_size, *self.stride, self.groups)
        return all(each == 1 for each in ones) and not any(self.padding)
