"""Layers: convolutions with norm and activation, norms, and DeepLab's pyramid of dilated convolutions."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fvcore.nn import weight_init
from fvcore.nn.distributed import differentiable_all_gather
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.channels_last import is_pixel_by_pixel
from hicl_d2.command.errors import InputError, listing, nearest
from hicl_d2.lite import depthwise, needs_detectron2
from hicl_d2.lite.utils import comm

__all__ = [
    "ASPP",
    "CNNBlockBase",
    "Conv2d",
    "DepthwiseSeparableConv2d",
    "FrozenBatchNorm2d",
    "ShapeSpec",
    "get_norm",
]

Activation = Callable[[Tensor], Tensor]
# Activations that write over their input. In evaluation EfficientNet-Lite0 takes 0.91 of the time so.
IN_PLACE: tuple[tuple[Activation, Activation], ...] = (
    (F.relu, F.relu_),
    (F.relu6, partial(F.relu6, inplace=True)),
)
Norm = str | Callable[[int], nn.Module] | None


@dataclass
class ShapeSpec:
    """Shape of a feature map as far as it is known when the model is built; None for the rest."""

    channels: int = None  # type: ignore[assignment]
    height: int = None  # type: ignore[assignment]
    width: int = None  # type: ignore[assignment]
    stride: int = None  # type: ignore[assignment]


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
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is None:
            return x
        return self._in_its_place()(x)

    def _in_its_place(self) -> Activation:
        """Return the activation, as one that writes over its input if neither a gradient nor a hook needs that."""
        assert self.activation is not None
        is_free = type(self.norm) in OVERWRITABLE and not self.norm._forward_hooks  # type: ignore[union-attr]
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


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and affine parameters, all of them buffers; initially the identity.

    Weights converted from Caffe2 load too: they have ``weight`` and ``bias`` alone, with the statistics folded in.
    """

    _version = 3  # of the state dict: from 2 on it holds running_mean and running_var

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised (B, C, H, W)."""
        if not x.requires_grad:
            stats = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.batch_norm(x, *stats, training=False, eps=self.eps)
        # Not F.batch_norm: its backward pass would compute gradients of weight and bias too.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:
            state_dict.setdefault(f"{prefix}running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(f"{prefix}running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace each batch norm in ``module`` by a frozen one; for a batch norm itself, return the frozen one."""
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            frozen = cls(module.num_features, module.eps)
            names = ["running_mean", "running_var", "num_batches_tracked"]
            names += ["weight", "bias"] if module.affine else []
            for name in names:
                value = getattr(module, name)
                setattr(frozen, name, None if value is None else value.detach().clone())
            return frozen
        for name, child in module.named_children():
            converted = cls.convert_frozen_batchnorm(child)
            if converted is not child:
                module.add_module(name, converted)
        return module


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, on CPU too.

    torch's SyncBatchNorm raises on the CPU, and so does DistributedDataParallel around it. Here processes on the CPU
    exchange mean, variance and number of values, so that the statistics are those of the whole batch. On a GPU torch's
    implementation is used; in a single process this is plain batch norm.
    """

    process_group = None  # torch's forward pass reads it (None: all processes) and calls the check below
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised (B, C, H, W)."""
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        if input.device.type == "cpu":
            return self._forward_over_processes(input)
        return nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]

    def _forward_over_processes(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        values = x.float()
        count = values.new_full((self.num_features,), values.numel() // self.num_features)
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        means, variances, counts = torch.stack(
            differentiable_all_gather(torch.stack([mean, variance, count]))
        ).unbind(1)
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        self._track(mean.detach(), variance.detach(), total)
        scale = torch.rsqrt(variance + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = self.weight * scale, self.weight * shift + self.bias
        return (values * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * count / (count - 1).clamp(min=1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class LayerNorm(nn.Module):
    """Normalise each pixel of (B, C, H, W) over its channels."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised (B, C, H, W)."""
        pixels = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return pixels.permute(0, 3, 1, 2)


def _group_norm(channels: int) -> nn.Module:
    if channels % 32:
        raise InputError(
            f"norm GN has 32 groups, which do not divide {channels} channels; use BN or another width"
        )
    return nn.GroupNorm(32, channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": SyncBatchNorm,
    "nnSyncBN": SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": _group_norm,
    "LN": LayerNorm,
}


def get_norm(norm: Norm, out_channels: int) -> nn.Module | None:
    """Build the norm named ``norm`` for ``out_channels`` channels; None and "" give None, a function is called with them.

    Raises InputError for an unknown name.
    """
    if not isinstance(norm, str):
        return None if norm is None else norm(out_channels)
    if not norm:
        return None
    if norm in _NORMS:
        return _NORMS[norm](out_channels)
    if norm.startswith("naiveSyncBN"):
        raise InputError(needs_detectron2(f"norm {norm}"))
    raise InputError(
        f"unknown norm {norm!r}{nearest(norm, _NORMS)}; known: {listing(_NORMS)}, or empty for none"
    )


# Norms whose gradient is computed without their output.
OVERWRITABLE = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm)


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
