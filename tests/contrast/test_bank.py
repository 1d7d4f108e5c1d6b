"""The bank: rings per class and level that forget the oldest."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hicl_d2.contrast.bank import ComponentBank
from hicl_d2.contrast.build import build_contrast
from hicl_d2.contrast.components import Components
from tests.contrast.batches import make_batch, make_branch


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=14), min_size=1, max_size=6),
)
def test_equals_a_queue_per_ring(K: int, L: int, size: int, steps: list[list[tuple[int, int]]]) -> None:
    bank = ComponentBank(K, L, size, dim=1)
    queues: dict[tuple[int, int], deque[float]] = {
        (k, level): deque(maxlen=size) for k in range(K) for level in range(L)
    }
    value = 0.0
    for step in steps:
        rows, classes, levels, fresh = [], [], [], dict.fromkeys(queues, 0)
        for k, level in step:
            value += 1
            present = k < K and level < L
            rows.append([value])
            classes.append(k if present else -1)
            levels.append(level if present else 0)
            if present and fresh[(k, level)] < size:  # of more than a ring holds, the first fill it
                queues[(k, level)].append(value)
                fresh[(k, level)] += 1
        new = (
            torch.tensor(rows).view(-1, 1),
            *(torch.tensor(each, dtype=torch.long) for each in (classes, levels)),
        )
        bank.remember(Components(*new))
        recalled = bank.recall()
        for (k, level), queue in queues.items():
            there = (recalled.classes == k) & (recalled.levels == level)
            assert sorted(recalled.rows[there, 0].tolist()) == sorted(queue)
        assert int((recalled.classes >= 0).sum()) == sum(len(queue) for queue in queues.values())
    assert int(bank.updates) == len(steps)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_left_out(bad: float) -> None:
    bank = ComponentBank(2, 1, 3, dim=2)
    classes, levels = torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.long)
    bank.remember(Components(torch.tensor([[1.0, 1.0], [2.0, bad], [bad, 3.0]]), classes, levels))
    recalled = bank.recall()
    assert recalled.rows[recalled.classes >= 0].tolist() == [[1.0, 1.0]]
    bank.remember(Components(torch.full((3, 2), bad), classes, levels))
    assert bank.rows.isfinite().all()
    assert bank.written.flatten().tolist() == [1, 0]


@pytest.mark.parametrize("name", ["hicl", "pixel_memory", "region"])
def test_one_bad_batch_spoils_no_later_one(name: str) -> None:
    torch.manual_seed(0)
    contrast = build_contrast(name, 5, 4, bank_size=8, windows=(1, 2)).double()
    for step in range(6):
        features, labels, logits = make_batch(seed=step, size=(12, 12))
        if step == 2:
            features = torch.where(torch.rand(12, 12) < 0.2, float("inf"), features.detach()).requires_grad_()
        loss = contrast(features, labels, logits, seed=step).loss
        assert bool(loss.isfinite()) == (step != 2)


@pytest.mark.parametrize("name", ["hicl", "pixel_memory", "region"])
def test_a_model_laid_out_pixel_by_pixel_trains_as_before(name: str) -> None:
    losses = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        contrast = build_contrast(name, 5, 4, bank_size=8, windows=(1, 2)).double()
        contrast = contrast.to(memory_format=layout)
        for step in range(3):
            output = contrast(*make_batch(seed=step, size=(12, 12)), seed=step)
        losses.append(float(output.loss.detach()))
    assert losses[0] == losses[1]


def test_waits_for_its_start() -> None:
    bank = ComponentBank(2, 1, 4, dim=1, start=2)
    for number in range(3):
        assert bool((bank.recall().classes >= 0).any()) == (number >= 2)
        bank.remember(Components(torch.ones(1, 1), torch.tensor([1]), torch.tensor([0])))


def test_training_fills_it_and_evaluation_does_not() -> None:
    branch = make_branch(bank_size=3)
    assert branch.bank is not None
    branch.eval()(*make_batch())
    assert int(branch.bank.written.sum()) == 0
    branch.train()(*make_batch())
    assert int(branch.bank.written.sum()) > 0
    norms = branch.bank.recall().rows.norm(dim=1)
    assert ((norms - 1).abs().lt(1e-6) | norms.eq(0)).all()


def test_goes_through_a_checkpoint() -> None:
    first, second = make_branch(bank_size=3), make_branch(bank_size=3)
    first(*make_batch(seed=1))
    state = first.state_dict()
    assert {"bank.rows", "bank.written", "bank.pointer", "bank.updates"} <= state.keys()
    second.load_state_dict(state)
    for seed in (2, 3):
        assert first(*make_batch(seed=seed)).loss == second(*make_batch(seed=seed)).loss
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_without_a_bank_nothing_is_saved_of_it() -> None:
    assert not any("bank" in name or "level" in name for name in make_branch().state_dict())


def test_a_step_can_be_differentiated_after_the_bank_was_written() -> None:
    for implementation in ("fused", "textbook"):
        branch = make_branch(bank_size=2, implementation=implementation)
        branch(*make_batch(seed=1))
        features, labels, logits = make_batch(seed=2)
        branch(features, labels, logits).loss.backward()
        assert features.grad is not None
        assert features.grad.any()
