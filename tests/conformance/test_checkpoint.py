"""Checkpoints have Detectron2's names and content, and load across; foreign weights find the same places."""

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.engine.checkpoint import Checkpoints
from tests.conformance.runtimes import golden, load, needs_detectron2, plain


class _Block(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.conv1.norm = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(width, width, 1)


class _Model(nn.Module):
    """A model named as Detectron2's are: backbone, stem, stages, a head, and the pixel statistics."""

    def __init__(self, fill: float = 0.0) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Module()
        self.backbone.stem.conv1 = nn.Conv2d(3, 2, 1)
        self.backbone.res2 = nn.Sequential(_Block(), _Block())
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.predictor = nn.Conv2d(2, 4, 1)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(fill)


def _weights() -> dict[str, np.ndarray]:
    """Return weights as a classifier has them: names without their prefix, one shape wrong, one unknown."""
    return {
        "stem.conv1.weight": np.full((2, 3, 1, 1), 1.0, np.float32),
        "stem.conv1.bias": np.full(2, 2.0, np.float32),
        "res2.0.conv1.weight": np.full((2, 2, 1, 1), 3.0, np.float32),
        "res2.0.conv1.norm.running_mean": np.full(2, 4.0, np.float32),
        "res2.1.shortcut.weight": np.full((2, 2, 3, 3), 5.0, np.float32),
        "predictor.weight": np.full((4, 2, 1, 1), 6.0, np.float32),
        "head.predictor.bias": np.full(4, 7.0, np.float32),
        "fc.weight": np.full((2, 2), 8.0, np.float32),
    }


def _means(model: nn.Module) -> dict[str, float]:
    return {name: round(value.double().mean().item(), 6) for name, value in model.state_dict().items()}


def _saved(runtime: str, folder: Path) -> dict[str, Any]:
    model = _Model(1.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    checkpointer = load(runtime, "checkpoint").DetectionCheckpointer(model, str(folder), optimizer=optimizer)
    before = [checkpointer.has_checkpoint(), checkpointer.get_checkpoint_file()]
    hooks = load(runtime, "engine").hooks
    periodic = hooks.PeriodicCheckpointer(checkpointer, period=2, max_iter=5, max_to_keep=1)
    for iteration in range(5):
        periodic.step(iteration, note="kept")
    content = torch.load(folder / "model_final.pth", weights_only=True)
    return {
        "before": before,
        "files": sorted(file.name for file in folder.iterdir()),
        "last": (folder / "last_checkpoint").read_bytes().decode(),
        "keys": {key: sorted(value) if isinstance(value, dict) else value for key, value in content.items()},
        "found": Path(checkpointer.get_checkpoint_file()).name,
        "all": sorted(Path(file).name for file in checkpointer.get_all_checkpoint_files()),
    }


def _loaded(runtime: str, folder: Path) -> dict[str, Any]:
    checkpointer = load(runtime, "checkpoint").DetectionCheckpointer
    model = _Model(0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.1)
    extra = checkpointer(model, str(folder), optimizer=optimizer).resume_or_load("", resume=True)
    other = _Model(0.5)
    kept = torch.optim.SGD(other.parameters(), lr=0.5)
    rest = checkpointer(other, "", optimizer=kept).load(str(folder / "model_final.pth"), checkpointables=[])
    scratch = checkpointer(_Model(), "").resume_or_load("", resume=True)
    return {
        "extra": extra,
        "means": _means(model),
        "optimizer": [optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]],
        "without optimizer": [
            sorted(rest),
            kept.param_groups[0]["lr"],
            _means(other)["backbone.stem.conv1.bias"],
        ],
        "scratch": scratch,
    }


def _foreign(runtime: str, folder: Path) -> dict[str, Any]:
    arrays = _weights()
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    exact = {
        f"module.{name}": value for name, value in _Model(9.0).state_dict().items() if name != "pixel_mean"
    }
    files = {
        "by name.pkl": {"model": arrays, "__author__": "someone", "matching_heuristics": True},
        "as is.pkl": {"model": {f"backbone.{k}": v for k, v in arrays.items()}, "__author__": "someone"},
        "bare.pth": {f"backbone.{name}": value for name, value in tensors.items()},
        "query.pth": {"model": tensors},
        "parallel.pth": {"model": exact},
    }
    seen: dict[str, Any] = {}
    for name, content in files.items():
        path = folder / name
        if path.suffix == ".pkl":
            path.write_bytes(pickle.dumps(content, protocol=2))
        else:
            torch.save(content, path)
        model = _Model(0.0)
        checkpointer = load(runtime, "checkpoint").DetectionCheckpointer(model)
        incompatible: list[Any] = []
        checkpointer._log_incompatible_keys = incompatible.append
        extra = checkpointer.load(str(path) + ("?matching_heuristics=True" if name == "query.pth" else ""))
        seen[name] = {
            "means": _means(model),
            "extra": sorted(extra),
            "missing": sorted(incompatible[0].missing_keys),
            "unexpected": sorted(incompatible[0].unexpected_keys),
            "shapes": sorted([name, list(a), list(b)] for name, a, b in incompatible[0].incorrect_shapes),
        }
    return seen


def figures(runtime: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        return {
            "saved": _saved(runtime, Path(folder)),
            "loaded": _loaded(runtime, Path(folder)),
            "foreign": _foreign(runtime, Path(other)),
        }


def test_lite_equals_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("checkpoint")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("checkpoint")


def test_the_recorded_names_count_from_0_and_the_tag_has_no_line_end() -> None:
    saved = golden("checkpoint")["saved"]
    assert saved["files"] == ["last_checkpoint", "model_0000003.pth", "model_final.pth"]
    assert saved["last"] == "model_final.pth"


@needs_detectron2
@pytest.mark.parametrize(("writer", "reader"), [("lite", "detectron2"), ("detectron2", "lite")])
def test_a_checkpoint_written_by_either_loads_in_the_other(writer: str, reader: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _Model()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    written = load(writer, "checkpoint").DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    written.save("model_0000009", iteration=9)

    other = _Model()
    resumed = torch.optim.AdamW(other.parameters(), lr=0.2)
    read = load(reader, "checkpoint").DetectionCheckpointer(other, str(tmp_path), optimizer=resumed)
    assert read.resume_or_load("nothing.pth") == {"iteration": 9}
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(map(torch.equal, moments, [state["exp_avg"] for state in resumed.state.values()]))
    assert resumed.param_groups[0]["lr"] == 0.1


@needs_detectron2
@pytest.mark.skipif(not USES_DETECTRON2, reason="the door does not lead to Detectron2 here")
def test_weights_of_detectron2s_catalog_are_taken_from_where_the_line_says_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", _no_network)
    name = "catalog://ImageNetPretrained/MSRA/R-50"
    with pytest.raises(InputError, match="Detectron2's catalog has no such model"):
        Checkpoints(_Model()).load_weights(f"{name}-999", whole=False)
    with pytest.raises(
        InputError, match=r"cannot be fetched.*fetch R-50\.pkl elsewhere and put it into"
    ) as error:
        Checkpoints(_Model()).load_weights(name, whole=False)
    assert "\n" not in str(error.value)
    folder = Path(str(error.value).rpartition("put it into ")[2])
    folder.mkdir(parents=True, exist_ok=True)
    blobs = {"conv1_w": np.full((2, 3, 1, 1), 3.0, np.float32), "conv1_b": np.full(2, 4.0, np.float32)}
    (folder / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    model = _Model()
    Checkpoints(model).load_weights(name, whole=False)
    assert model.backbone.stem.conv1.weight.unique().tolist() == [3.0]


def _no_network(*_: Any, **__: Any) -> Any:
    raise OSError("there is no network")
