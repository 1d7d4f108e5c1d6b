"""Which processors are fast in bfloat16, and what is said where one is not."""

import platform
from pathlib import Path

import pytest
import torch
from torch import nn

from hicl_d2.d2.layers import Conv2d
from hicl_d2.d2.utils import EventStorage
from hicl_d2.engine import precision
from hicl_d2.engine.precision import has_fast_bfloat16, keep_depthwise_in_float32, warning_of
from hicl_d2.engine.step import StepTrainer
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


class Convolutions(nn.Module):
    """A depthwise, a grouped and a plain convolution, as Detectron2's batches are given to them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.depthwise, self.grouped = nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 8, 1, groups=2)
        self.plain = nn.Conv2d(8, 1, 1)
        self.dtypes: list[torch.dtype] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        first = self.depthwise(batch)
        second = self.grouped(first)
        third = self.plain(second)
        self.dtypes = [first.dtype, second.dtype, third.dtype]
        assert torch.is_autocast_enabled("cpu") == self.training
        return third.float().square().mean()


def test_depthwise_convolutions_alone_stay_in_float32_in_training() -> None:
    model = Convolutions()
    keys = list(model.state_dict())
    batch = torch.randn(2, 4, 5, 5)
    for _ in range(2):  # a second trainer of the model changes nothing
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = StepTrainer(model, [batch] * 2, optimizer, seed=1, precision=torch.bfloat16)
        with EventStorage():
            trainer.run_step()
        assert model.dtypes == [torch.float32, torch.bfloat16, torch.bfloat16]
        assert not torch.is_autocast_enabled("cpu")
    assert list(model.state_dict()) == keys
    model.eval()(batch)
    assert model.dtypes == [torch.float32] * 3


def test_autocast_is_as_it_was_after_an_error() -> None:
    model = Convolutions()
    keep_depthwise_in_float32(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 3, 5, 5))
        assert torch.is_autocast_enabled("cpu")
        model(torch.randn(2, 4, 5, 5))
        assert model.dtypes == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_a_map_may_be_given_by_name() -> None:
    layer = Conv2d(4, 4, 5, padding=2, groups=4)
    keep_depthwise_in_float32(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):  # as a layer before it gives it
            x = torch.ones(1, 4, 8, 8, dtype=dtype)
            assert torch.equal(layer(x=x), layer(x))
            assert layer(x=x).dtype is torch.float32
