"""Figures in trackers: each once, also over a resume, and no tracker ends a training."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.engine import trackers
from hicl_d2.engine.step import StepTrainer
from tests.support.fixtures import Command

needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("wandb", "mlflow")
}


class Notebook:
    """A tracker that keeps what it is told, over runs."""

    pages: dict[str, list[tuple[int, dict[str, float]]]] = {}

    def __init__(self, cfg: Any, folder: Path, run: str | None) -> None:
        self.run = run or f"run {len(self.pages)}"
        self.lines = self.pages.setdefault(self.run, [])

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        self.lines.append((iteration, dict(figures)))

    def close(self) -> None:
        self.lines.append((-1, {}))


class Broken(Notebook):
    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        raise ConnectionError("the network\nis gone")


class Refused:
    def __init__(self, cfg: Any, folder: Path, run: str | None) -> None:
        raise RuntimeError("no account")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Notebook, "pages", {})
    kinds = {"notebook": Notebook, "broken": Broken, "refused": Refused}
    monkeypatch.setattr(trackers, "TRACKERS", trackers.TRACKERS | kinds)
    monkeypatch.setattr(trackers, "check_extra", lambda name: None)


def stopped_and_resumed(command: Command, *overrides: str) -> None:
    """Train three iterations, then the others."""
    run_step = StepTrainer.run_step

    def run_three(self: StepTrainer) -> None:
        if self.iter == 3:
            raise InputError("stopped")
        run_step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTrainer, "run_step", run_three)
        assert command(*overrides).err.endswith("stopped\n")
    assert command("--resume", *overrides).code == 0


def lines_of(folder: Path) -> list[tuple[int, dict[str, float]]]:
    found = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [(line.pop("iteration"), line) for line in found]


def test_a_tracker_gets_every_line_of_the_metrics_once_over_a_resume(
    command: Command, tmp_path: Path
) -> None:
    more = ["TRACKING.WRITERS", "['notebook']"]
    stopped_and_resumed(command, *more)
    run = tmp_path / "run"
    assert json.loads((run / "trackers.json").read_text()) == {"notebook": "run 0"}
    (told,) = Notebook.pages.values()
    assert [line for line in told if line[0] < 0] == [(-1, {})] * 2  # closed after each start
    told = [line for line in told if line[0] >= 0]
    assert [iteration for iteration, _ in told] == [iteration for iteration, _ in lines_of(run)]
    assert told[-1] == lines_of(run)[-1]


def test_a_tracker_that_fails_is_left_out_and_the_training_ends_well(
    command: Command, tmp_path: Path
) -> None:
    outcome = command("TRACKING.WRITERS", "['broken', 'notebook']")
    assert outcome.code == 0
    assert outcome.err.count("broken fails and is left out from here on: the network is gone") == 1
    assert any(iteration == 5 for told in Notebook.pages.values() for iteration, _ in told)


@pytest.mark.parametrize(
    ("name", "message"),
    [("refused", "refused does not start: no account"), ("wanbd", "'wanbd'; did you mean wandb?")],
)
def test_a_tracker_that_cannot_start_is_one_line(command: Command, name: str, message: str) -> None:
    outcome = command("TRACKING.WRITERS", f"['{name}']")
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


@needs["mlflow"]
def test_mlflow_holds_the_figures_of_both_starts(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    more = ["TRACKING.WRITERS", "['mlflow']", "TRACKING.PROJECT", "tests"]
    stopped_and_resumed(command, *more)
    run = json.loads((tmp_path / "run" / "trackers.json").read_text())["mlflow"]
    client = mlflow.MlflowClient(f"file://{tmp_path}/mlruns")
    steps = [point.step for point in client.get_metric_history(run, "total_loss")]
    assert steps == [iteration for iteration, line in lines_of(tmp_path / "run") if "total_loss" in line]
    found = client.get_run(run)
    assert found.info.status == "FINISHED"
    assert found.data.params["SOLVER.MAX_ITER"] == "6"


@needs["wandb"]
def test_wandb_works_without_a_network(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert command("TRACKING.WRITERS", "['wandb']").code == 0
    run = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    (file,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{run}.wandb")
    assert file.stat().st_size > 100
