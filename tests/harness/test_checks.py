"""Configs are checked before the first cell starts, by the project's train script, and only as often as needed."""

import json
from pathlib import Path

import pytest

from hicl_d2.command.console import console
from hicl_d2.harness import checks
from hicl_d2.harness.matrix import read_matrix

# Answers as train_net.py --check-each does, notes what it was asked, and trains as the stand-in does.
CHECKER = """
import json, pathlib, sys
if "--check-each" in sys.argv:
    log = pathlib.Path(__file__).with_name("asked.txt")
    ok = True
    print("a module of IMPORTS says hello")
    for line in sys.stdin:
        words = json.loads(line)
        with log.open("a") as file:
            file.write(line)
        bad = [word for word in words if word.startswith("broken")]
        ok = ok and not bad
        print(json.dumps({"ok": False, "error": f"{bad[0]} is not a contrast"} if bad else {"ok": True, "state": "fresh"}))
    sys.exit(0 if ok else 2)
"""


@pytest.fixture
def checker(bench, monkeypatch):
    """Make the stand-in know --check-each and be taken for the project's own train script, also by a command."""
    script = bench.script
    script.write_text(CHECKER + script.read_text())
    monkeypatch.setattr(checks, "TRAIN_SCRIPT", script)
    (bench.folder / "site").mkdir()
    (bench.folder / "site" / "sitecustomize.py").write_text(
        f"import hicl_d2.harness, pathlib\nhicl_d2.harness.TRAIN_SCRIPT = pathlib.Path({str(script)!r})\n"
    )
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{bench.folder / 'site'}:{root}")
    return lambda: [json.loads(line) for line in _lines(bench.folder / "asked.txt")]


def _lines(path):
    return path.read_text().splitlines() if path.exists() else []


def contrasts(bench, *names):
    plain = str(bench.folder / "plain.yaml")
    return {name: {"config": plain, "overrides": {"MODEL.HICL.CONTRAST": name}} for name in names}


def test_run_refuses_before_the_first_cell_and_names_each_reason_in_a_line(bench, checker):
    bench.matrix(methods=contrasts(bench, "pixel", "broken1", "region", "broken2"))
    done = bench.run()
    assert done.returncode == 2
    assert "parts/small/broken1 cannot run (2 cells): broken1 is not a contrast" in done.stderr.splitlines()
    assert "parts/small/broken2 cannot run (2 cells): broken2 is not a contrast" in done.stderr.splitlines()
    assert done.stderr.splitlines()[-1] == (
        "run_matrix.py: 4 cells cannot run, for 2 reasons; nothing was started: put them right, or run the other cells with "
        "--skip-broken"
    )
    assert not bench.output.exists()
    assert len(checker()) == 4  # seeds share a config


def test_the_others_run_with_skip_broken_and_the_status_says_that_some_are_missing(bench, checker):
    bench.matrix(methods=contrasts(bench, "pixel", "broken1"))
    done = bench.run("--skip-broken")
    assert done.returncode == 1
    assert "broken1 is not a contrast" in done.stderr
    assert bench.starts() == [1, 1]
    assert "missing" in (bench.output / "table.md").read_text()


def test_skip_broken_passes_over_missing_data_and_weights_too(bench, checker, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(bench.folder))
    methods = contrasts(bench, "pixel", "region")
    methods["region"]["overrides"]["MODEL.WEIGHTS"] = "gone.pth"
    bench.matrix(
        methods=methods,
        datasets={"parts": None, "absent": {"data": ["no_such_folder"], "overrides": {"Y": 1}}},
    )
    assert bench.run().returncode == 2
    done = bench.run("--skip-broken")
    assert done.returncode == 1
    assert "no data no_such_folder" in done.stderr
    assert "weights gone.pth do not exist" in done.stderr
    assert [folder.name.rpartition("-seed")[0] for folder in bench.folders()] == ["parts-small-pixel"] * 2


def test_plan_names_what_cannot_run_and_what_data_lack_is_not_asked_about(bench, checker):
    bench.matrix(
        methods=contrasts(bench, "pixel", "broken1"),
        datasets={"parts": None, "absent": {"data": ["no_such_folder"], "overrides": {"Y": 1}}},
    )
    done = bench.run(verb="plan")
    assert done.returncode == 0
    assert "parts/small/broken1 cannot run (2 cells): broken1 is not a contrast" in done.stdout
    assert done.stdout.count("no data no_such_folder") == 1
    assert len(checker()) == 2
    assert not bench.output.exists()


def test_what_passed_is_not_asked_again_and_what_did_not_is(bench, checker):
    bench.matrix(methods=contrasts(bench, "pixel", "region", "broken1"))
    bench.run("--skip-broken", "--only", "*/seed 1")
    assert len(checker()) == 3
    bench.run("--skip-broken")  # seed 2 has the same configs
    assert len(checker()) == 4
    assert "broken1" in str(checker()[-1])
    bench.matrix(methods=contrasts(bench, "pixel", "region"), overrides={"SOLVER.MAX_ITER": 2})
    assert bench.run().returncode == 0
    assert len(checker()) == 6
    (bench.output / "checks.json").write_text("{")
    assert bench.run("--shorten").returncode == 0
    assert len(checker()) == 8


def test_other_code_is_asked_again(bench, checker, monkeypatch):
    cells = read_matrix(bench.matrix()).cells
    bench.output.mkdir()
    checked = checks.check(cells, bench.script, bench.output, 0, console)
    checks.keep(checked, bench.output)
    assert len(checker()) == 2
    checks.check(cells, bench.script, bench.output, 0, console)
    assert len(checker()) == 2
    monkeypatch.setattr(checks, "code_digest", lambda: "other")
    checks.check(cells, bench.script, bench.output, 0, console)
    assert len(checker()) == 4


def test_a_stand_in_is_not_asked_and_plan_says_so(bench):
    done = bench.run(verb="plan")
    assert f"configs are not checked: {bench.script} is not the project's train script" in done.stdout
    assert bench.run().returncode == 0


def test_plan_asks_about_a_few_of_many_configs_those_of_other_files_first(bench, checker):
    many = {f"m{n}": {"config": str(bench.folder / "plain.yaml"), "overrides": {"X": n}} for n in range(50)}
    many["last"] = {"config": str(bench.folder / "other.yaml")}
    bench.matrix(methods=many, seeds=[1])
    done = bench.run(verb="plan")
    assert len(checker()) == checks.PLAN_CHECKS
    assert any("other.yaml" in str(words) for words in checker())
    assert f"{51 - checks.PLAN_CHECKS} configs are not checked yet; run checks all" in done.stdout


def test_a_check_that_ends_early_is_one_line_and_starts_nothing(bench, checker):
    bench.script.write_text("import sys\nsys.exit('no module named torch')\n")
    done = bench.run()
    assert done.returncode == 2
    assert "the configs could not be checked (exit 1): no module named torch" in done.stderr
    assert "Traceback" not in done.stderr
    assert not bench.output.exists()
    planned = bench.run(verb="plan")
    assert planned.returncode == 0
    assert "the configs could not be checked (exit 1): no module named torch" in planned.stdout


def test_processes_are_those_that_the_cell_would_have_here(bench, gpus):
    cells = read_matrix(bench.matrix(resources={"gpus": 2})).cells
    found = [checks._arguments(cells[0], bench.output, count) for count in (0, 1, 8)]
    assert ["--num-gpus" in words for words in found] == [False, False, True]
    assert found[2][found[2].index("--num-gpus") + 1] == "2"


def test_the_projects_own_script_answers(bench, monkeypatch, tmp_path):
    """A config that cannot be built, a slip in a key, and one that can start."""
    from hicl_d2.harness import ROOT, TRAIN_SCRIPT

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = str(ROOT / "benchmark" / "matrices" / "smoke.yaml")
    matrix = read_matrix(Path(config), shorten=True)
    first = str(matrix.cells[0].config)
    names = {"good": {}, "slip": {"SOLVER.MAX_ITR": 3}, "zero": {"SOLVER.IMS_PER_BATCH": 0}}
    methods = {
        name: {"config": first, "overrides": {**matrix.cells[0].overrides, **over}}
        for name, over in names.items()
    }
    cells = read_matrix(bench.matrix(methods=methods, seeds=[1, 2])).cells
    checked = checks.check(cells, TRAIN_SCRIPT, bench.output, 0, console)
    reasons = {cell.method: reason for reason, alike in checked.broken.items() for cell in alike}
    assert "did you mean" in reasons["slip"]
    assert "SOLVER.IMS_PER_BATCH is 0" in reasons["zero"]
    assert all("\n" not in reason for reason in reasons.values())
