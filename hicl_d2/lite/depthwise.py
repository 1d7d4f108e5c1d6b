"""Depthwise convolutions on a CPU, with gradients in forms that oneDNN is fast in.

oneDNN has a fast gradient of the weights for kernels of up to three columns; of wider ones it computes a full convolution in
blocks of 16 channels. So it is asked for three columns at a time: on one thread, for kernels of 5x5 in EfficientNet-Lite0, a
quarter to three fifths of the time in float32 and a tenth or less in bfloat16. In bfloat16 it has no fast gradient of the input
for a stride, which is computed in float32.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.channels_last import is_pixel_by_pixel

# Columns of a kernel whose gradient is computed at a time.
COLUMNS = 3
DTYPES = (torch.float32, torch.bfloat16)


def is_fast(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Return whether `convolve` computes ``convolution`` of ``x`` (B, C, H, W), in float32 and bfloat16 alike."""
    return (
        convolution.groups == convolution.in_channels == convolution.out_channels > 1
        and convolution.padding_mode == "zeros"
        and isinstance(convolution.padding, tuple)
        and all(step == 1 for step in convolution.dilation)
        and x.dtype in DTYPES
        and is_pixel_by_pixel(x)
        and torch.backends.mkldnn.is_available()
    )


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """Return F.conv2d of ``x`` (B, C, H, W), channels_last, with one kernel (C, 1, h, w) a channel; equal within rounding."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if not torch.is_grad_enabled():
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))
    result: Tensor = _Depthwise.apply(x, weight, bias, stride, padding)
    return result


class _Depthwise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def jvp(ctx: Any, of_x: Any, of_weight: Any, of_bias: Any, *others: None) -> Tensor:
        x, weight = ctx.saved_tensors
        pairs = [(of_x, weight), (x, of_weight)]
        known = [(maps, kernels) for maps, kernels in pairs if maps is not None and kernels is not None]
        parts = [
            F.conv2d(maps, kernels, None, ctx.stride, ctx.padding, groups=len(kernels))
            for maps, kernels in known or [(torch.zeros_like(x), weight)]
        ]
        if of_bias is not None:
            parts.append(of_bias.view(-1, 1, 1))
        return functools.reduce(torch.add, parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _of_input(gradient, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(gradient, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def _of_input(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    dtype = x.dtype
    if dtype is not torch.float32 and any(step > 1 for step in stride):
        gradient, x, weight = gradient.float(), torch.empty_like(x, dtype=torch.float32), weight.float()
    return _gradients(gradient, x, weight, stride, padding, 0).to(dtype)


def _of_weight(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    height, width = weight.shape[-2:]
    if width <= COLUMNS:
        return _gradients(gradient, x, weight, stride, padding, 1)
    padded = F.pad(x, (padding[1], padding[1])) if padding[1] else x
    parts = []
    for first in range(0, width, COLUMNS):
        columns = min(COLUMNS, width - first)
        seen = padded[..., first : first + (gradient.shape[-1] - 1) * stride[1] + columns]
        kernel = weight.new_empty(len(weight), 1, height, columns)
        parts.append(_gradients(gradient, seen, kernel, stride, (padding[0], 0), 1))
    return torch.cat(parts, dim=3)


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], which: int
) -> Tensor:
    """Return torch's gradient of the input (``which`` 0) or of the weight (1)."""
    wanted = [which == place for place in range(3)]
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), wanted
    )[which]
    return found
