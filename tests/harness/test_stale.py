"""Results of another identity are named and never taken for those of today."""

import json
import os
import sys
from pathlib import Path

import pytest

from hicl_d2.command.digest import digest
from hicl_d2.harness import folder as files
from hicl_d2.harness import matrix as matrix_module
from hicl_d2.harness.matrix import read_matrix
from hicl_d2.harness.workspace import open_workspace
from tests.support.waiting import wait_for


def scheme_of_before(folder: Path) -> None:
    """Make a cell's folder look as if an earlier version had made it, in place."""
    path = folder / "cell.json"
    content = json.loads(path.read_text())
    for key in ("identity", "short"):
        del content[key]
    content |= {"schema": 1, "hash": "0123456789", "data": "", "config": {"SOLVER.MAX_ITER": 3}}
    content["digest"] = digest(content)
    path.write_text(json.dumps(content))
    folder.rename(folder.with_name(f"{folder.name.rpartition('-')[0]}-0123456789"))


def with_defaults(monkeypatch, **changes):
    """Change defaults of the code, by key with underscores for dots (two for an underscore)."""
    known = dict(matrix_module.defaults())
    known.update({key.replace("__", "."): value for key, value in changes.items()})
    monkeypatch.setattr(matrix_module, "defaults", lambda: known)


def test_a_changed_default_of_the_code_makes_another_cell(bench, monkeypatch):
    cell = read_matrix(bench.matrix(seeds=[1])).cells[0]
    with_defaults(monkeypatch, MODEL__HICL__TEMPERATURE=0.2)
    assert read_matrix(bench.folder / "matrix.yaml").cells[0].hash != cell.hash
    bench.matrix(seeds=[1], overrides={"MODEL.HICL.TEMPERATURE": 0.1})
    assert read_matrix(bench.folder / "matrix.yaml").cells[0].hash == cell.hash


def test_a_result_under_another_default_is_stale_and_not_in_the_table(bench, monkeypatch):
    bench.matrix(seeds=[1])
    assert bench.run().returncode == 0
    with_defaults(monkeypatch, MODEL__HICL__TEMPERATURE=0.2)
    workspace = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    assert [workspace.states[cell.slug].name for cell in workspace.cells] == ["stale", "stale"]
    assert all(workspace.states[cell.slug].result is None for cell in workspace.cells)
    (line,) = workspace.notes()
    assert line.startswith(
        "stale: trained before, but MODEL.HICL.TEMPERATURE was 0.1 and is 0.2; run trains anew"
    )
    assert line.endswith("(2 cells)")
    assert workspace.needed([]) == list(workspace.cells)


def test_a_key_that_the_code_did_not_have_counts_as_its_default(bench, monkeypatch):
    bench.matrix(seeds=[1])
    known = dict(matrix_module.defaults())
    fewer = {key: value for key, value in known.items() if key != "MODEL.HICL.TEMPERATURE"}
    monkeypatch.setattr(matrix_module, "defaults", lambda: fewer)
    workspace = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    for cell in workspace.cells:
        files.write_manifest(cell, "test", bench.output, [])
        text = '{"schema": 1, "status": "finished", "metrics": {}}'
        (cell.folder(bench.output) / "result.json").write_text(text)
    monkeypatch.setattr(matrix_module, "defaults", lambda: known)
    later = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    assert [later.states[cell.slug].name for cell in later.cells] == ["done", "done"]
    assert [cell.slug for cell in later.cells] == [cell.slug for cell in workspace.cells]
    bench.matrix(seeds=[1], overrides={"MODEL.HICL.TEMPERATURE": 0.3})
    other = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    assert [other.states[cell.slug].name for cell in other.cells] == ["stale", "stale"]


def test_other_weights_under_the_same_name_are_trained_anew_and_the_old_folder_stays(bench):
    first = bench.folder / "a" / "model_final.pth"
    first.parent.mkdir()
    first.write_text("one")
    bench.matrix(seeds=[1], overrides={"MODEL.WEIGHTS": str(first)})
    assert bench.run().returncode == 0
    before = {folder: (folder / "result.json").read_bytes() for folder in bench.folders()}
    first.write_text("two")
    status = bench.run(verb="status")
    assert "2 stale" in status.stdout
    assert "MODEL.WEIGHTS was 'sha256:" in status.stdout
    table = bench.run(verb="table")
    assert "stale" in table.stdout
    assert "41.0" not in table.stdout
    done = bench.run()
    assert done.returncode == 0
    assert "run trains anew beside the old folder" in done.stderr
    assert len(bench.folders()) == 4
    assert before == {folder: (folder / "result.json").read_bytes() for folder in before}
    assert "stale" not in bench.run(verb="status").stdout


def test_weights_that_are_gone_keep_the_results_that_came_from_them(bench):
    weights = bench.folder / "w.pth"
    weights.write_text("one")
    bench.matrix(seeds=[1], overrides={"MODEL.WEIGHTS": str(weights)})
    assert bench.run().returncode == 0
    weights.unlink()
    assert "2 done" in bench.run(verb="status").stdout
    weights.write_text("two")
    assert "2 stale" in bench.run(verb="status").stdout


def test_the_code_behind_imports_counts(bench, monkeypatch):
    bench.write("strange_things.py", "A = 1\n")
    monkeypatch.syspath_prepend(str(bench.folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(bench.folder), *sys.path]))
    bench.matrix(seeds=[1], overrides={"IMPORTS": ["strange_things"]})
    assert bench.run().returncode == 0
    bench.write("strange_things.py", "A = 2  # longer\n")
    status = bench.run(verb="status")
    assert "2 stale" in status.stdout
    assert "the code behind IMPORTS was another" in status.stdout


def test_shortened_cells_are_not_called_stale(bench):
    bench.matrix(seeds=[1])
    assert bench.run("--shorten").returncode == 0
    assert "stale" not in bench.run(verb="plan").stdout


def test_folders_of_the_older_scheme_are_named_and_not_trained_again_unasked(bench):
    bench.matrix(seeds=[1])
    bench.run()
    for folder in bench.folders():
        scheme_of_before(folder)
    before = {folder: (folder / "result.json").read_bytes() for folder in bench.folders()}
    for verb in ("plan", "status"):
        shown = bench.run(verb=verb)
        assert "cell.json, schema 1" in shown.stdout
        assert "2 stale" in shown.stdout
    refused = bench.run()
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "--retry stale trains them anew beside the old folders" in refused.stderr
    assert bench.starts() == [1, 1]
    assert bench.run("--retry", "stale").returncode == 0
    assert before == {folder: (folder / "result.json").read_bytes() for folder in before}
    assert len(bench.folders()) == 4
    assert "schema 1" not in bench.run(verb="status").stdout


@pytest.mark.parametrize("name", ["smoke", "parts", "camvid", "ablation", "paper", "camvid_cpu"])
def test_the_harness_and_the_training_compute_one_identity(name):
    """The harness merges files by itself; the training reads them through the config library."""
    from hicl_d2.config import load_config
    from hicl_d2.harness import ROOT
    from hicl_d2.run.manifest import run_identity

    matrix = read_matrix(ROOT / "benchmark" / "matrices" / f"{name}.yaml")
    cells = [alike[0] for alike in matrix.groups().values()]
    for cell in cells[:: max(1, len(cells) // 12)]:
        cfg = load_config(cell.config, cell.arguments())
        trained = run_identity(cfg)
        assert trained.config == cell.identity.config
        assert (trained.seed, trained.weights, trained.imports) == (cell.seed, cell.weights, cell.imports)


def test_a_config_that_changes_after_the_harness_has_started_gives_no_result(bench):
    bench.matrix(seeds=[1], overrides={"STUB.IDENTITY": "0123456789abcdef"})
    done = bench.run()
    assert done.returncode == 2
    assert "the config or a default of the code changed after the harness had started" in done.stderr
    assert "2 damaged" in bench.run(verb="status").stdout
    assert "41.0" not in bench.run(verb="table").stdout


@pytest.mark.parametrize("has_changed", [True, False])
def test_data_that_change_while_a_cell_is_trained_on_them_give_no_result(bench, monkeypatch, has_changed):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(bench.folder))
    images, gate = bench.folder / "images", bench.folder / "gate"
    images.mkdir()
    (images / "a.png").write_bytes(b"1")
    cell = {"baseline": {"config": str(bench.folder / "plain.yaml")}}
    data = {"parts": {"data": ["images"]}}
    bench.matrix(seeds=[1], methods=cell, datasets=data, overrides={"STUB.GATE": str(gate)})
    process = bench.start()
    wait_for(lambda: list(bench.output.glob("cells/*/starts.txt")), while_running=process.poll)
    if has_changed:
        (images / "b.png").write_bytes(b"2")
    gate.touch()
    process.wait()
    named = "the names or sizes of the data's files changed after the harness had started"
    assert (named in bench.said()) == has_changed
    # What the harness plans from now on is the cell of today's data, which has not been trained when they changed.
    (images / "b.png").unlink(missing_ok=True)
    status = bench.run(verb="status").stdout
    assert ("1 damaged" if has_changed else "1 done") in status


def test_a_training_that_notes_the_planned_identity_is_done(bench):
    cells = read_matrix(bench.matrix(seeds=[1])).cells
    for cell in cells:
        files.write_manifest(cell, "test", bench.output, [])
        folder = cell.folder(bench.output)
        (folder / "manifest.json").write_text(json.dumps({"identity": cell.identity.parts()}))
        (folder / "result.json").write_text('{"schema": 1, "status": "finished"}')
    assert [files.look(cell, bench.output).name for cell in cells] == ["done", "done"]
