"""Checkpoints are whole, the best one stands apart, and weights of another model are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.d2.checkpoint import DetectionCheckpointer
from hicl_d2.d2.utils import EventStorage
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.engine.hooks import BestCheckpoint


def _model(channels: int = 2) -> nn.Module:
    model = nn.Module()
    model.backbone = nn.Linear(3, channels)
    model.head = nn.Sequential(nn.Linear(channels, channels), nn.BatchNorm1d(channels))
    return model


def _with_branch() -> nn.Module:
    model = _model()
    model.hicl = nn.Linear(2, 2)
    return model


def _save(model: nn.Module, file: Path, only: str = "") -> str:
    torch.save({"model": {k: v for k, v in model.state_dict().items() if k.startswith(only)}}, file)
    return str(file)


def test_detectron2_reads_what_is_written(tmp_path: Path) -> None:
    model = _model()
    Checkpoints(model, str(tmp_path)).save("model_0000004", iteration=4)
    assert (tmp_path / "last_checkpoint").read_bytes() == b"model_0000004.pth"
    other = _model()
    extra = DetectionCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert extra["iteration"] == 4
    assert torch.equal(other.backbone.weight, model.backbone.weight)


def test_a_failed_save_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(_model(), str(tmp_path))
    checkpoints.save("model_0000001", iteration=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(content: Any, stream: Any) -> None:
        stream.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    for save in (
        lambda: checkpoints.save("model_0000001", iteration=1),
        lambda: checkpoints.save_best(1, {}),
    ):
        with pytest.raises(KeyboardInterrupt):
            save()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_best_one_does_not_become_the_last_one(tmp_path: Path) -> None:
    model = _model()
    checkpoints = Checkpoints(model, str(tmp_path))
    assert checkpoints.best() is None
    checkpoints.save("model_0000001", iteration=1)
    checkpoints.save_best(3, {"sem_seg/mIoU": 50.0})
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    again = Checkpoints(_model(), str(tmp_path))
    assert again.best() == {"checkpoint": "model_best.pth", "iteration": 3, "metrics": {"sem_seg/mIoU": 50.0}}
    again.load_weights(str(tmp_path / "model_best.pth"), whole=True)
    assert torch.equal(again.model.backbone.weight, model.backbone.weight)


def test_nothing_is_loaded_from_no_path() -> None:
    Checkpoints(_model()).load_weights("", whole=True)


def test_a_part_of_the_model_is_enough_to_start_from(tmp_path: Path) -> None:
    weights = _save(_model(), tmp_path / "backbone.pth", only="backbone")
    Checkpoints(_model()).load_weights(weights, whole=False)
    with pytest.raises(InputError, match="2 of the model's 8 tensors fit, 6 are missing"):
        Checkpoints(_model()).load_weights(weights, whole=True)


def test_another_size_is_refused_with_counts(tmp_path: Path) -> None:
    weights = _save(_model(4), tmp_path / "wide.pth")
    message = (
        "0 of the model's 8 tensors fit, 0 are missing, 8 have another shape, 0 of the file are left over"
    )
    with pytest.raises(InputError, match=message):
        Checkpoints(_model()).load_weights(weights, whole=False)


def test_the_branch_may_be_there_or_not(tmp_path: Path) -> None:
    plain, branched = (
        _save(_model(), tmp_path / "plain.pth"),
        _save(_with_branch(), tmp_path / "branched.pth"),
    )
    Checkpoints(_with_branch()).load_weights(plain, whole=True)
    Checkpoints(_model()).load_weights(branched, whole=True)


def test_a_resume_needs_everything(tmp_path: Path) -> None:
    Checkpoints(_model(4), str(tmp_path)).save("model_0000001", iteration=1)
    with pytest.raises(InputError, match=r"model_0000001\.pth is of another model: 0 of the model's 8"):
        Checkpoints(_model(), str(tmp_path)).resume()


class _Trainer:
    """What the hook asks of a trainer: where it stands, and the figures of the last evaluation."""

    def __init__(self) -> None:
        self.storage = EventStorage()
        self.metrics: dict[str, float] = {}

    def last_metrics(self) -> dict[str, float]:
        return self.metrics

    def evaluated(self, **metrics: float) -> None:
        self.metrics = {f"sem_seg/{name.replace('_', '-')}": value for name, value in metrics.items()}
        self.storage.iter += 1
        self.storage.put_scalars(**self.metrics, smoothing_hint=False)


def test_a_score_that_is_not_defined_breaks_neither_the_best_nor_its_record(tmp_path: Path) -> None:
    checkpoints, trainer = Checkpoints(_model(), str(tmp_path)), _Trainer()
    hook = BestCheckpoint(checkpoints, "sem_seg/mIoU", period=1)
    hook.trainer = trainer
    nan = float("nan")

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    kept = []
    for mean, of_a_class_that_the_truth_lacks in (
        (nan, nan),
        (50.0, nan),
        (nan, 1.0),
        (40.0, 2.0),
        (60.0, nan),
    ):
        trainer.evaluated(mIoU=mean, IoU_bird=of_a_class_that_the_truth_lacks)
        hook.check()
        record = tmp_path / "best.json"
        best = json.loads(record.read_text(), parse_constant=refuse) if record.exists() else None
        kept.append(best and (best["iteration"], best["metrics"]))
        assert checkpoints.best() == best
        # Another run of the program goes on with the same best.
        hook = BestCheckpoint(Checkpoints(_model(), str(tmp_path)), "sem_seg/mIoU", period=1)
        hook.trainer = trainer
    fifty = (2, {"sem_seg/mIoU": 50.0, "sem_seg/IoU-bird": None})
    assert kept == [None, fifty, fifty, fifty, (5, {"sem_seg/mIoU": 60.0, "sem_seg/IoU-bird": None})]
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 5
