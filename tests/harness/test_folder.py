"""What a cell's folder tells: manifest, attempts, states."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time

import pytest
import yaml

from hicl_d2.command.errors import InputError
from hicl_d2.command.layout import PLACE_KEYS
from hicl_d2.config import flat_defaults
from hicl_d2.harness import folder as files
from hicl_d2.harness.failures import KILLED, OUT_OF_MEMORY, RULES, Failure, classify
from hicl_d2.harness.matrix import read_matrix
from hicl_d2.harness.workspace import claim, open_workspace


@pytest.fixture
def cell(bench):
    return read_matrix(bench.matrix(seeds=[1])).cells[0]


def test_a_manifest_says_what_the_cell_is_and_where_it_came_from_and_is_written_once(bench, cell):
    files.write_manifest(cell, "test", bench.output, ["train", "it"])
    path = cell.folder(bench.output) / "cell.json"
    content = json.loads(path.read_text())
    named = {"SOLVER.MAX_ITER": 3, "SOLVER.BASE_LR": 0.01, "MODEL.META_ARCHITECTURE": "A", "SEED": 1}
    defaults = {key: value for key, value in flat_defaults().items() if key not in PLACE_KEYS}
    assert content["config"] == {**defaults, **named}
    assert content["command"] == ["train", "it"]
    assert content["seed"] == 1
    assert content["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert content["versions"]["pyyaml"] == yaml.__version__
    assert content["versions"]["torch"] == importlib.metadata.version("torch")
    assert content["hardware"]["cpus"] == os.cpu_count()
    assert len(content["git"]["commit"]) == 40
    assert content["git"]["dirty"] in (True, False)
    files.write_manifest(cell, "test", bench.output, ["another"])
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize("change", [{"seed": 2}, {"digest": "0"}, {"git": None}])
def test_an_edited_manifest_is_refused(bench, cell, change):
    files.write_manifest(cell, "test", bench.output, [])
    path = cell.folder(bench.output) / "cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=r"cell\.json was edited or damaged"):
        files.look(cell, bench.output)
    path.write_text(path.read_text()[:100])
    with pytest.raises(InputError, match=r"cell\.json was edited or damaged"):
        files.look(cell, bench.output)


def test_a_manifest_in_the_folder_of_another_cell_is_refused(bench, cell):
    files.write_manifest(cell, "test", bench.output, [])
    other = read_matrix(bench.matrix(seeds=[2])).cells[0]
    cell.folder(bench.output).rename(other.folder(bench.output))
    with pytest.raises(InputError, match="is the manifest of another cell"):
        files.look(other, bench.output)


def test_states_follow_from_files(bench, cell):
    folder = cell.folder(bench.output)
    assert files.look(cell, bench.output, exists=False).name == files.WAITING
    folder.mkdir(parents=True)
    assert files.look(cell, bench.output).name == files.WAITING
    attempt = files.new_attempt(folder, files.RUNNING)
    assert files.look(cell, bench.output).name == files.STOPPED
    files.beat(folder)
    assert files.look(cell, bench.output).name == files.RUNNING
    old = time.time() - 2 * files.DEAD_SECONDS
    os.utime(folder / files.HEARTBEAT_FILE, (old, old))
    assert files.look(cell, bench.output).name == files.STOPPED
    later = time.time() + 1e6  # a clock that was set back since
    os.utime(folder / files.HEARTBEAT_FILE, (later, later))
    assert files.look(cell, bench.output).name == files.STOPPED
    with files.lock(folder):
        assert files.look(cell, bench.output).name == files.RUNNING
    assert files.look(cell, bench.output).name == files.STOPPED
    files.end_attempt(folder, attempt, 1.0, -9, Failure(KILLED, "killed by SIGKILL"))
    state = files.look(cell, bench.output)
    assert (state.name, state.failure) == (files.FAILED, Failure(KILLED, "killed by SIGKILL"))
    second = files.new_attempt(folder, files.RUNNING)
    files.end_attempt(folder, second, 1.0, 130, None)
    assert files.look(cell, bench.output).name == files.STOPPED
    (folder / "result.json").write_text('{"schema": 1, "status": "finished"}')
    assert files.look(cell, bench.output).name == files.DONE
    assert [entry["number"] for entry in files.attempts(folder)] == [1, 2]


def test_a_lock_is_held_until_the_last_process_that_inherited_it_ends(tmp_path):
    held = files.lock(tmp_path)
    child = subprocess.Popen(["sleep", "100"], pass_fds=(held.fileno(),))
    held.close()
    assert files.lock(tmp_path) is None
    child.kill()
    child.wait()
    again = files.lock(tmp_path)
    assert again is not None
    again.close()


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "out of memory"),
        (2, "train_net: CUDA out of memory; lower SOLVER.IMS_PER_BATCH", "out of memory"),
        (1, "FloatingPointError: Loss became infinite or NaN at iteration=7!", "not finite"),
        (1, "RuntimeError: The server socket has failed: EADDRINUSE, Address already in use", "port"),
        (2, "train_net: no space left on the disk of model_final.pth", "disk"),
        (2, "train_net: data set camvid_train does not exist", "data"),
        (2, "train_net: unknown key SOLVER.BASE_LT", "input"),
        (-9, "", "killed"),
        (0, "", "no result"),
        (1, "KeyError: 'x'", "unknown"),
    ],
)
def test_failures_are_told_apart_and_each_kind_has_a_rule(status, text, kind):
    failure = classify(status, text, f"Traceback\n{text}\n")
    assert failure.kind == kind
    assert kind in RULES
    assert text in failure.message or status == 0


def test_only_failures_that_can_have_gone_away_are_tried_again_without_being_asked(bench):
    bench.matrix(seeds=[1])
    workspace = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    first, second = workspace.cells
    for cell, kind in ((first, OUT_OF_MEMORY), (second, KILLED)):
        attempt = files.new_attempt(cell.folder(bench.output), files.RUNNING)
        files.end_attempt(cell.folder(bench.output), attempt, 1.0, 1, Failure(kind, "x"))
    workspace = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    assert workspace.needed([]) == [second]
    assert workspace.needed(["failed"]) == [first, second]
    assert workspace.needed([OUT_OF_MEMORY]) == [first, second]
    assert workspace.needed(["time-out"]) == [second]


def test_other_data_make_other_cells_and_absent_data_are_taken_from_the_note(bench, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(bench.folder))
    (bench.folder / "images").mkdir()
    (bench.folder / "images" / "a.png").write_text("1")
    bench.matrix(seeds=[1], datasets={"parts": {"data": ["images"]}})

    def workspace():
        return open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])

    before = workspace()
    bench.output.mkdir()
    claim(before)
    (bench.folder / "images" / "b.png").write_text("1")
    assert workspace().cells[0].slug != before.cells[0].slug
    (bench.folder / "images" / "b.png").unlink()
    assert workspace().cells[0].slug == before.cells[0].slug
    (bench.folder / "images").rename(bench.folder / "gone")
    away = workspace()
    assert away.cells[0].slug == before.cells[0].slug
    assert "no data images below" in away.cells[0].obstacle
    assert away.cells[0] in away.needed([])
