"""One step: precision, randomness, losses that are not finite."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hicl_d2.d2.utils import EventStorage
from hicl_d2.engine.step import NonFiniteLossError, StepTrainer, on_cpu, seed_all


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


def test_gradients_that_overflow_in_float16_are_skipped_and_no_error() -> None:
    trainer = _trainer(precision=torch.float16)
    before = trainer.model.linear.weight.clone()
    trainer.grad_scaler.scale(torch.zeros(()))  # which makes the scale
    trainer.grad_scaler.update(3e38)
    _run(trainer, 0)
    assert torch.equal(trainer.model.linear.weight, before)
    assert trainer.grad_scaler.get_scale() < 3e38


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
    found = on_cpu({"a": torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True), "b": torch.tensor(2.0)})
    assert {name: value.item() for name, value in found.items()} == {"a": 1.5, "b": 2.0}
    assert not found["a"].requires_grad
    assert on_cpu({}) == {}
