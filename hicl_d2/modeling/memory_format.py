"""How the feature maps of a model lie in memory: channel by channel (contiguous) or pixel by pixel (channels_last).

The layout changes how fast convolutions and norms are, not what they compute: results are equal within rounding. Dropout
draws its mask in the order of memory, so a model that trains with dropout draws other masks in another layout.
"""

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from hicl_d2.command.errors import InputError, listing, nearest
from hicl_d2.d2.config import CfgNode

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
AUTO = "auto"
# Packages whose modules are known to work in either layout. A module from elsewhere may call ``view`` on a feature map.
KNOWN_PACKAGES = ("torch", "torchvision", "fvcore", "detectron2", "hicl_d2")


def check_memory_format(cfg: CfgNode) -> None:
    """Raise InputError if MODEL.MEMORY_FORMAT names no layout."""
    name = cfg.MODEL.MEMORY_FORMAT
    if name != AUTO and name not in FORMATS:
        known = [AUTO, *FORMATS]
        raise InputError(
            f"MODEL.MEMORY_FORMAT is {name!r}{nearest(str(name), known)}; it is one of {listing(known)}"
        )


def memory_format(cfg: CfgNode, model: nn.Module) -> torch.memory_format:
    """Return the layout that MODEL.MEMORY_FORMAT asks for.

    "auto" is channels_last on a CPU, if all modules are of packages that work in either layout; on a GPU nothing was measured
    yet, and it is contiguous. Raises InputError for an unknown name.
    """
    check_memory_format(cfg)
    name = cfg.MODEL.MEMORY_FORMAT
    if name != AUTO:
        return FORMATS[name]
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    pays = on_cpu and all(_is_known(module) for module in model.modules())
    return torch.channels_last if pays else torch.contiguous_format


def set_memory_format(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Lay out the 4-d parameters and buffers of ``model`` as MODEL.MEMORY_FORMAT asks, in place, and return it.

    A convolution gives its output in the layout of its weights, so the feature maps follow.
    """
    wanted = memory_format(cfg, model)
    if wanted is torch.contiguous_format:
        return model
    # Not by model.to, which fails at a tensor of five dimensions.
    return model._apply(lambda each: each.to(memory_format=wanted) if each.dim() == 4 else each)


def like(parameter: Tensor, value: Any) -> Any:
    """Return ``value``, in the layout of ``parameter`` if it is a tensor of the same shape."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return (
        value
        if value.stride() == parameter.stride()
        else torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    )


def contiguous(content: Any) -> Any:
    """Return a checkpoint's content with its channels_last tensors made contiguous, so that files do not tell the layout.

    Mappings, lists and tuples are walked. Tensors that share memory share it in the result.
    """
    return _contiguous(content, {})


def _contiguous(content: Any, done: dict[tuple[int, torch.Size], Tensor]) -> Any:
    if isinstance(content, Tensor):
        if (
            content.dim() != 4
            or content.is_contiguous()
            or not content.is_contiguous(memory_format=torch.channels_last)
        ):
            return content
        key = (content.data_ptr(), content.shape)
        if key not in done:
            done[key] = content.contiguous()
        return done[key]
    if isinstance(content, Mapping):
        changed = copy(content)  # of its own type, with the versions of modules that a state_dict carries
        for name, value in content.items():
            changed[name] = _contiguous(value, done)  # type: ignore[index]
        return changed
    if isinstance(content, list | tuple) and type(content) in (list, tuple):
        return type(content)(_contiguous(value, done) for value in content)
    return content


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] in KNOWN_PACKAGES
