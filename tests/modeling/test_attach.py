"""Whatever the branch is attached to, the model keeps its keys, losses and predictions, and trains like any other."""

import copy

import pytest
import torch
from torch import multiprocessing
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hicl_d2.d2.checkpoint import DetectionCheckpointer
from tests.modeling.attach_cases import CASES, case_batch, case_model
from tests.modeling.attach_processes import run

each_case = pytest.mark.parametrize("name", CASES)
# One model with plain logits, one whose logits are made of predictions of queries.
two_cases = pytest.mark.parametrize("name", ["DeepLabV3+", "Mask2Former"])


def losses_of(model, batch):
    torch.manual_seed(1)
    return model(batch)


@pytest.fixture(scope="module")
def batch():
    return case_batch()


@each_case
def test_the_base_keeps_parameters_losses_and_predictions(name, batch):
    base, model = case_model(name, with_branch=False), case_model(name)
    assert [key for key in model.state_dict() if not key.startswith("hicl.")] == list(base.state_dict())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in base.state_dict().items())
    expected, found = losses_of(base, batch), losses_of(model, batch)
    assert found.pop("loss_hicl") > 0
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    with torch.no_grad():
        pairs = zip(base.eval()(batch), model.eval()(batch), strict=True)
        assert all(torch.equal(a["sem_seg"], b["sem_seg"]) for a, b in pairs)
    assert [tap.value for tap in model.hicl.attachment.taps.values()] == [None, None, None]


@each_case
def test_every_parameter_has_a_gradient_with_and_without_labels(name, batch):
    model = case_model(name)
    empty = [{**entry, "sem_seg": torch.full_like(entry["sem_seg"], 255)} for entry in batch]
    for inputs in (batch, empty):
        model.zero_grad(set_to_none=True)
        sum(model(inputs).values()).backward()
        assert [key for key, value in model.named_parameters() if value.grad is None] == []


@each_case
def test_checkpoints_load_both_ways_with_every_parameter(name, tmp_path):
    base, model = case_model(name, with_branch=False, seed=1), case_model(name, seed=2)
    kept = copy.deepcopy(model.state_dict())
    DetectionCheckpointer(base, str(tmp_path)).save("base")
    DetectionCheckpointer(model, str(tmp_path)).save("hicl")
    DetectionCheckpointer(model).load(str(tmp_path / "base.pth"))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in base.state_dict().items())
    DetectionCheckpointer(base).load(str(tmp_path / "hicl.pth"))
    assert all(torch.equal(value, kept[key]) for key, value in base.state_dict().items())


@two_cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_branch_stays_in_float32(name, dtype, batch):
    model = case_model(name)
    with torch.autocast("cpu", dtype=dtype):
        losses = model(batch)
    assert losses["loss_hicl"].dtype == torch.float32
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.hicl.parameters())


@two_cases
def test_evaluating_several_test_sets_between_two_steps_changes_nothing(name, batch):
    model, twin = case_model(name), case_model(name)
    for evaluated in (model, twin):
        losses_of(evaluated, batch)
    model.eval()
    with torch.no_grad():
        for size in ((64, 64), (64, 128), (128, 64)):
            model([{"image": torch.zeros(3, *size), "height": 5, "width": 7}])
    model.train()
    expected, found = losses_of(twin, batch), losses_of(model, batch)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@two_cases
def test_an_averaged_copy_follows_the_model_and_predicts_without_the_branch(name, batch):
    model = case_model(name)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)  # the first is a copy
    before = copy.deepcopy(dict(model.named_parameters()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.update_parameters(model)
    for key, value in average.module.named_parameters():
        torch.testing.assert_close(value, before[key] + 0.5)
    average.eval()
    with torch.no_grad():
        assert average(batch)[0]["sem_seg"].shape[0] == 7
    taps, copied = model.hicl.attachment.taps, average.module.hicl.attachment.taps
    assert all(copied[role] is not tap for role, tap in taps.items())


@pytest.mark.slow
@two_cases
def test_a_compiled_model_has_the_same_losses(name, batch):
    model = case_model(name)
    expected = losses_of(model, batch)
    found = losses_of(torch.compile(model, backend="eager"), batch)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_two_processes_train_without_looking_for_unused_parameters(tmp_path):
    multiprocessing.spawn(run, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert set(first) == set(CASES)
    for name, parameters in first.items():
        assert parameters == second[name], name
