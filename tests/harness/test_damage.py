"""What is wrong with the files of one cell stops neither run nor table nor report of the others."""

import csv
import json
import os
import subprocess

import pytest

from hicl_d2.command.console import duration, printable
from hicl_d2.command.digest import with_digest
from hicl_d2.command.errors import InputError
from hicl_d2.harness import folder as files
from hicl_d2.harness.matrix import read_matrix
from hicl_d2.harness.progress import last_line, read_progress
from hicl_d2.harness.report.curves import read_curve
from hicl_d2.harness.report.pictures import data_url
from hicl_d2.harness.results import measures, read_result
from hicl_d2.harness.tables import markdown
from hicl_d2.harness.workspace import open_workspace

GOOD = {
    "schema": 1,
    "status": "finished",
    "iterations": 3,
    "metrics": {"last": {"iteration": 3, "sem_seg/mIoU": 40.0}},
}


@pytest.fixture
def folder(bench):
    cell = read_matrix(bench.matrix(seeds=[1])).cells[0]
    files.write_manifest(cell, "test", bench.output, [])
    return cell.folder(bench.output)


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": [1]},
        {"metrics": {"last": 3}},
        {"metrics": "x"},
        {"class_iou": [1]},
        {"class_iou": 5},
        {"seconds": "long"},
        {"parameters": [1]},
        {"versions": [1]},
        {"git": "x"},
    ],
)
def test_a_result_of_wrong_kinds_counts_as_none(folder, change):
    (folder / "result.json").write_text(json.dumps(GOOD))
    assert read_result(folder) == GOOD
    (folder / "result.json").write_text(json.dumps({**GOOD, **change}))
    assert read_result(folder) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1}', b"\0" * 100]
)
def test_a_result_that_is_no_result_counts_as_none(folder, content):
    (folder / "result.json").write_bytes(content)
    assert read_result(folder) is None


def test_a_result_that_was_edited_is_named(folder):
    whole = with_digest({**GOOD, "class_iou": {"straße": 0.1 + 0.2}, "seconds": {"train": 1e-17}})
    (folder / "result.json").write_text(json.dumps(whole))
    assert read_result(folder) == whole
    (folder / "result.json").write_text(json.dumps(whole, indent=4, ensure_ascii=False))
    assert read_result(folder) == whole  # set in another way, with equal content
    better = json.dumps(whole).replace("40.0", "41.0")
    (folder / "result.json").write_text(better)
    with pytest.raises(InputError, match=r"result\.json was edited"):
        read_result(folder)
    assert (folder / "result.json").read_text() == better


def test_figures_of_wrong_kinds_are_no_figures(bench):
    odd = {"sem_seg/mIoU": "high", "a": 10**400, "b": True, "c": [1], "d": None, "e": 1e999, "iteration": "x"}
    result = {**GOOD, "metrics": {"last": odd, "best": {}}, "seconds": None, "iterations": 10**400}
    found = list(measures(result))
    assert {value for _, _, value, _ in found} == {None}
    assert {iteration for _, _, _, iteration in found} == {None}


@pytest.mark.parametrize("verb", ["plan", "status", "table", "report", "run"])
def test_every_verb_works_beside_a_cell_of_nonsense(bench, verb):
    bench.matrix(seeds=[1])
    assert bench.run().returncode == 0
    (folder,) = (each for each in bench.folders() if "ours" in each.name)
    nonsense = {
        "schema": 1,
        "status": "finished",
        "iterations": 10**400,
        "metrics": {"last": {"sem_seg/mIoU": "x"}},
    }
    (folder / "result.json").write_text(
        json.dumps(nonsense | {"device": ["<b>"], "class_iou": {"$a_{": 1, "|": 2}})
    )
    (folder / "metrics.json").write_text(
        '{"iteration": 1e999, "total_loss": 1}\n[1]\n"x"\n{"iteration": 5}\n'
    )
    done = bench.run(verb=verb)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["result.json", "cell.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_named_and_not_waited_for(bench, name, kind):
    bench.matrix(seeds=[1])
    assert bench.run().returncode == 0
    first = bench.folders()[0]
    (first / name).unlink()
    os.mkfifo(first / name) if kind == "pipe" else (first / name).mkdir()
    shown = bench.run(verb="status")
    assert shown.returncode == 0
    assert "1 damaged, 1 done" in shown.stdout
    assert str(first / name) in shown.stdout
    table = bench.run(verb="table")
    assert table.returncode == 0
    assert "damaged" in table.stdout
    done = bench.run()
    assert done.returncode == 2
    assert str(first / name) in done.stderr
    assert bench.starts() == [1, 1]
    assert bench.run(verb="report").returncode == 0


def test_an_edited_manifest_is_named_and_the_other_cells_run(bench):
    bench.matrix(seeds=[1])
    assert bench.run("--only", "*baseline*").returncode == 0
    manifest = bench.folders()[0] / "cell.json"
    manifest.write_text(manifest.read_text().replace('"seed": 1', '"seed": 2'))
    done = bench.run()
    assert done.returncode == 2
    assert "was edited or damaged" in done.stderr
    assert bench.starts() == [1, 1]
    assert "ours     | 42.5" in (bench.output / "table.md").read_text()


@pytest.mark.parametrize(
    "foreign",
    {
        "notes.txt": "mine",
        "0001.json.bak": "{",
        "x.json": "{}",
        "0002.json": "{",
        "0003.json": "[1]",
        "0004.json": '{"state": 3}',
        "0005.json": '{"state": "ended", "seconds": "x"}',
        "0006.json": '{"state": "ended", "job": 3}',
        "99999999999.json": "{}",
    }.items(),
)
def test_attempts_that_are_damaged_or_of_others_are_passed_over(folder, foreign):
    attempt = files.new_attempt(folder, files.RUNNING)
    files.end_attempt(folder, attempt, 1.0, 0, None)
    (folder / "attempts" / foreign[0]).write_text(foreign[1])
    assert files.last_attempt(folder)["number"] == 1
    assert [each["number"] for each in files.attempts(folder)] == [1]
    following = files.new_attempt(folder, files.RUNNING)
    assert following["number"] > 1
    assert files.last_attempt(folder) == following
    assert (folder / "attempts" / foreign[0]).read_text() == foreign[1] or foreign[0] == "0002.json"


def test_a_failure_of_wrong_kinds_is_a_failure_all_the_same(bench, folder):
    cell = read_matrix(bench.folder / "matrix.yaml").cells[0]
    for failure in ({"kind": 3}, {}, {"kind": ["x"], "message": None}):
        attempt = files.new_attempt(folder, files.RUNNING)
        files.end_attempt(folder, attempt, 1.0, 1, None)
        files.save_attempt(folder, attempt | {"failure": failure})
        state = files.look(cell, bench.output)
        assert state.name == "failed"
        assert state.failure.rule


def test_formulas_in_csv_are_text_and_bars_and_tags_do_not_break_the_table(bench):
    bench.matrix(seeds=[1], report={"metrics": ["sem_seg/mIoU", "x|y", "=1+1"]})
    assert bench.run().returncode == 0
    path = bench.folders()[0] / "result.json"
    result = json.loads(path.read_text())
    scores = {"=cmd|' /C calc'!A0": 1.0, "@x": 2.0, "-x": 3.0, "+x": 4.0, "x|y": 5.0, "a\nb": 6.0}
    result["metrics"]["last"].update(scores)
    path.write_text(json.dumps(result))
    assert bench.run(verb="table").returncode == 0
    for name in ("results.csv", "summary.csv"):
        with (bench.output / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@")) or cell == "-x"]
        assert "'=cmd|' /C calc'!A0" in cells
    lines = (bench.output / "table.md").read_text().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "x&#124;y" in lines[0]


def test_class_names_that_look_like_formulas_are_drawn_as_they_are(bench):
    bench.matrix(seeds=[1, 2])
    assert bench.run().returncode == 0
    strange = {
        "$\\frac{": 50.0,
        "$x^2$": 40.0,
        "a_{b": 30.0,
        "<svg>&": 20.0,
        "--": 10.0,
        "\u202e": 5.0,
        "": 1.0,
    }
    for folder in bench.folders():
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "class_iou": strange}))
    done = bench.run(verb="report")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (bench.output / "plots" / "class_differences-parts-small.png").exists()


def test_what_a_terminal_would_obey_does_not_reach_it(bench):
    bench.script.write_text(
        "import sys\nsys.exit('\\x1b]0;title\\x07\\x1b[2J\\x1b[31mred\\x1b[0m \\x9b1m\\r over\\x08')\n"
    )
    bench.matrix(seeds=[1])
    done = bench.run()
    assert done.returncode == 1
    assert "over" in done.stderr
    for text in (done.stderr, done.stdout, bench.run(verb="status").stdout, bench.run(verb="plan").stdout):
        assert not [letter for letter in text if letter != "\n" and not letter.isprintable()]
    attempt = next(bench.output.glob("cells/*/attempts/0001.json"))
    assert "\\u001b" not in attempt.read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n±", "plain\ttext\n±"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x1bcb", "ab"),
        ("a\x1b", "a"),
        ("a\x1b[", "a"),
        ("\x07\x08\x00\x7f\x85", ""),
        ("a\u202eb\u2066c", "abc"),
    ],
)
def test_only_text_is_left_of_what_is_shown(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("seconds", [1e300, float("inf"), float("nan"), -1e300])
def test_a_time_beyond_all_measure_is_a_question_mark(seconds):
    assert duration(seconds) == "?"


def test_progress_of_nonsense_is_none(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(
        '{"iteration": 1e999, "total_loss": 1}\n[1]\n3\n"x"\nnull\n{"iteration": [1], "total_loss": 2}\n'
    )
    assert read_progress(path) is None
    assert read_curve(tmp_path, "total_loss").empty
    path.write_text('{"iteration": 3, "total_loss": 1, "eta_seconds": 1e300}\n')
    assert read_progress(path).iteration == 4
    path.unlink()
    os.mkfifo(path)
    assert read_progress(path) is None
    assert last_line(path) == ""
    assert read_curve(tmp_path, "total_loss").empty


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path):
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"text" * 100):
        (tmp_path / "x.png").write_bytes(content)
        assert data_url(tmp_path / "x.png") == ""


def test_a_killed_table_or_report_leaves_whole_files(bench):
    """Killed at several moments: each file is the old one or the new one."""
    bench.matrix(seeds=[1])
    assert bench.run().returncode == 0
    assert bench.run(verb="report").returncode == 0
    names = ["results.csv", "summary.csv", "table.md", "table.tex", "report.html"]
    whole = {name: (bench.output / name).read_text()[-20:] for name in names}
    for verb in ("table", "report"):
        for seconds in (0.8, 1.6, 2.4):
            process = subprocess.Popen(
                bench.command(verb=verb), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert whole == {name: (bench.output / name).read_text()[-20:] for name in names}
    assert bench.run(verb="report").returncode == 0
    workspace = open_workspace(bench.folder / "matrix.yaml", bench.output, False, [])
    from hicl_d2.harness.tables import collect

    assert "41.0" in markdown(collect(workspace.matrix, workspace.states), workspace.matrix)
