"""A contrast attached to any module: the loss by hand, the model as it was, copies of their own, clear errors."""

import copy
import doctest
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn
from torch.optim.swa_utils import AveragedModel

from hicl_d2.contrast import CONTRASTS, Contrast, attach, build_contrast, ramp, strip
from hicl_d2.contrast.build import settings_of
from tests.contrast.attach_models import (
    CLASSES,
    Tokens,
    Toy,
    assert_same,
    attached,
    by_hand,
    gradients,
    make_batch,
    make_model,
)
from tests.contrast.attach_processes import run

# ---------------------------------------------------------------------------------------------- the loss


def test_the_examples_of_the_docstrings() -> None:
    failed, attempted = doctest.testmod(import_module("hicl_d2.contrast.attach"))
    assert failed == 0
    assert attempted >= 10


def test_the_loss_is_weight_times_ramp_times_the_contrast_at_every_step() -> None:
    model, branch = attached(weight=0.3, start_iter=1, warmup_iters=3)
    twin, contrast = make_model(), copy.deepcopy(branch)
    for step in range(6):
        images, labels = make_batch(seed=step)
        for each in (model, twin, contrast):
            each.zero_grad()
        model(images)
        loss = branch.loss(labels)
        loss.backward()
        features, logits = by_hand(twin, images)
        seed = (3 * 1_000_003 + step) * 4096
        expected = 0.3 * ramp(step, 3, 1) * contrast(features, labels, logits, seed=seed).loss
        expected.backward()
        assert torch.equal(loss, expected)
        assert (loss.item() > 0) == (step > 1)
        found = gradients(model)
        wanted = gradients(twin) | {f"hicl.{name}": value for name, value in gradients(contrast).items()}
        classifier = {name for name in found if name.startswith("classifier")}
        assert not classifier
        assert_same(found, {name: value for name, value in wanted.items() if name in found})
        assert {name for name in wanted if not name.startswith("classifier")} == set(found)
        with torch.no_grad():  # as an optimizer would
            for each in (model, twin):
                for parameter in (each.backbone.weight, each.backbone.bias):
                    parameter -= 0.1
    assert branch.steps == 6


def test_every_parameter_has_a_gradient_whatever_the_labels_and_before_the_start() -> None:
    for settings, fill in (({}, None), ({}, 255), ({"start_iter": 9}, None)):
        model, branch = attached(**settings)
        images, labels = make_batch()
        labels = labels if fill is None else torch.full_like(labels, fill)
        (model(images).sum() + branch.loss(labels)).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("side", ["input", "output"])
def test_either_side_of_a_module_is_read(side: str) -> None:
    model, branch = attached(feature="middle.0", side=side, logits=None)
    images, labels = make_batch()
    model(images)
    features = model.backbone(images)
    features = features if side == "input" else model.middle[0](features)
    assert branch.in_channels == 12
    assert torch.equal(branch.loss(labels), 0.1 * branch(features, labels, seed=3 * 1_000_003 * 4096).loss)


def test_token_sequences_are_laid_over_their_grid() -> None:
    model, branch = attached(make_model(Tokens), grid=(8, 8))
    images, labels = make_batch()
    logits = model(images)
    loss = branch.loss(labels)
    with torch.no_grad():
        tokens = model.layer(model.norm(model.patches(images).flatten(2).transpose(1, 2))).relu()
        features = tokens.transpose(1, 2).reshape(2, 12, 8, 8)
        expected = branch(features, labels, logits, seed=3 * 1_000_003 * 4096).loss
    torch.testing.assert_close(loss, 0.1 * expected)
    loss.backward()
    assert model.layer.weight.grad.any()


def test_logits_are_made_of_what_the_module_gives() -> None:
    class Queries(Toy):
        def forward(self, images: Tensor) -> Any:
            x = self.middle(self.backbone(images))
            return self.head((self.classifier(x), x))

    model = make_model(Queries)
    model.head = nn.Identity()
    model, branch = attached(model, logits="head", to_logits=first_of)
    plain, reference = attached()
    images, labels = make_batch()
    model(images), plain(images)
    assert torch.equal(branch.loss(labels), reference.loss(labels))


def first_of(values: tuple[Tensor, Tensor]) -> Tensor:
    return values[0]


def test_the_contrast_and_its_settings_are_named() -> None:
    _, branch = attached(contrast="pixel_memory", remembered=7, ignore_value=9)
    assert type(branch) is type(build_contrast("pixel_memory", 12, CLASSES))
    assert branch.ignore_value == 9


def test_no_setting_of_a_contrast_has_the_name_of_a_parameter_of_attach() -> None:
    """It would not reach the contrast."""
    for name in CONTRASTS:
        settings = settings_of(type(build_contrast(name, 12, CLASSES)))
        assert not settings & set(signature(attach).parameters)


@pytest.mark.parametrize("name", ["pixel", "pixel_memory", "multiscale", "region", "contextual"])
def test_peers_attach_like_hicl(name: str) -> None:
    model, branch = attached(contrast=name)
    images, labels = make_batch()
    (model(images).sum() + branch.loss(labels)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_figures_are_made_when_asked_for() -> None:
    model, branch = attached()
    images, labels = make_batch()
    model(images)
    branch.loss(labels)
    assert branch.diagnostics == {}
    model(images)
    loss = branch.loss(labels, describe=True)
    torch.testing.assert_close(branch.diagnostics["hicl/loss"] * 0.1, loss.detach())


# ---------------------------------------------------------------------------------------------- the model


def test_the_model_keeps_class_keys_outputs_and_random_state() -> None:
    plain = make_model()
    before = torch.get_rng_state()
    model, branch = attached(make_model())
    assert torch.equal(torch.get_rng_state(), before)
    assert type(model) is Toy
    assert model.hicl is branch
    assert dict(model.named_children())["hicl"] is branch
    assert [key for key in model.state_dict() if not key.startswith("hicl.")] == list(plain.state_dict())
    images, _ = make_batch()
    assert torch.equal(model(images), plain(images))
    assert torch.equal(model.eval()(images), plain.eval()(images))


def test_detaching_gives_the_plain_model_back() -> None:
    plain = make_model()
    model, branch = attached(make_model())
    assert branch.detach() is model
    assert list(model.state_dict()) == list(plain.state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not hasattr(model, "hicl")
    for call in (branch.detach, lambda: branch.loss(make_batch()[1])):
        with pytest.raises(RuntimeError, match="not attached"):
            call()
    again = attach(model, feature="classifier", num_classes=CLASSES)
    assert model.hicl is again


def test_strip_finds_a_contrast_below_other_modules() -> None:
    class Task(nn.Module):
        def __init__(self, *models: nn.Module) -> None:
            super().__init__()
            self.models = nn.ModuleList(models)

    plain = Task(make_model(), make_model()).state_dict()
    model = Task(attached(weight_of="gradient")[0], attached(bank_size=3)[0])
    assert any(".hicl." in key for key in model.state_dict())
    assert list(strip(model.state_dict())) == list(plain)
    averaged = AveragedModel(model).state_dict()
    assert list(strip(averaged)) == ["n_averaged", *(f"module.{key}" for key in plain)]


def test_strip_of_a_whole_checkpoint_is_refused() -> None:
    model, _ = attached()
    checkpoint = {"model": model.state_dict(), "optimizer": {}, "epoch": 3}
    with pytest.raises(ValueError, match="this holds others: model, optimizer; give the one of the model"):
        strip(checkpoint)


def test_strip_gives_the_plain_weights_also_of_a_wrapped_model() -> None:
    plain = make_model()
    model, _ = attached()
    plain.load_state_dict(strip(model.state_dict()))
    average = AveragedModel(model)
    assert [key for key in strip(average.state_dict()) if "hicl" in key] == []
    assert "n_averaged" in strip(average.state_dict())
    of_others = {"encoder.hicl.weight": 1, "hiclassifier.weight": 2, "_orig_mod.module.hicl.steps": 3}
    assert list(strip(of_others)) == ["encoder.hicl.weight", "hiclassifier.weight"]


def test_frozen_parts_and_modes_survive_the_blank_forward() -> None:
    model = make_model().train()
    model.middle[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    attach(model, feature="middle.2", side="output", num_classes=CLASSES, example=torch.zeros(1, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert not model.middle[1].training
    assert_same(strip(model.state_dict()), state)


@pytest.mark.parametrize(
    "example",
    [torch.zeros(1, 3, 32, 32), (torch.zeros(1, 3, 32, 32),), {"images": torch.zeros(1, 3, 32, 32)}],
)
def test_channels_are_found_by_an_example(example: Any) -> None:
    _, branch = attached(feature="middle.2", side="output", example=example)
    assert branch.in_channels == 12


@pytest.mark.parametrize(
    ("stride", "windows"),
    [(1, (4, 8, 16, 32)), (2, (2, 4, 8, 16)), (4, (1, 2, 4, 8)), (8, (1, 2, 4))],
)
def test_automatic_windows_keep_their_sides_in_image_pixels(stride: int, windows: tuple[int, ...]) -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.classifier = nn.Conv2d(3, 6, 3, stride, 1), nn.Conv2d(6, CLASSES, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.classifier(self.backbone(images))

    for found in ({"example": torch.zeros(1, 3, 64, 64)}, {"stride": stride}):
        _, branch = attached(Strided(), windows="auto", **found)
        assert tuple(level.window for level in branch.levels) == windows


def test_a_double_model_gets_a_double_contrast() -> None:
    model, branch = attached(make_model().double())
    images, labels = make_batch()
    model(images.double())
    assert branch.loss(labels).dtype == torch.float64


# ---------------------------------------------------------------------------------------------- training


def test_evaluation_between_two_steps_captures_nothing_and_spends_no_step() -> None:
    model, branch = attached()
    images, labels = make_batch()
    model(images)
    branch.loss(labels)
    model.eval()
    model(images)
    assert all(tap.value is None and not tap.armed for tap in branch.attachment.taps.values())
    with pytest.raises(RuntimeError, match="eval mode"):
        branch.loss(labels)
    model.train()
    assert branch.steps == 1


def test_accumulated_gradients_are_those_of_the_parts() -> None:
    model, branch = attached()
    twin, contrast = make_model(), copy.deepcopy(branch)
    for step in range(3):
        images, labels = make_batch(seed=step)
        model(images)
        (branch.loss(labels) / 3).backward()
        features, logits = by_hand(twin, images)
        seed = (3 * 1_000_003 + step) * 4096
        (0.1 * contrast(features, labels, logits, seed=seed).loss / 3).backward()
    assert branch.steps == 3
    wanted = gradients(twin) | {f"hicl.{name}": value for name, value in gradients(contrast).items()}
    for name, value in gradients(model).items():
        torch.testing.assert_close(value, wanted[name], msg=name)


@pytest.mark.parametrize(
    ("feature", "side"), [("middle.0", "output"), ("middle", "output"), ("classifier", "input")]
)
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(feature: str, side: str) -> None:
    images, labels = make_batch()
    results = []
    for checkpointed in (False, True):
        model, branch = attached(
            make_model(checkpointed=checkpointed), feature=feature, side=side, in_channels=12
        )
        for _ in range(2):
            model.zero_grad()
            loss = F.cross_entropy(model(images), labels[:, ::4, ::4], ignore_index=255) + branch.loss(labels)
            loss.backward()
        assert all(tap.value is None for tap in branch.attachment.taps.values())
        results.append((loss.detach(), gradients(model)))
    assert torch.equal(results[0][0], results[1][0])
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value, msg=name)


def test_a_reentrant_checkpoint_is_read_outside_and_refused_inside() -> None:
    images, labels = make_batch()
    images.requires_grad_()
    model, branch = attached(make_model(checkpointed=True, reentrant=True))
    model(images)
    assert branch.loss(labels) > 0
    model, branch = attached(make_model(checkpointed=True, reentrant=True), feature="middle.0", side="output")
    model(images)
    with pytest.raises(RuntimeError, match=r"carries no gradient.*use_reentrant=False"):
        branch.loss(labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_contrast_stays_in_float32(dtype: torch.dtype) -> None:
    model, branch = attached()
    images, labels = make_batch()
    with torch.autocast("cpu", dtype=dtype):
        logits = model(images)
        loss = branch.loss(labels)
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in branch.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("whole_step", [False, True])
def test_a_compiled_model_has_the_same_losses_and_gradients(backend: str, whole_step: bool) -> None:
    images, labels = make_batch()

    def step(model: Any, branch: Contrast) -> Tensor:
        logits = F.interpolate(model(images), scale_factor=4.0, mode="bilinear")
        return F.cross_entropy(logits, labels, ignore_index=255) + branch.loss(labels)

    results = []
    for compiled in (False, True):
        torch.compiler.reset()
        model, branch = attached()
        take = torch.compile(step, backend=backend) if compiled and whole_step else step
        called = torch.compile(model, backend=backend) if compiled and not whole_step else model
        losses = []
        for _ in range(3):
            model.zero_grad()
            loss = take(called, branch)
            loss.backward()
            losses.append(loss.detach())
            model.eval()
            called(images)
            assert branch.attachment.taps["feature"].value is None
            model.train()
        results.append((losses, gradients(model)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
    assert branch.steps == 3


@pytest.mark.slow
def test_two_processes_train_one_model_without_looking_for_unused_parameters(tmp_path: Path) -> None:
    multiprocessing.spawn(run, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert_same(first["state"], second["state"])
    assert first["steps"] == second["steps"] == 3
    assert first["losses"] != second["losses"]
    torch.testing.assert_close(first["losses"], first["expected"])
    torch.testing.assert_close(second["losses"], second["expected"])
