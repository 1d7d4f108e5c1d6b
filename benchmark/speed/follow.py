"""Follow a training step without computing it: what it asks of a device, and the most memory that it holds.

Fake tensors have shapes and types and no values, so a step of any size takes seconds on any machine; torch's MemTracker adds
up what they would hold. It is followed as it runs on a GPU. What the libraries under torch allocate for themselves is not
seen, and a model that looks at values cannot be followed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode

from hicl_d2.contrast.fused import host
from hicl_d2.d2.structures import ImageList

__all__ = ["Footprint", "LooksAtValuesError", "follow", "operators"]

# Without an alias in their schema, but views, allocations or questions all the same.
_NO_WORK = {
    "_unsafe_view",
    "detach",
    "device",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
}


class Footprint(NamedTuple):
    """Hold what a step asks for.

    Attributes:
        operators: calls that compute something.
        peak_bytes: the most that it holds at a time, above what was held before it.
    """

    operators: int
    peak_bytes: int


class LooksAtValuesError(Exception):
    """A step went on by the values of a tensor."""


def operators(step: Callable[[], Any]) -> int:
    """Count what a step asks of a device, call by call; views and allocations are none of that.

    On a GPU each is a few millionths of a second at least, however small its tensors are. The contrasts work as they do on a
    GPU while this counts, wherever the tensors are.
    """
    with mock.patch.object(host, "on_host", _elsewhere), _Counter() as counter:
        step()
    return counter.operators


def follow(model: nn.Module, step: Callable[[Callable[..., Any]], Tensor]) -> Footprint:
    """Follow a training step of ``model``, the second of two: the first one makes the gradients that stay.

    Args:
        model: as it is trained; it stays what it is.
        step: calls the model that it is given, makes its batch itself, and returns the loss (0-d).

    Raises LooksAtValuesError where the model does.
    """
    by_numbers = mock.patch.object(ImageList, "from_tensors", staticmethod(_padded))
    with mock.patch.object(host, "on_host", _elsewhere), by_numbers, FakeTensorMode() as mode:
        tensors = _fake(dict(model.named_parameters()), mode) | _fake(dict(model.named_buffers()), mode)

        def call(*args: Any) -> Any:
            return torch.func.functional_call(model, tensors, args)

        try:
            step(call).backward()
            with MemTracker() as memory, _Counter() as counter:
                step(call).backward()
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise LooksAtValuesError(f"the model looks at values ({error.func})") from None
    (peak,) = memory.get_tracker_snapshot("peak").values()  # of the one device, by kind: an enum, and "Total"
    held = {getattr(kind, "value", kind): size for kind, size in peak.items()}
    before = held["Parameter"] + held["Buffer"] + held["Gradient"]
    return Footprint(counter.operators, held["Total"] - before)


def _elsewhere(tensor: Tensor) -> bool:
    """Stand in for `on_host`; a mock would keep the tensors that it was asked about."""
    return False


def _padded(
    tensors: Sequence[Tensor],
    size_divisibility: int = 0,
    pad_value: float = 0.0,
    padding_constraints: Mapping[str, int] | None = None,
) -> ImageList:
    """Stand in for `ImageList.from_tensors`: Detectron2's looks at the images' sizes in a tensor, this one at numbers."""
    sizes = [(int(each.shape[-2]), int(each.shape[-1])) for each in tensors]
    side = (padding_constraints or {}).get("square_size", 0)
    divisor = max((padding_constraints or {}).get("size_divisibility", size_divisibility), 1)
    height, width = (-(-(side or max(lengths)) // divisor) * divisor for lengths in zip(*sizes, strict=True))
    padded = [
        F.pad(each, (0, width - w, 0, height - h), value=pad_value)
        for each, (h, w) in zip(tensors, sizes, strict=True)
    ]
    return ImageList(torch.stack(padded).contiguous(), sizes)


def _fake(tensors: Mapping[str, Tensor], mode: FakeTensorMode) -> dict[str, Tensor]:
    return {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}


class _Counter(TorchDispatchMode):
    """Count the calls that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        self.operators += not is_view and func.overloadpacket.__name__ not in _NO_WORK
        return func(*args, **(kwargs or {}))
