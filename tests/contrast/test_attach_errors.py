"""What cannot be attached, captured or read is said in one clear line."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hicl_d2.contrast import Contrast, attach, build_contrast
from tests.contrast.attach_models import CLASSES, Tokens, Toy, attached, make_batch, make_model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature": "clasifier"}, r"feature: Toy has no module 'clasifier'; did you mean classifier\?.*candidates"),
        ({"feature": "middle.7"}, r"no module 'middle\.7'.*candidates below middle: middle\.0, middle\.1, middle\.2"),
        ({"feature": ""}, "feature: Toy has no module ''; candidates"),
        ({"feature": None}, "feature must be the name of a module, not NoneType"),
        ({"weight": "0.1"}, "weight must be a number from 0 on, not '0.1'"),
        ({"weight": -1}, "weight must be a number from 0 on, not -1"),
        ({"weight": float("nan")}, "weight must be a number from 0 on, not nan"),
        ({"weight": None}, "weight must be a number from 0 on, not None"),
        ({"start_iter": 0.5}, "start_iter must be a whole number from 0 on, not 0.5"),
        ({"warmup_iters": -1}, "warmup_iters must be a whole number from 0 on, not -1"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"grid": 8}, r"grid must be \(h, w\).*not 8"),
        ({"grid": (8, 0)}, "grid's width must be a whole number from 1 on, not 0"),
        ({"stride": 0, "windows": "auto"}, "stride must be a whole number from 1 on, not 0"),
        ({"num_classes": 4.0}, "num_classes must be a whole number from 1 on, not 4.0"),
        ({"hidden_dim": 0}, "hidden_dim must be a whole number from 1 on, not 0"),
        ({"windows": (1.0, 2.0)}, "windows must be whole numbers"),
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


def test_a_module_in_place_of_its_name_is_told_its_name() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="feature must be the name of a module: 'classifier', not Conv2d"):
        attached(model, feature=model.classifier)


@pytest.mark.parametrize("seed", [2**63, -(2**63), torch.iinfo(torch.int64).max, 10**30])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    losses = []
    for each in (seed, seed, seed + 1):
        model, branch = attached(seed=each, anchors=8, components=8)
        model.load_state_dict(attached(seed=0, anchors=8, components=8)[0].state_dict())
        images, labels = make_batch()
        model(images)
        losses.append(branch.loss(labels).item())
    assert losses[0] == losses[1] != losses[2]


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
            (torch.jit.script(nn.Conv2d(3, CLASSES, 1)), "before torch.jit"),
            (torch.jit.trace(make_model(), make_batch()[0]), "before torch.jit"),
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


DTYPES = [
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_of_every_integer_type_give_the_same(dtype: torch.dtype) -> None:
    model, branch = attached(ignore_value=100)
    images, labels = make_batch()
    labels = torch.where(labels == 255, 100, labels)
    losses = []
    for each in (labels, labels.to(dtype)):
        model(images)
        branch.steps = 0
        losses.append(branch.loss(each).item())
    assert losses[0] == losses[1] > 0
    model(images)
    with pytest.raises(ValueError, match="labels hold 101, neither"):
        branch.loss(torch.full_like(labels, 101).to(dtype))
    features = torch.randn(2, 12, 8, 8)
    assert torch.equal(*(branch(features, each, seed=0).loss for each in (labels, labels.to(dtype))))


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


def test_a_contrast_in_half_precision_is_refused_and_its_model_is_not() -> None:
    model, branch = attached()
    images, labels = make_batch()
    model.bfloat16()
    model(images.bfloat16())
    with pytest.raises(
        ValueError, match=r"computes in float32, but its parameters are torch\.bfloat16; call float\(\)"
    ):
        branch.loss(labels)
    branch.float()
    model(images.bfloat16())
    assert branch.loss(labels).dtype == torch.float32
