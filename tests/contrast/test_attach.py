"""A contrast attached to any module: the loss by hand, the model as it was, copies of their own, clear errors."""

import copy
import doctest
import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from hicl_d2.contrast import Contrast, attach, build_contrast, ramp, strip
from tests.contrast.attach_processes import run

CLASSES = 4
SETTINGS: dict[str, Any] = {
    "windows": (1, 2), "anchors": 48, "components": 48, "dim": 8, "hidden_dim": 8
}  # fmt: skip


class Toy(nn.Module):
    """A segmentor of stride 4, whose middle may be recomputed in backward."""

    def __init__(self, checkpointed: bool = False, reentrant: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 12, 3, stride=4, padding=1)
        self.middle = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.GELU())
        self.classifier = nn.Conv2d(12, CLASSES, 1)
        self.checkpointed, self.reentrant = checkpointed, reentrant

    def forward(self, images: Tensor) -> Tensor:
        x = self.backbone(images)
        if self.checkpointed and self.training:
            x = checkpoint(self.middle, x, use_reentrant=self.reentrant)
        else:
            x = self.middle(x)
        return self.classifier(x)


class Tokens(nn.Module):
    """A segmentor that works on token sequences (B, N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.norm = nn.LayerNorm(12)
        self.layer = nn.Linear(12, 12)
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.patches(images).flatten(2).transpose(1, 2))
        return self.classifier(self.layer(x).relu()).transpose(1, 2).unflatten(2, (8, 8))


def make_batch(seed: int = 0, size: int = 32, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(CLASSES, (batch, size // 8, size // 8), generator=generator)
    labels = patches.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :2] = 255
    return torch.randn(batch, 3, size, size, generator=generator), labels


def make_model(kind: type[nn.Module] = Toy, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(**settings)


def attached(model: nn.Module | None = None, **settings: Any) -> tuple[nn.Module, Contrast]:
    """Return a model and its contrast; by default `Toy` read before and after its classifier."""
    model = make_model() if model is None else model
    options = {"feature": "classifier", "logits": "classifier", "num_classes": CLASSES, "seed": 3}
    return model, attach(model, **{**options, **SETTINGS, **settings})


def by_hand(model: Toy, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features before the classifier and the logits, without any hook."""
    features = model.middle(model.backbone(images))
    return features, model.classifier(features)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


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
    [(1, (4, 8, 16, 32, 64)), (2, (2, 4, 8, 16, 32)), (4, (1, 2, 4, 8, 16)), (8, (1, 2, 4, 8))],
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


# ---------------------------------------------------------------------------------------------- copies


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
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
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


# ---------------------------------------------------------------------------------------------- saved state


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


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature": "clasifier"}, r"feature: Toy has no module 'clasifier'; did you mean classifier\?.*candidates"),
        ({"feature": "middle.7"}, r"no module 'middle\.7'.*candidates below middle: middle\.0, middle\.1, middle\.2"),
        ({"feature": ""}, "feature: Toy has no module ''"),
        ({"logits": "classifierr"}, "logits: .*did you mean classifier"),
        ({"image": "bacbone"}, "image: .*did you mean backbone"),
        ({"side": "inputs"}, "input or output, not 'inputs'"),
        ({"num_classes": 19}, "gives 4 channels, but num_classes is 19"),
        ({"in_channels": 9}, "in_channels is 9, but .* has 12 channels"),
        ({"feature": "middle.2"}, "give in_channels= or example="),
        ({"windows": "auto"}, "stride .* give stride= or example="),
        ({"contrast": "hickl"}, "no contrast is called 'hickl'"),
        ({"anchor": 3}, "no contrast takes anchor"),
        ({"feature": "unused", "example": torch.zeros(1, 3, 32, 32)}, "example: .*unused was not called"),
        ({"windows": "auto", "example": torch.zeros(1, 3, 32, 32), "image": "unused"}, "unused was not called"),
    ],
)  # fmt: skip
def test_what_cannot_be_attached_is_refused_and_leaves_the_model_alone(settings: Any, message: str) -> None:
    model = make_model()
    model.unused = nn.GELU()
    with pytest.raises(ValueError, match=message):
        attached(model, **settings)
    assert not hasattr(model, "hicl")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_attaching_twice_is_refused() -> None:
    model, branch = attached()
    with pytest.raises(ValueError, match=r"has a contrast already; model\.hicl\.detach\(\)"):
        attached(model)
    assert model.hicl is branch


def test_models_that_would_not_see_the_contrast_are_refused(tmp_path: Path) -> None:
    sequence = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, CLASSES, 1))
    named = make_model()
    named.hicl = nn.Identity()
    compiled = make_model()
    compiled.compile(backend="eager")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(make_model())
        for model, message in (
            (sequence, "Sequential uses its children one after the other"),
            (named, "an attribute hicl of its own"),
            (compiled, "before it is compiled"),
            (torch.compile(make_model(), backend="eager"), "before it is compiled"),
            (nn.DataParallel(make_model()), "before it is wrapped"),
            (wrapped, "before it is wrapped"),
        ):
            with pytest.raises(ValueError, match=message):
                attach(model, feature="1", num_classes=CLASSES)
    finally:
        del wrapped
        torch.distributed.destroy_process_group()


class Strange(Toy):
    """Calls its classifier as often as it is told, on features of a form that it is told."""

    def forward(self, images: Tensor, times: int = 1, form: str = "map") -> Any:  # type: ignore[override]
        features = {
            "map": lambda x: x,
            "tokens": lambda x: x.flatten(2).transpose(1, 2),
            "tuple": lambda x: (x,),
            "detached": lambda x: x.detach(),
            "integer": lambda x: x.long(),
            "narrow": lambda x: x[:, 1:],
        }[form](self.middle(self.backbone(images)))
        for _ in range(times):
            self.probe(features)
        return features


def strange() -> tuple[nn.Module, Contrast]:
    model = make_model(Strange)
    model.probe = nn.Identity()
    return attached(model, feature="probe", logits=None, in_channels=12)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"times": 0}, RuntimeError, "probe was not called in this training step"),
        ({"times": 2}, RuntimeError, "probe was called 2 times in one forward"),
        (
            {"form": "tokens"},
            RuntimeError,
            r"must be a \(B, C, h, w\) tensor, not \(2, 64, 12\).*give its grid",
        ),
        ({"form": "tuple"}, RuntimeError, r"must be a \(B, C, h, w\) tensor, not tuple"),
        ({"form": "detached"}, RuntimeError, "probe carries no gradient"),
        ({"form": "narrow"}, ValueError, r"must be \(B, 12, h, w\)"),
    ],
)
def test_features_that_cannot_be_read_are_said_at_the_loss(given: Any, error: Any, message: str) -> None:
    model, branch = strange()
    images, labels = make_batch()
    model(images, **given)
    with pytest.raises(error, match=message):
        branch.loss(labels)
    with pytest.raises(RuntimeError, match="nothing was captured"):
        branch.loss(labels)
    model(images)
    assert branch.loss(labels) > 0


def test_a_grid_that_does_not_hold_the_tokens_is_named() -> None:
    model, branch = attached(make_model(Tokens), grid=(8, 9))
    images, labels = make_batch()
    model(images)
    with pytest.raises(RuntimeError, match="64 tokens, but a grid of 8 x 9 holds 72"):
        branch.loss(labels)


def test_one_loss_belongs_to_one_forward() -> None:
    model, branch = attached()
    images, labels = make_batch()
    with pytest.raises(RuntimeError, match="has not been called since the contrast was attached"):
        branch.loss(labels)
    model(images)
    branch.loss(labels)
    with pytest.raises(RuntimeError, match="has been used"):
        branch.loss(labels)
    model.forward(images)  # passes by the hooks
    with pytest.raises(RuntimeError, match="call the model itself"):
        branch.loss(labels)
    with pytest.raises(RuntimeError, match="channels"):
        model(images[:, :2])
    with pytest.raises(RuntimeError, match="did not come to an end"):
        branch.loss(labels)
    assert branch.steps == 1


def test_training_without_gradients_needs_none() -> None:
    """Recomputing batch statistics runs the model in training mode without gradients."""
    model, branch = attached()
    images, labels = make_batch()
    with torch.no_grad():
        model(images)
        assert branch.loss(labels) > 0


def test_a_frozen_model_is_refused() -> None:
    model = make_model().requires_grad_(False)
    model, branch = attached(model)
    images, labels = make_batch()
    model(images)
    with pytest.raises(RuntimeError, match=r"carries no gradient.*frozen"):
        branch.loss(labels)


@pytest.mark.parametrize("factor", [2, 4])
def test_labels_of_a_whole_ratio_to_the_images_are_aligned(factor: int) -> None:
    model, branch = attached()
    images, labels = make_batch()
    losses = []
    for given in (
        labels,
        labels[:, ::factor, ::factor],
        labels.repeat_interleave(factor, 1).repeat_interleave(factor, 2),
    ):
        branch.steps = 0
        model(images)
        losses.append(branch.loss(given).item())
    if factor == 2:  # every block of 2 x 2 pixels has one label
        assert losses[1] == losses[0]
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)


def test_labels_coarser_than_the_features_are_aligned() -> None:
    model, branch = attached()
    images, labels = make_batch()
    labels[:, :8] = 255
    losses = []
    for given in (labels, labels[:, ::8, ::8]):
        branch.steps = 0
        model(images)
        losses.append(branch.loss(given).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.zeros(2, 30, 30, dtype=torch.long),
            "labels of 30 x 30 pixels do not lie on images of 32 x 32",
        ),
        (
            torch.zeros(2, 32, 64, dtype=torch.long),
            "labels of 32 x 64 pixels do not lie on images of 32 x 32",
        ),
        (
            torch.zeros(2, 64, 96, dtype=torch.long),
            "labels of 64 x 96 pixels do not lie on images of 32 x 32",
        ),
        (
            torch.zeros(1, 32, 32, dtype=torch.long),
            r"labels must be \(2, H, W\) of an integer type, not \(1, 32, 32\)",
        ),
        (torch.zeros(2, 1, 32, 32, dtype=torch.long), r"not \(2, 1, 32, 32\)"),
        (torch.zeros(2, 32, 32), "integer type.*float32"),
        (torch.zeros(2, 32, 32, dtype=torch.bool), "integer type.*bool"),
        ([[1]], "not list"),
        (
            torch.full((2, 32, 32), 4),
            r"labels hold 4, neither a class \(0 to 3\) nor the ignore value \(255\)",
        ),
        (torch.full((2, 32, 32), -100), "labels hold -100, neither"),
        (torch.full((2, 32, 32), 254, dtype=torch.uint8), "labels hold 254, neither"),
        (torch.arange(32).expand(2, 32, 32), "labels hold 4, 5, 6, 7, 8, neither"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Any, message: str) -> None:
    model, branch = attached()
    model(make_batch()[0])
    with pytest.raises(ValueError, match=message):
        branch.loss(labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ignored", [255, -100, 65535, 0])
def test_the_ignore_value_is_no_mistake(dtype: torch.dtype, ignored: int) -> None:
    if not torch.iinfo(dtype).min <= ignored <= torch.iinfo(dtype).max:
        pytest.skip("this type does not hold the value")
    model, branch = attached(ignore_value=ignored)
    images, labels = make_batch()
    labels = torch.where(labels == 255, ignored, labels).to(dtype)
    model(images)
    assert branch.loss(labels) > 0


def test_labels_on_a_device_are_looked_at_in_the_first_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host would have to wait for the answer."""
    attachment = import_module("hicl_d2.contrast.attachment")
    monkeypatch.setattr(attachment, "on_host", lambda tensor: False)
    model, branch = attached()
    images, labels = make_batch()
    wrong = torch.full_like(labels, 77)
    model(images)
    with pytest.raises(ValueError, match="labels hold 77"):
        branch.loss(wrong)
    for _ in range(attachment._LOOKS):
        model(images)
        branch.loss(labels)
    model(images)
    assert branch.loss(wrong).item() == 0


def test_a_contrast_of_ones_own_says_that_it_is_not_attached() -> None:
    with pytest.raises(RuntimeError, match="not attached to a model"):
        build_contrast("hicl", 3, CLASSES).loss(make_batch()[1])
