"""What a run leaves behind, and how it is shown."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hicl_d2.command import console as console_module
from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.d2 import RUNTIME, USES_DETECTRON2
from hicl_d2.engine.trainer import Trainer
from hicl_d2.run.manifest import config_hash
from hicl_d2.run.result import table
from hicl_d2.run.setup import resolve_device
from hicl_d2.version import __version__
from tests.support import tiny
from tests.support.fixtures import Command


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_the_result_file(command: Command, config: Path, tmp_path: Path) -> None:
    outcome = command()
    assert outcome.code == 0
    result = _result(tmp_path / "run")
    assert list(result) == [
        *("schema", "status", "dataset", "iterations", "metrics", "class_iou", "seconds", "peak_memory_mb"),
        *("parameters", "seed", "config_hash", "versions", "git", "device", "digest"),
    ]
    assert (result["schema"], result["status"], result["dataset"]) == (1, "finished", "tiny_val")
    assert (result["iterations"], result["seed"]) == (6, 7)
    assert result["metrics"]["last"]["iteration"] == 6
    assert result["metrics"]["best"]["iteration"] in (1, 3, 6)
    assert result["metrics"]["best"]["sem_seg/mIoU"] >= result["metrics"]["last"]["sem_seg/mIoU"]
    assert set(result["class_iou"]) == set(tiny.CLASSES)
    mean = sum(result["class_iou"].values()) / 3
    assert result["metrics"]["last"]["sem_seg/mIoU"] == pytest.approx(mean)
    assert result["seconds"]["total"] > result["seconds"]["evaluation"] > 0
    assert 0 < result["seconds"]["per_iteration"] < result["seconds"]["total"]
    assert result["peak_memory_mb"] > 10
    parameters = sum(p.numel() for p in tiny.TinySegmentor(load_config(config)).parameters())
    assert result["parameters"] == {"model": parameters, "branch": 0}
    assert result["config_hash"] == config_hash(load_config(config))
    assert result["versions"]["runtime"] == RUNTIME
    assert result["versions"]["hicl_d2"] == __version__
    assert set(result["git"]) == {"commit", "dirty"}
    assert result["device"].startswith("cpu")


def test_the_files_of_a_run(command: Command, tmp_path: Path) -> None:
    assert command().code == 0
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir() if not path.name.startswith("events.out")}
    checkpoints = {"model_0000002.pth", "model_0000005.pth", "model_final.pth", "model_best.pth"}
    records = {"manifest.json", "config.yaml", "metrics.json", "log.txt", "result.json", "best.json"}
    assert names == checkpoints | records | {"last_checkpoint", "inference", "pictures", ".lock"}
    assert (run / "last_checkpoint").read_text() == "model_final.pth"
    assert len(list((run / "pictures").glob("*.png"))) == 1
    log = (run / "log.txt").read_text()
    assert "eta: 0:00:00  iter: 5  total_loss: " in log
    assert "Environment info:" in log
    assert (run / "config.yaml").read_text() in log
    best = torch.load(run / "model_best.pth", weights_only=True)
    assert best["iteration"] == _result(run)["metrics"]["best"]["iteration"]


def test_what_is_said(command: Command, tmp_path: Path) -> None:
    outcome = command()
    result = _result(tmp_path / "run")
    lines = outcome.err.splitlines()
    assert lines[0].startswith("TinySegmentor on tiny_train: iterations 0 to 6 of 2 images, cpu, seed 7")
    assert lines[1] == "running on the CPU: MODEL.DEVICE is cpu"
    assert lines[-2].startswith("iteration 6/6  loss ")
    assert "it/s  ETA 0:00:00" in lines[-2]
    assert lines[-1] == "evaluating tiny_val 3/3  ETA 0:00:00"
    for name, value in result["class_iou"].items():
        assert f"| {name:<7} | {value:<5.2f} |" in outcome.out
    assert f"{result['metrics']['last']['sem_seg/mIoU']:.2f}" in outcome.out
    assert f"result: {tmp_path / 'run/result.json'}" in outcome.out
    assert f"pictures: {tmp_path / 'run/pictures'}" in outcome.out
    assert "\r" not in outcome.err


def test_progress_is_one_moving_line_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(console_module, "SECONDS_BETWEEN_REDRAWS", 0.0)
    shown = console_module.Console()
    shown.progress("iteration 1/2")
    shown.progress("iteration 2/2", is_last=True)
    shown.say("done")
    assert capsys.readouterr().err == "\r\033[Kiteration 1/2\r\033[Kiteration 2/2\ndone\n"


def test_a_branch_that_finds_nothing_to_contrast_is_said_once(command: Command, tmp_path: Path) -> None:
    branch = ("MODEL.META_ARCHITECTURE", "HiCL", "MODEL.HICL.LOG_PERIOD", "1", "SOLVER.MAX_ITER", "12")
    idle = command(*branch, "MODEL.HICL.CONFIDENCE_LOW", "[1.0]")
    warnings = [line for line in idle.err.splitlines() if line.startswith("warning: ")]
    # The first iteration has no weight yet. Two crops of 16 x 16 at stride 2: 128 windows of one cell, 32 of four.
    assert len(warnings) == 1
    assert "the contrast was 0 in 5 diagnostics running, iterations 2 to 6" in warnings[0]
    assert "of 160 candidates 0 were kept" in warnings[0]
    figures = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    by_confidence = next(
        line["hicl/w1/pruned_confidence"] + line["hicl/w2/pruned_confidence"]
        for line in figures
        if line["iteration"] == 5
    )
    assert f"confidence drops {by_confidence / 160:.0%}" in warnings[0]
    assert warnings[0].removeprefix("warning: ") in (tmp_path / "run/log.txt").read_text()
    busy = command(*branch, "OUTPUT_DIR", str(tmp_path / "busy"))
    assert busy.code == 0
    assert "warning: " not in busy.err


def test_a_class_that_the_truth_lacks_is_null_and_a_dash(config: Path) -> None:
    cfg = load_config(config)
    text = table(cfg, {"sem_seg/mIoU": 50.0, "sem_seg/IoU-dark": float("nan"), "sem_seg/IoU-bright": 0.0})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]
    assert ["dark", "-"] in rows
    assert ["bright", "0.00"] in rows
    assert ["mIoU", "50.00"] in rows


def test_evaluation_of_a_checkpoint_gives_the_figures_of_the_training(
    command: Command, tmp_path: Path
) -> None:
    assert command().code == 0
    run, other = tmp_path / "run", tmp_path / "evaluated"
    weights = ("MODEL.WEIGHTS", str(run / "model_final.pth"))
    assert command("--eval-only", *weights, "OUTPUT_DIR", str(other)).code == 0
    evaluation = json.loads((other / "evaluation.json").read_text())
    last = _result(run)["metrics"]["last"]
    assert evaluation["metrics"] == {name: value for name, value in last.items() if name != "iteration"}
    assert not (other / "manifest.json").exists()
    before = (run / "result.json").read_bytes()
    assert command("--eval-only", "--resume", "TEST.PICTURES", "0").code == 0
    again = json.loads((run / "evaluation.json").read_text())
    assert again["metrics"] == evaluation["metrics"]
    assert (run / "result.json").read_bytes() == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_from_the_config(dtype: str, command: Command, tmp_path: Path) -> None:
    options = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype, "SOLVER.MAX_ITER", "2")
    assert command(*options).code == 0
    saved = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    assert ("grad_scaler" in saved["trainer"]["_trainer"]) == (dtype == "float16")


def test_baseline_and_branch_see_the_same_images_and_draw_the_same(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = tiny.TinySegmentor.forward, []

    def watch(model: Any, batch: list[dict[str, Any]]) -> Any:
        if model.training:
            seen[-1].append(([entry["image"] for entry in batch], [entry["sem_seg"] for entry in batch]))
            seen[-1].append((torch.rand(2),))
        return forward(model, batch)

    monkeypatch.setattr(tiny.TinySegmentor, "forward", watch)
    for name, options in (("plain", ()), ("branch", ("MODEL.META_ARCHITECTURE", "HiCL"))):
        seen.append([])
        assert command("OUTPUT_DIR", str(tmp_path / name), *options).code == 0
    plain, branch = seen
    assert len(plain) == 12
    torch.testing.assert_close(plain, branch, atol=0, rtol=0)
    assert _result(tmp_path / "branch")["parameters"]["branch"] > 0
    assert "loss_hicl" in (tmp_path / "branch/log.txt").read_text()


def test_a_missing_gpu_is_logged_and_the_cpu_taken(
    config: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO, logger="hicl_d2"):
        assert resolve_device(load_config(config, ["MODEL.DEVICE", "cuda"])) == "cpu"
    assert "no CUDA here: running on the CPU" in caplog.text


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "cuda:x", "gpu", "", "hpu:0", "cpu,cuda"])
def test_a_device_that_is_no_cuda_and_no_cpu_is_one_line(config: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"MODEL.DEVICE is .* must be cuda, cuda:N or cpu"):
        resolve_device(load_config(config, ["MODEL.DEVICE", name]))


def test_a_gpu_that_is_not_there_is_one_line(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(load_config(config, ["MODEL.DEVICE", "cuda:1"])) == "cuda:1"
    assert resolve_device(load_config(config, ["MODEL.DEVICE", "cpu:0"])) == "cpu"
    with pytest.raises(InputError, match="cuda:2, but this machine has 2 GPUs, cuda:0 to cuda:1"):
        resolve_device(load_config(config, ["MODEL.DEVICE", "cuda:2"]))


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = tiny.TinySegmentor.forward

    def spoil(model: Any, batch: Any) -> Any:
        losses = forward(model, batch)
        return {"loss_sem_seg": losses["loss_sem_seg"] * float("nan")} if model.training else losses

    monkeypatch.setattr(tiny.TinySegmentor, "forward", spoil)
    outcome = command()
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith("train_net: loss_sem_seg is nan at iteration 0 (images: ")
    assert "tiny/images/train/" in last
    assert "Traceback" not in outcome.err
    assert not list((tmp_path / "run").glob("*.pth"))


def test_several_test_sets(command: Command, tmp_path: Path) -> None:
    assert command("DATASETS.TEST", "('tiny_val', 'tiny_train')").code == 0
    result = _result(tmp_path / "run")
    assert result["dataset"] == "tiny_val"
    assert {"tiny_val/sem_seg/mIoU", "tiny_train/sem_seg/mIoU"} <= set(result["metrics"]["best"])
    assert set(result["class_iou"]) == set(tiny.CLASSES)


def test_no_test_set(command: Command, tmp_path: Path) -> None:
    assert command("DATASETS.TEST", "()").code == 0
    assert _result(tmp_path / "run")["metrics"]["last"] == {"iteration": 6}


def test_expected_results_that_are_missed_are_a_failure(command: Command, tmp_path: Path) -> None:
    outcome = command("TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 99.0, 0.5]]")
    assert outcome.code == 1
    assert (tmp_path / "run/result.json").exists()


@pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2 has precise norm statistics")
def test_what_lite_leaves_to_detectron2_is_one_line(command: Command, tmp_path: Path) -> None:
    assert "this needs Detectron2" in command("TEST.PRECISE_BN.ENABLED", "True").line
    assert not (tmp_path / "run").exists()


def test_building_a_trainer_writes_nothing(config: Path, tmp_path: Path) -> None:
    cfg = load_config(config, ["OUTPUT_DIR", str(tmp_path / "run")])
    Trainer(cfg).resume_or_load()
    assert not (tmp_path / "run").exists()
