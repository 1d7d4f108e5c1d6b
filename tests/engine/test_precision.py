"""Which processors are fast in bfloat16, and what is said where one is not."""

import platform
from pathlib import Path

import pytest
import torch

from hicl_d2.engine import precision
from hicl_d2.engine.precision import has_fast_bfloat16, warning_of
from tests.support.fixtures import Command

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists() or platform.machine() != "x86_64", reason="needs Linux on x86")
def test_the_answer_is_that_of_the_systems_list_of_instructions() -> None:
    flags = {
        word for line in CPUINFO.read_text().splitlines() if line.startswith("flags") for word in line.split()
    }
    assert has_fast_bfloat16() == bool(flags & {"avx512_bf16", "amx_bf16"})


@pytest.mark.parametrize(
    ("has_avx", "has_amx", "fast"), [(True, False, True), (False, True, True), (False,) * 3]
)
def test_either_set_of_instructions_is_fast(
    has_avx: bool, has_amx: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name, answer in zip(precision.X86_QUESTIONS, (has_avx, has_amx), strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert has_fast_bfloat16() is fast
    assert bool(warning_of(torch.bfloat16, "cpu")) is not fast
    assert not warning_of(None, "cpu")
    assert not warning_of(torch.bfloat16, "cuda")


def test_a_torch_that_does_not_know_is_believed_to_be_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(precision, "X86_QUESTIONS", ("_asked_for_nothing",))
    assert has_fast_bfloat16()


@pytest.mark.parametrize("fast", [True, False])
def test_training_says_that_the_processor_is_slow(
    fast: bool, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda: fast)
    options = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "SOLVER.MAX_ITER", "1")
    outcome = command(*options)
    assert outcome.code == 0
    assert ("warning: this processor has no instructions for bfloat16" in outcome.err) is not fast
