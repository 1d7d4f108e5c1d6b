"""A weight of the gradient: the factor against gradients that autograd gives, running means, processes, state."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn

from hicl_d2.contrast import Contrast, strip
from hicl_d2.contrast.balance import FIRST, NEW, PERIOD, GradientBalance
from tests.contrast.attach_models import Tokens, attached, by_hand, make_batch, make_model
from tests.contrast.attach_processes import run_balanced


def _base_loss(logits: Tensor, labels: Tensor) -> Tensor:
    logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    return F.cross_entropy(logits, labels, ignore_index=255)


def _norms(
    model: nn.Module, contrast: Contrast, step: int, images: Tensor, labels: Tensor
) -> tuple[float, float, Tensor]:
    """Return the norms of both gradients at the features, each by a backward pass of its own, and the contrast."""
    features, logits = by_hand(model, images)
    loss = contrast(features, labels, logits, seed=(3 * 1_000_003 + step) * 4096).loss
    (own,) = torch.autograd.grad(loss, features, retain_graph=True)
    (others,) = torch.autograd.grad(_base_loss(logits, labels), features)
    return own.norm().item(), others.norm().item(), loss


def test_the_contrast_is_scaled_by_the_ratio_of_gradients_that_autograd_gives() -> None:
    model, branch = attached(weight=0.4, weight_of="gradient")
    twin, contrast = make_model(), copy.deepcopy(branch)
    own = others = 0.0
    for step in range(2 * PERIOD + 3):
        images, labels = make_batch(seed=step)
        logits = model(images)
        loss = branch.loss(labels, describe=True)
        found_own, found_others, unweighted = _norms(twin, contrast, step, images, labels)
        factor = FIRST if step <= 0 else others / own
        torch.testing.assert_close(loss, 0.4 * factor * unweighted, rtol=1e-4, atol=1e-7)
        assert math.isclose(branch.diagnostics["hicl/weight"].item(), 0.4 * factor, rel_tol=1e-4)
        (loss + _base_loss(logits, labels)).backward()
        if step % PERIOD == 0:
            share = NEW if step else 1.0
            own += share * (found_own - own)
            others += share * (found_others - others)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_scaled_contrast_gets_the_same_weight(scale: float) -> None:
    """What a weight multiplies may be of any size: the gradient that arrives is the same."""
    found = []
    for factor in (1.0, scale):
        model, branch = attached(weight=0.3, weight_of="gradient")
        plain = branch.contrast
        branch.contrast = lambda *args, f=factor, p=plain: (lambda out: (f * out[0], out[1]))(p(*args))  # type: ignore[method-assign]
        images, labels = make_batch()
        for _ in range(2):
            logits = model(images)
            loss = branch.loss(labels)
            (loss + _base_loss(logits, labels)).backward()
        found.append(loss.item())
    assert math.isclose(*found, rel_tol=1e-4)


def test_token_sequences_are_measured_as_maps_are() -> None:
    settings: dict[str, Any] = {"feature": "layer", "logits": None, "grid": (8, 8), "weight_of": "gradient"}
    model, branch = attached(make_model(Tokens), **settings)
    images, labels = make_batch()
    output = model(images)
    (branch.loss(labels) + _base_loss(output, labels)).backward()
    twin = make_model(Tokens)
    tokens = twin.norm(twin.patches(images).flatten(2).transpose(1, 2))
    features = tokens.unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    contrast = branch(features, labels, seed=3 * 1_000_003 * 4096).loss
    (own,) = torch.autograd.grad(contrast, tokens, retain_graph=True)
    logits = twin.classifier(twin.layer(tokens).relu()).transpose(1, 2).unflatten(2, (8, 8))
    (others,) = torch.autograd.grad(_base_loss(logits, labels), tokens)
    expected = torch.stack([own.norm() ** 2, others.norm() ** 2, torch.tensor(1.0)])
    torch.testing.assert_close(branch.balance.latest, expected, rtol=1e-4, atol=0)


def test_gradients_that_are_not_finite_are_left_out() -> None:
    balance = GradientBalance()
    for value in (2.0, math.nan, math.inf):
        source = torch.ones(1, 2, 1, 1, requires_grad=True)
        passed = source * 1
        view = passed.view_as(passed)
        balance.measure(passed, view, torch.tensor(1.0))
        (view.sum() + value * passed.sum()).backward()
        balance.factor(1)
    assert balance.norms.tolist() == pytest.approx([math.sqrt(2), 2 * math.sqrt(2)])


def test_without_a_backward_pass_nothing_is_measured_and_evaluation_asks_for_nothing() -> None:
    model, branch = attached(weight_of="gradient")
    images, labels = make_batch()
    model(images)
    branch.loss(labels)
    assert branch.balance.latest.tolist() == [0, 0, 0]
    model.eval()
    with torch.no_grad(), branch.attachment.capturing() as seen:
        model(images)
    assert seen[0].watched is None


def test_a_training_goes_on_with_the_factor_that_it_had() -> None:
    def steps(model: nn.Module, branch: Any, count: int, first: int) -> list[float]:
        losses = []
        for step in range(first, first + count):
            images, labels = make_batch(seed=step)
            logits = model(images)
            loss = branch.loss(labels)
            (loss + _base_loss(logits, labels)).backward()
            losses.append(loss.item())
        return losses

    for stop in (1, 5):  # right after a measurement, and later
        model, branch = attached(weight_of="gradient")
        steps(model, branch, stop, 0)
        state = copy.deepcopy(model.state_dict())
        again, other = attached(weight_of="gradient")
        again.load_state_dict(state)
        assert steps(again, other, 8, stop) == steps(model, branch, 8, stop)
    assert not [name for name in strip(state) if "balance" in name]


def test_another_kind_of_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight_of must be loss or gradient, not 'share'"):
        attached(weight_of="share")


def test_processes_use_one_factor_the_root_mean_square_of_theirs(tmp_path: Path) -> None:
    multiprocessing.spawn(run_balanced, args=(str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one["factor"] == other["factor"]
    own, others = (math.sqrt((one["norms"][k] ** 2 + other["norms"][k] ** 2) / 2) for k in range(2))
    assert math.isclose(one["factor"], others / own, rel_tol=1e-5)
