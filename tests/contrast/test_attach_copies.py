"""A model with a contrast can be copied, pickled, averaged and saved; each copy works on its own."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hicl_d2.contrast import Contrast
from tests.contrast.attach_models import Toy, attached, make_batch


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("captured", [False, True])
def test_a_copy_works_on_its_own(way: str, captured: bool) -> None:
    model, branch = attached()
    images, labels = make_batch()
    model(images)
    if not captured:  # what is captured holds a graph, which cannot be copied
        branch.loss(labels)
    twin = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert type(twin) is Toy
    assert twin.hicl.steps == branch.steps
    with pytest.raises(RuntimeError, match="nothing was captured"):
        twin.hicl.loss(labels)
    if captured:
        branch.loss(labels)
        twin.hicl.steps += 1
    losses = []
    for each in (model, twin):
        each(images)
        losses.append(each.hicl.loss(labels))
    assert torch.equal(*losses)
    assert branch.detach() is model
    twin(images)
    assert twin.hicl.loss(labels) > 0
    plain = twin.hicl.detach()
    assert plain is twin
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())


def test_hooks_added_to_a_copy_do_not_take_the_place_of_its_own() -> None:
    model, _ = attached()
    twin = pickle.loads(pickle.dumps(model))
    calls = []
    for module in (twin, twin.classifier):
        for _ in range(20):
            module.register_forward_hook(lambda *_: calls.append(1))
    images, labels = make_batch()
    twin(images)
    assert twin.hicl.loss(labels) > 0
    assert len(calls) == 40


def test_an_averaged_copy_follows_the_model_and_captures_nothing_in_eval() -> None:
    model, branch = attached()
    average = AveragedModel(model, avg_fn=lambda old, new, number: 0.5 * old + 0.5 * new)
    average.update_parameters(model)
    images, labels = make_batch()
    model(images)
    (branch.loss(labels)).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    average.update_parameters(model)
    for (name, value), (_, other) in zip(
        average.module.named_parameters(), model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(value, other - 0.5, msg=name)
    average.eval()(images)
    assert average.module.hicl.attachment.taps["feature"].value is None
    assert average.module.hicl is not branch


def test_a_run_goes_on_where_its_state_left_off() -> None:
    def train(model: nn.Module, branch: Contrast, steps: range) -> list[float]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for step in steps:
            images, labels = make_batch(seed=step)
            optimizer.zero_grad()
            model(images)
            loss = branch.loss(labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    whole = train(*attached(warmup_iters=5, bank_size=3), range(6))
    model, branch = attached(warmup_iters=5, bank_size=3)
    first = train(model, branch, range(3))
    state = copy.deepcopy(model.state_dict())
    model, branch = attached(warmup_iters=5, bank_size=3, seed=3)
    model.load_state_dict(state)
    assert branch.steps == 3
    assert first + train(model, branch, range(3, 6)) == whole


def test_states_from_before_the_step_count_load_without_complaint() -> None:
    model, branch = attached()
    images, labels = make_batch()
    model(images)
    branch.loss(labels)
    old = {key: value for key, value in model.state_dict().items() if key != "hicl.steps"}
    assert model.load_state_dict(old, strict=True).missing_keys == []
    assert branch.steps == 1
    fresh, _ = attached()
    fresh.load_state_dict(old, strict=True)
    assert fresh.hicl.steps == 0
