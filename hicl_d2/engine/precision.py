"""The precisions of mixed training, and whether the processor is fast in bfloat16."""

import platform
import threading
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# What torch calls its questions after the instructions avx512_bf16 and amx_bf16.
X86_QUESTIONS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def has_fast_bfloat16() -> bool:
    """Return whether this machine's processor has instructions for bfloat16, and True where torch does not know.

    Without them torch computes in float32 and converts back and forth, which takes longer than float32 alone.
    """
    if platform.machine() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    answers = [getattr(torch.cpu, name)() for name in X86_QUESTIONS if hasattr(torch.cpu, name)]
    return any(answers) or not answers


def warning_of(precision: torch.dtype | None, device: str) -> str:
    """Return a warning if training in ``precision`` on ``device`` takes longer than in float32, else an empty text."""
    if device != "cpu" or precision is not torch.bfloat16 or has_fast_bfloat16():
        return ""
    return "this processor has no instructions for bfloat16: SOLVER.AMP.ENABLED False is faster here"


def keep_depthwise_in_float32(model: nn.Module) -> None:
    """Let the depthwise convolutions of ``model`` compute in float32 under autocast, by hooks; a second call changes nothing.

    On a CPU torch has no fast kernel for them in bfloat16: forward and backward of DeepLabV3+ on EfficientNet-Lite0 took 1.36
    times as long as in float32 with them in bfloat16, and 0.72 times so. Where a module is fast itself (its
    ``is_fast_depthwise``), it stays in autocast's precision.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.register_forward_pre_hook(_begin_float32, with_kwargs=True)
            module.register_forward_hook(_end_float32, always_call=True)


class _Outside(threading.local):
    """Whether autocast was on outside of each module that a thread is in, the innermost last."""

    def __init__(self) -> None:
        self.states: list[bool] = []


_outside = _Outside()


def _begin_float32(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    is_enabled = torch.is_autocast_enabled("cpu")
    _outside.states.append(is_enabled)
    is_fast = getattr(module, "is_fast_depthwise", None)
    first = next(iter((*args, *named.values())), None)
    if not is_enabled or (is_fast and first is not None and is_fast(first)):
        return args, named
    torch.set_autocast_enabled("cpu", False)
    return tuple(map(_in_float32, args)), {name: _in_float32(each) for name, each in named.items()}


def _in_float32(given: Any) -> Any:
    return given.float() if isinstance(given, Tensor) else given


def _end_float32(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    torch.set_autocast_enabled("cpu", _outside.states.pop())
