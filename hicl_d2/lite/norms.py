"""Norms by name: batch norm, frozen or over the images of all processes, group norm and layer norm."""

from collections.abc import Callable
from typing import Any

import torch
from fvcore.nn.distributed import differentiable_all_gather
from torch import Tensor, nn
from torch.nn import functional as F

from hicl_d2.command.errors import InputError, listing, nearest
from hicl_d2.lite import needs_detectron2
from hicl_d2.lite.utils import comm

__all__ = ["FrozenBatchNorm2d", "Norm", "get_norm"]

Norm = str | Callable[[int], nn.Module] | None


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
