"""The precisions of mixed training, and whether the processor is fast in bfloat16."""

import platform

import torch

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
