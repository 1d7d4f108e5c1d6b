"""Weights are found in every layout that trainers and wrappers give them, or one line says which key to name."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.engine.checkpoint import Checkpoints


def _model() -> nn.Module:
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.head = nn.Linear(4, 2)
    return model


def _after(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}


SOURCE = _model()
STATE = SOURCE.state_dict()
OTHER = {name: torch.zeros_like(value) for name, value in STATE.items()}
ARRAYS = {name: value.numpy() for name, value in STATE.items()}
AVERAGED = torch.optim.swa_utils.AveragedModel(SOURCE)

LAYOUTS: dict[str, Any] = {
    "Detectron2, timm's older, torchvision's references, DETR": {
        "model": STATE,
        "epoch": 3,
        "optimizer": {"state": {}},
    },
    "names alone": STATE,
    "PyTorch's ImageNet example": {"state_dict": _after("module.", STATE), "best_acc1": torch.tensor(70.0)},
    "its tutorial": {
        "model_state_dict": STATE,
        "optimizer_state_dict": {"state": {}},
        "loss": np.float64(0.5),
    },
    "Lightning": {"state_dict": {**_after("model.", STATE), "criterion.weight": torch.ones(3)}, "epoch": 1},
    "Lightning, another attribute": {"state_dict": _after("segmenter.", STATE), "global_step": 1},
    "Lightning, net": {"state_dict": _after("net.", STATE)},
    "Lightning with an average": {
        "state_dict": {**_after("ema_model.module.", OTHER), **_after("model.", STATE)}
    },
    "compiled": _after("_orig_mod.", STATE),
    "compiled and distributed": {"model": _after("module._orig_mod.", STATE)},
    "distributed and compiled": {"model": _after("_orig_mod.module.", STATE)},
    "a compiled backbone": {n.replace("backbone.", "backbone._orig_mod."): v for n, v in STATE.items()},
    "timm": {"arch": "x", "state_dict": STATE, "state_dict_ema": OTHER},
    "ConvNeXt, with an average": {"model": STATE, "model_ema": OTHER},
    "an average alone": {"ema_state_dict": STATE, "step": 9},
    "torch's average": AVERAGED.state_dict(),
    "a section": {"ema": {"decay": 0.9, "state_dict": STATE}},
    "a section called model": {"model": {"state_dict": STATE, "epoch": 1}},
    "Paddle's and basicsr's": {"params": STATE},
    "arrays": {"model": ARRAYS},
    "arrays, names alone": ARRAYS,
    "arrays of the other byte order": {
        "model": {n: v.astype(v.dtype.newbyteorder(">")) for n, v in ARRAYS.items()}
    },
    "NumPy's numbers": {
        "model": {**STATE, "backbone.1.num_batches_tracked": np.int64(0)},
        "best": np.float32(1),
    },
}


def _load(content: Any, file: Path, key: str = "") -> nn.Module:
    torch.save(content, file)
    model = _model()
    Checkpoints(model).load_weights(f"{file}{f'?key={key}' if key else ''}", whole=True)
    return model


def _equal(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(layout: str, tmp_path: Path) -> None:
    _equal(_load(LAYOUTS[layout], tmp_path / "w.pth"), STATE)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"model": STATE, "model_ema": OTHER}, "model_ema"),
        ({"student": STATE, "teacher": OTHER}, "teacher"),
        ({"model": STATE, "ema": {"module": _after("module.", OTHER)}}, "ema.module"),
        ({**_after("student.", STATE), **_after("teacher.", OTHER)}, "teacher"),
        ({"state_dict": {**_after("model.", STATE), **_after("model_ema.", OTHER)}}, "model_ema"),
    ],
)
def test_a_key_names_the_other_weights(content: Any, key: str, tmp_path: Path) -> None:
    _equal(_load(content, tmp_path / "w.pth", key), OTHER)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"student": STATE, "teacher": OTHER},
            r"under student, teacher; name one of them: \S+w\.pth\?key=student",
        ),
        ({**_after("student.", STATE), **_after("teacher.", OTHER)}, r"student, teacher; name one of them"),
        (
            {"generator": STATE, "discriminator": {"x.weight": torch.ones(1)}, "d": 1},
            r"discriminator, generator",
        ),
        ({"model": {**STATE, "epoch": 3}, "ema": OTHER}, "epoch is of type int; expected a tensor"),
        ({"epoch": 3, "args": {"lr": 0.1}}, "epoch is of type int"),
        ({"model": 3}, "are of type int; expected names and tensors"),
        ([STATE], "are of type list"),
        ({"model": {1: torch.ones(1)}}, "a tensor is called 1, of type int; expected text"),
        ({"model": {"w": np.array(["a"])}}, r"w is an array of \S*U1; expected numbers"),
        ({"model": {"w": np.array([None])}}, "w is an array of object; expected numbers"),
    ],
)
def test_what_holds_several_or_none_is_one_line(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _load(content, tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_a_key_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"under emma; there are ema, model"):
        _load({"model": STATE, "ema": OTHER}, tmp_path / "w.pth", "emma")


def test_the_versions_of_modules_stay_with_their_state(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "w.pth")
    content = Checkpoints(_model())._torch_load(str(tmp_path / "w.pth"))
    assert isinstance(content["model"], OrderedDict)
    assert content["model"]._metadata == STATE._metadata


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["backbone.0.weight", "backbone.1.running_var", "head.bias"])
def test_what_is_not_finite_is_named(name: str, value: float, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in STATE.items()}
    state[name].view(-1)[1] = value
    count = state[name].numel()
    with pytest.raises(InputError, match=rf"w\.pth: 1 of the {count} values of {name} are NaN or infinite"):
        _load({"model": state}, tmp_path / "w.pth")


def test_a_mask_may_be_infinite(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2,), float("-inf")))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    Checkpoints(model).load_weights(str(tmp_path / "w.pth"), whole=True)


def test_what_the_model_does_not_have_may_be_anything(tmp_path: Path) -> None:
    _equal(_load({"model": {**STATE, "extra": torch.tensor(float("nan"))}}, tmp_path / "w.pth"), STATE)
