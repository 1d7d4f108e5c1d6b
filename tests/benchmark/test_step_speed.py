"""The table of whole training steps."""

import csv
from pathlib import Path
from typing import Any

import pytest
import step_speed
import torch
from speed.parts import BACKWARD, BRANCH, FORWARD, LOADER, OPTIMISER, PARTS, REST, Parts

from tests.support import tiny
from tests.support.fixtures import data_root, tiny_root

__all__ = ["data_root", "tiny_root"]


@pytest.fixture
def table(tmp_path: Path, run_script: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the benchmark on the tiny model, and return what it said and the rows that it wrote, by trainer."""
    config, output = tmp_path / "tiny_hicl.yaml", tmp_path / "rows.csv"
    config.write_text(tiny.CONFIG.replace("META_ARCHITECTURE: TinySegmentor", "META_ARCHITECTURE: HiCL"))
    words = ["--config-file", str(config), "--rounds", "2", "--precision", "float32", "bfloat16"]
    run_script(step_speed, [*words, "--output", str(output)])
    with open(output) as file:
        rows = {row["trainer"]: row for row in csv.DictReader(file)}
    shown = capsys.readouterr()
    assert "iteration" not in shown.err
    return shown.out, rows


@pytest.mark.usefixtures("data_root")
def test_every_trainer_has_a_row_and_its_parts_are_the_whole(table: Any) -> None:
    said, rows = table
    own = [
        precision + ending
        for precision in ("float32", "bfloat16")
        for ending in ("", ", with the branch", ", with the loader")
    ]
    assert list(rows)[: len(own)] == own
    for name, row in rows.items():
        assert f"| {name} " in said
        assert row["batch"] == "2 x 16 x 16"
        assert float(row["images_per_second"]) > 0
        assert sum(float(row[part]) for part in PARTS) == pytest.approx(100)
        assert min(float(row[part]) for part in (FORWARD, BACKWARD, OPTIMISER)) > 0
        assert (float(row[BRANCH]) > 0) == name.endswith("branch")
        assert name.endswith("loader") is (float(row[LOADER]) > 5)


@pytest.mark.usefixtures("data_root")
def test_the_peer_is_measured_or_passed_over_by_name(table: Any) -> None:
    said, rows = table
    if step_speed.has_detectron2():
        assert float(rows[step_speed.PEER]["to_peer"]) == 1
        assert float(rows["float32"]["to_peer"]) > 0
    else:
        assert step_speed.PEER not in rows
        assert "Detectron2's trainer is passed over" in said


@pytest.mark.usefixtures("data_root")
def test_evaluation_has_a_table_of_its_own(
    tmp_path: Path, run_script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = tmp_path / "tiny.yaml", tmp_path / "rows.csv"
    config.write_text(tiny.CONFIG)
    words = ["--config-file", str(config), "--rounds", "1", "--evaluate", "2", "--output", str(output)]
    run_script(step_speed, words)
    with open(output) as file:
        first, *others = csv.DictReader(file)
    assert (first["config"], first["images"], first["evaluation"]) == ("tiny", "2", "--eval-only")
    assert float(first["images_per_second"]) > 0
    assert [row["evaluation"] for row in others] == [step_speed.PEER_EVALUATION] * step_speed.has_detectron2()
    assert "| --eval-only " in capsys.readouterr().out


def test_a_part_inside_a_part_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0, 1, 3, 6, 10, 15])
    parts = Parts(torch.device("cpu"))
    monkeypatch.setattr(parts, "_clock", lambda: next(now))
    with parts.running(), parts.part(FORWARD), parts.part(BRANCH):
        pass
    assert (parts.seconds[REST], parts.seconds[FORWARD], parts.seconds[BRANCH]) == (1 + 5, 2 + 4, 3)


def test_the_trainer_is_left_as_it_was() -> None:
    class Step:
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = iter([torch.ones(1), torch.ones(1)])

        def _log(self) -> None: ...

    step, parts = Step(), Parts(torch.device("cpu"))
    seen = []
    step.model.register_forward_hook(lambda module, args, output: seen.append(1))
    before = dict(step.model._forward_hooks)
    with step_speed.watched(step, [], "batches", parts):
        step.model(next(step.batches)).backward()
        step.optimizer.step()
        step._log()
    assert seen == [1]
    assert step.model._forward_hooks == before
    assert not {"forward", "step", "_log"} & {*vars(step.model), *vars(step.optimizer), *vars(step)}
    assert torch.Tensor.backward.__name__ == "backward"
    assert torch.Tensor.backward.__module__ == "torch._tensor"
    assert parts.seconds[FORWARD] > 0 < parts.seconds[BACKWARD]
