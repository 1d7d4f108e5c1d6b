"""One step: precision, randomness, losses that are not finite."""

import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hicl_d2.command.errors import InputError
from hicl_d2.d2.utils import EventStorage
from hicl_d2.engine.step import NonFiniteLossError, StepTrainer, as_numbers, seed_all


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        self.seen: list[Tensor] = []
        self.spoil: dict[str, Tensor] = {}

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        out = self.linear(torch.stack([entry["x"] for entry in batch]))
        self.seen.append(torch.rand(3))
        self.dtype = out.dtype
        return {"loss_a": out.square().mean(), "loss_b": out.abs().mean(), **self.spoil}


def _trainer(**options: Any) -> StepTrainer:
    model = Model()
    batch = [{"x": torch.ones(4), "file_name": f"{i}.png"} for i in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return StepTrainer(model, [batch] * 20, optimizer, **{"seed": 3, **options})


def _run(trainer: StepTrainer, *iterations: int) -> EventStorage:
    with EventStorage() as storage:
        for trainer.iter in iterations:
            storage.iter = trainer.iter
            trainer.run_step()
        return storage


def test_a_step_is_plain_gradient_descent() -> None:
    trainer = _trainer()
    reference = Model()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    storage = _run(trainer, 0, 1, 2)
    for _ in range(3):
        losses = reference([{"x": torch.ones(4)}] * 2)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert torch.equal(trainer.model.linear.weight, reference.linear.weight)
    assert storage.latest()["total_loss"][0] == pytest.approx(sum(losses.values()).item())
    assert storage.latest()["loss_a"] == (pytest.approx(losses["loss_a"].item()), 2)


def test_random_numbers_depend_on_seed_and_iteration_alone() -> None:
    first, second, other = _trainer(), _trainer(), _trainer(seed=4)
    _run(first, 0, 1, 2)
    torch.rand(100)
    _run(second, 2)
    _run(other, 2)
    assert torch.equal(first.model.seen[2], second.model.seen[0])
    assert not torch.equal(first.model.seen[1], first.model.seen[2])
    assert not torch.equal(second.model.seen[0], other.model.seen[0])


def test_all_generators_are_seeded_and_ranks_differ() -> None:
    def draw(rank: int) -> tuple[float, float, float]:
        seed_all(1, 2, rank)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first, again, other = draw(0), draw(0), draw(1)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    trainer = _trainer(precision=dtype)
    before = trainer.model.linear.weight.clone()
    _run(trainer, 0, 1)
    assert trainer.model.dtype is dtype
    assert trainer.model.linear.weight.dtype is torch.float32
    assert not torch.equal(trainer.model.linear.weight, before)
    assert trainer.grad_scaler.is_enabled() == (dtype is torch.float16)
    assert ("grad_scaler" in trainer.state_dict()) == (dtype is torch.float16)


def test_the_gradient_scaler_is_resumed() -> None:
    first, second = _trainer(precision=torch.float16), _trainer(precision=torch.float16)
    _run(first, 0)
    first.grad_scaler.update(8.0)
    second.load_state_dict(first.state_dict())
    assert second.grad_scaler.get_scale() == first.grad_scaler.get_scale()
    _trainer(precision=torch.bfloat16).load_state_dict(first.state_dict())  # a checkpoint of either will do


@pytest.mark.parametrize("saved_fused", [None, True])
@pytest.mark.parametrize("precision", [None, torch.float16])
def test_a_state_loads_into_an_optimizer_that_computes_otherwise(
    saved_fused: bool | None, precision: torch.dtype | None
) -> None:
    """As one that an older version or another device saved; how it computes stays its own."""
    trainers = []
    for fused in (saved_fused, not saved_fused or None):
        model = Model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        batch = [{"x": torch.ones(4)}] * 2
        trainers.append(StepTrainer(model, [batch] * 20, optimizer, seed=3, precision=precision))
    first, second = trainers
    _run(first, 0, 1)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(deepcopy(first.state_dict()))
    assert [group["fused"] for group in second.optimizer.param_groups] == [not saved_fused or None]
    for trainer in trainers:
        _run(trainer, 2, 3)
    torch.testing.assert_close(first.model.linear.weight, second.model.linear.weight)


def test_gradients_that_overflow_in_float16_are_skipped_and_no_error() -> None:
    trainer = _trainer(precision=torch.float16)
    before = trainer.model.linear.weight.clone()
    trainer.grad_scaler.scale(torch.zeros(()))  # which makes the scale
    trainer.grad_scaler.update(3e38)
    _run(trainer, 0)
    assert torch.equal(trainer.model.linear.weight, before)
    assert trainer.grad_scaler.get_scale() < 3e38


def test_a_fused_step_is_skipped_on_the_device_where_gradients_overflow_in_float16() -> None:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    trainer = StepTrainer(model, [[{"x": torch.ones(4)}] * 2] * 9, optimizer, seed=3, precision=torch.float16)
    before = model.linear.weight.clone()
    trainer.grad_scaler.scale(torch.zeros(()))
    trainer.grad_scaler.update(3e38)
    _run(trainer, 0)
    assert torch.equal(model.linear.weight, before)
    assert {float(state["step"]) for state in optimizer.state.values()} == {0}
    trainer.grad_scaler.update(8.0)
    _run(trainer, 1)
    assert not torch.equal(model.linear.weight, before)
    assert {float(state["step"]) for state in optimizer.state.values()} == {1}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_and_nothing_is_updated(bad: float) -> None:
    trainer = _trainer()
    _run(trainer, 0)
    before = trainer.model.linear.weight.clone()
    trainer.model.spoil = {"loss_hicl": torch.tensor(bad, requires_grad=True) * 1}
    with pytest.raises(NonFiniteLossError) as caught:
        _run(trainer, 1)
    message = str(caught.value)
    assert f"loss_hicl is {bad} at iteration 1 (images: 0.png, 1.png)" in message
    assert "loss_a" not in message
    assert "\n" not in message
    assert torch.equal(trainer.model.linear.weight, before)


def test_a_single_loss_is_the_total() -> None:
    trainer = _trainer()
    trainer.model.forward = lambda batch: trainer.model.linear(batch[0]["x"]).sum()
    storage = _run(trainer, 0)
    assert set(storage.latest()) == {"total_loss", "data_time", "rank_data_time"}


def test_losses_are_brought_over_together() -> None:
    found = as_numbers(
        {"a": torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True), "b": torch.tensor(2.0)}
    )
    assert found == {"a": 1.5, "b": 2.0}
    assert as_numbers({}) == {}


# ----------------------------------------------------------------------------------------------------------
# Steps that are skipped, and batches in parts


class WithBuffer(Model):
    """Keeps a running sum of what it saw, as norms and banks do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen_sum", torch.zeros(()))

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        losses = super().forward(batch)
        self.seen_sum += sum(losses.values()).detach()
        return losses


def _skipping(limit: int, folder: Path | None = None) -> StepTrainer:
    model = WithBuffer()
    batch = [{"x": torch.ones(4), "file_name": f"{i}.png"} for i in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return StepTrainer(model, [batch] * 20, optimizer, seed=3, nonfinite_limit=limit, nonfinite_folder=folder)


def _spoil(trainer: StepTrainer) -> None:
    trainer.model.spoil = {"loss_hicl": torch.tensor(float("nan"))}


def test_steps_are_skipped_up_to_the_limit_and_leave_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    trainer = _skipping(limit=2)
    _run(trainer, 0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    momentum = [state["momentum_buffer"].clone() for state in trainer.optimizer.state.values()]
    _spoil(trainer)
    _run(trainer, 1, 2)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for state, old in zip(trainer.optimizer.state.values(), momentum, strict=True):
        assert torch.equal(state["momentum_buffer"], old)
    assert (
        "loss_hicl is nan at iteration 2 (images: 0.png, 1.png); the iteration is skipped (2 of 2)"
        in caplog.text
    )
    with pytest.raises(NonFiniteLossError, match="after 2 that were skipped"):
        _run(trainer, 3)


def test_a_step_after_a_skipped_one_is_as_if_that_had_not_been() -> None:
    trainer, undisturbed = _skipping(limit=1), _skipping(limit=0)
    _run(trainer, 0)
    _spoil(trainer)
    _run(trainer, 1)
    trainer.model.spoil = {}
    storage = _run(trainer, 2)
    _run(undisturbed, 0, 2)
    assert torch.equal(trainer.model.linear.weight, undisturbed.model.linear.weight)
    assert torch.equal(trainer.model.seen_sum, undisturbed.model.seen_sum)
    assert storage.latest()["total_loss"][1] == 2


def test_how_many_were_skipped_is_remembered() -> None:
    first, second = _skipping(limit=1), _skipping(limit=1)
    _spoil(first)
    _run(first, 0)
    second.load_state_dict(first.state_dict())
    _spoil(second)
    with pytest.raises(NonFiniteLossError, match="after 1 that were skipped"):
        _run(second, 1)


def test_a_gradient_that_is_not_finite_is_found_behind_a_finite_loss() -> None:
    trainer = _trainer()
    before = trainer.model.linear.weight.clone()
    zero = trainer.model.linear.weight.sum() * 0
    trainer.model.spoil = {"loss_root": zero.sqrt()}  # 0, with the gradient 0/0
    with pytest.raises(NonFiniteLossError, match="the largest gradient is nan at iteration 0"):
        _run(trainer, 0)
    assert torch.equal(trainer.model.linear.weight, before)


def test_large_gradients_whose_squares_overflow_are_finite() -> None:
    trainer = _trainer()
    trainer.model.spoil = {"loss_large": trainer.model.linear.bias.sum() * 1e30}
    _run(trainer, 0)
    assert trainer.model.linear.bias.abs().max() > 1e28


def test_the_batch_is_saved_with_what_is_needed_to_do_the_step_again(tmp_path: Path) -> None:
    trainer = _skipping(limit=0, folder=tmp_path / "nonfinite")
    _spoil(trainer)
    with pytest.raises(NonFiniteLossError) as caught:
        _run(trainer, 4)
    (file,) = (tmp_path / "nonfinite").iterdir()
    assert str(file) in str(caught.value)
    saved = torch.load(file, weights_only=True)
    assert (saved["iteration"], saved["seed"], saved["rank"]) == (4, 3, 0)
    assert saved["figures"]["loss_hicl"] != saved["figures"]["loss_hicl"]
    assert [entry["file_name"] for entry in saved["batch"]] == ["0.png", "1.png"]
    again = _trainer()
    seed_all(saved["seed"], saved["iteration"], saved["rank"])
    again.model(saved["batch"])
    assert torch.equal(again.model.seen[0], trainer.model.seen[0])


class MeanOfImages(nn.Module):
    """Each loss is a mean over the images, as that of pixels is where all are labelled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        self.sizes: list[int] = []

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.sizes.append(len(batch))
        out = self.linear(torch.stack([entry["x"] for entry in batch]))
        return {"loss_a": out.square().mean(), "loss_b": out.abs().mean()}


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_batch_in_parts_is_the_batch(parts: int, precision: torch.dtype | None) -> None:
    images = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    batch = [{"x": image} for image in images]
    found = []
    for accumulate in (1, parts):
        model = MeanOfImages()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        trainer = StepTrainer(
            model, [batch] * 5, optimizer, seed=0, precision=precision, accumulate=accumulate
        )
        storage = _run(trainer, 0, 1, 2)
        assert model.sizes == [6 // accumulate] * 3 * accumulate
        found.append((model.linear.weight.detach(), {name: v for name, (v, _) in storage.latest().items()}))
    (whole, losses), (divided, others) = found
    tolerance = 1e-6 if precision is None else 1e-3
    torch.testing.assert_close(divided, whole, atol=tolerance, rtol=tolerance)
    for name in ("total_loss", "loss_a", "loss_b"):
        assert others[name] == pytest.approx(losses[name], rel=1e-6 if precision is None else 1e-2)


def test_parts_must_be_equal() -> None:
    with pytest.raises(
        InputError, match=r"2 images of a batch, which SOLVER\.ACCUMULATE 3 cannot divide evenly"
    ):
        _run(_trainer(accumulate=3), 0)
