"""The command as users run it, on a stand-in for the training."""

import csv
import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.terminal import run_on_a_terminal
from tests.support.waiting import wait_for

HEADER = "matrix,cell,dataset,model,method,ablation,seed,metric,at,value,iteration,status"


def rows(bench, folder=""):
    with (bench.output / folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def value(bench, method, seed, metric, at="last"):
    found = [
        row["value"]
        for row in rows(bench)
        if (row["method"], row["seed"], row["metric"], row["at"]) == (method, str(seed), metric, at)
    ]
    assert len(found) == 1
    return found[0]


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_run_ends_with_a_table_and_the_places_of_everything(bench):
    done = bench.run()
    assert done.returncode == 0, done.stderr
    table = (bench.output / "table.md").read_text()
    assert table.strip() in done.stdout
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == [
        "method",
        "mIoU",
        "mAcc",
        "seconds per iteration",
        "best mIoU",
        "difference",
        "p (Holm)",
    ]
    # seeds 1 and 2 give 41 and 42, ours 1.5 more each
    assert lines[2] == [
        "baseline",
        "41.5 ± 0.7 (2)",
        "50.0 ± 0.0 (2)",
        "0.265 ± 0.007 (2)",
        "45.5 ± 0.7 (2)",
        "-",
        "-",
    ]
    assert lines[3] == [
        "ours",
        "43.0 ± 0.7 (2)",
        "50.0 ± 0.0 (2)",
        "0.265 ± 0.007 (2)",
        "45.5 ± 0.7 (2)",
        "+1.5",
        "n too small",
    ]
    for folder in bench.folders():
        assert str(folder / "pictures") in done.stdout
    assert f"results: {bench.output / 'results.csv'}" in done.stdout
    assert "[4/4] parts/small/ours/seed 2: done in 0:00:0" in done.stderr
    assert "mIoU 43.5" in done.stderr


def test_results_have_a_row_per_cell_and_metric(bench):
    bench.run()
    text = (bench.output / "results.csv").read_text()
    assert text.splitlines()[0] == HEADER
    assert value(bench, "ours", 2, "sem_seg/mIoU") == "43.5"
    assert value(bench, "ours", 2, "sem_seg/mIoU", at="best") == "46.0"
    assert value(bench, "ours", 1, "sem_seg/IoU-road") == ""
    assert value(bench, "baseline", 1, "seconds/per_iteration") == "0.26"
    assert value(bench, "baseline", 1, "parameters/branch") == "2.0"
    assert value(bench, "baseline", 1, "peak_memory_mb") == "123.0"
    first = rows(bench)[0]
    assert (first["matrix"], first["dataset"], first["model"], first["ablation"]) == (
        "test",
        "parts",
        "small",
        "",
    )
    assert (first["iteration"], first["status"]) == ("3", "finished")
    assert {row["cell"] for row in rows(bench)} == {folder.name for folder in bench.folders()}


def test_running_again_runs_nothing_twice_and_gives_the_same_files(bench):
    bench.run()
    before = (bench.output / "results.csv").read_bytes(), (bench.output / "table.md").read_bytes()
    again = bench.run()
    assert again.returncode == 0
    assert bench.starts() == [1, 1, 1, 1]
    assert "[1/4] parts/small/baseline/seed 1: kept, mIoU 41.0" in again.stderr
    assert before == ((bench.output / "results.csv").read_bytes(), (bench.output / "table.md").read_bytes())


def test_a_table_against_another_method_is_shown_and_writes_nothing(bench):
    bench.run()
    before = {path: path.read_bytes() for path in bench.output.iterdir() if path.is_file()}
    done = bench.run("--against", "ours", verb="table")
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "baseline" in line)
    assert [cell.strip() for cell in line.split("|")][-3:-1] == ["-1.5", "n too small"]
    assert before == {path: path.read_bytes() for path in bench.output.iterdir() if path.is_file()}
    refused = bench.run("--against", "theirs", verb="table")
    assert refused.returncode == 2
    assert "--against theirs is no method" in refused.stderr


def test_an_edited_config_runs_again_and_the_others_are_kept(bench):
    bench.matrix(seeds=[1])
    bench.run()
    bench.write("other.yaml", "_BASE_: base.yaml\nMODEL: {META_ARCHITECTURE: C}\n")
    again = bench.run()
    assert "baseline/seed 1: kept" in again.stderr
    assert "ours/seed 1: done" in again.stderr
    assert len(bench.folders()) == 3
    assert len({row["cell"] for row in rows(bench)}) == 2


def test_a_damaged_or_unfinished_result_is_run_again(bench):
    bench.matrix(seeds=[1])
    bench.run()
    first, second = bench.folders()
    (first / "result.json").write_text('{"status": "fini')
    (second / "result.json").write_text('{"status": "running", "schema": 1}')
    assert bench.run().returncode == 0
    assert bench.starts() == [2, 2]


def test_shortened_cells_do_not_stand_in_for_full_ones(bench):
    bench.matrix(seeds=[1])
    assert bench.run("--shorten").returncode == 0
    assert {row["iteration"] for row in rows(bench, "short") if row["at"] == "last"} == {"1"}
    assert bench.run().returncode == 0
    assert len(bench.folders()) == 4
    assert {row["iteration"] for row in rows(bench) if row["at"] == "last"} == {"3"}


def test_cells_of_different_files_are_named_whenever_the_table_is_shown(bench):
    bench.matrix(seeds=[1, 2])
    assert bench.run().returncode == 0
    folders = sorted(path for path in (bench.output / "cells").iterdir() if path.is_dir())
    for folder in folders:
        (folder / "manifest.json").write_text('{"data": {"mine_train": "a", "mine_val": "b"}}')
    said = "the files of mine_train (names or sizes) are others for"
    assert said not in bench.run(verb="table").stderr
    (folders[-1] / "manifest.json").write_text('{"data": {"mine_train": "c", "mine_val": "b"}}')
    for verb in ("table", "run", "report"):
        done = bench.run(verb=verb)
        assert (done.returncode, done.stderr.count("mine_val")) == (0, 0)
        assert said in done.stderr
    (folders[-1] / "manifest.json").write_text('{"data": [1]}')
    assert said not in bench.run(verb="table").stderr


def test_a_metric_of_the_table_that_no_cell_has_is_named(bench):
    bench.matrix(report={"metrics": ["sem_seg/mIoU", "sem_seg/mAc"]}, seeds=[1])
    note = "report: metrics: no finished cell has sem_seg/mAc at last; did you mean sem_seg/mAcc?"
    assert note in bench.run().stderr
    for verb in ("table", "status", "plan", "report"):
        done = bench.run(verb=verb)
        assert note in done.stdout + done.stderr, verb
    bench.matrix(report={"metrics": ["sem_seg/mIoU"]}, seeds=[1])
    done = bench.run(verb="table")
    assert "no finished cell" not in done.stdout + done.stderr


def test_short_tables_and_reports_say_so_and_leave_the_full_ones(bench):
    mark = "Shortened trainings (--shorten)"
    bench.run()
    bench.run(verb="report")
    before = {path: path.read_bytes() for path in bench.output.rglob("*") if path.is_file()}
    done = bench.run("--shorten")
    assert done.returncode == 0, done.stderr
    assert f"results: {bench.output / 'short' / 'results.csv'}" in done.stdout
    for verb in ("report", "table"):
        done = bench.run("--shorten", verb=verb)
        assert done.returncode == 0, done.stderr
    assert mark in done.stderr
    changed = {path for path, content in before.items() if path.read_bytes() != content}
    assert changed <= {bench.output / "matrix.json", bench.output / "checks.json"}
    short = bench.output / "short"
    for name in ("table.md", "table.tex", "classes.md", "report.html"):
        assert mark in (short / name).read_text()
        assert mark not in (bench.output / name).read_text()
    assert {path.name for path in short.iterdir()} >= {"results.csv", "summary.csv", "plots"}


def test_the_training_gets_its_config_overrides_seed_and_folder(bench):
    bench.matrix(
        seeds=[5], overrides={"A.LIST": [1, "x"], "A.FLAG": True, "A.TEXT": "a b", "A.RATE": 0.00001}
    )
    bench.run()
    folder = bench.folders()[0]
    words = (folder / "starts.txt").read_text()
    assert str(bench.folder / "plain.yaml") in words
    for pair in (
        """'A.LIST', "[1, 'x']\"""",
        "'A.FLAG', 'True'",
        "'A.TEXT', 'a b'",
        "'A.RATE', '1e-05'",
        f"'SEED', '5', 'OUTPUT_DIR', '{folder}'",
    ):
        assert pair in words


def test_progress_is_relayed_from_the_training(bench):
    """Without a terminal a line comes every 15 seconds, so this looks at what the line would say."""
    from hicl_d2.harness.progress import read_progress

    path = bench.write("metrics.json", "")
    assert read_progress(path) is None
    assert read_progress(bench.folder / "absent.json") is None
    lines = [
        {"iteration": 19, "total_loss": 0.5, "eta_seconds": 100.0},
        {"iteration": 19, "sem_seg/mIoU": 3.0},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 39, "total_l')
    progress = read_progress(path)
    assert (progress.iteration, progress.loss) == (20, 0.5)
    assert 90 < progress.seconds_left <= 100


def test_a_terminal_gets_one_moving_line_per_cell(bench):
    bench.matrix(seeds=[1], overrides={"STUB.STEP_SECONDS": 0.5})
    shown = run_on_a_terminal(bench.command(), stdout=subprocess.DEVNULL)
    assert "\r\x1b[K[1/2] parts/small/baseline/seed 1: iteration 1/3  loss 1.5  ETA 0:0" in shown
    assert "\r\x1b[K[1/2] parts/small/baseline/seed 1: done in" in shown


def test_a_failed_cell_is_shown_with_its_last_line_and_the_others_run(bench):
    bench.matrix(
        methods={
            "baseline": {
                "config": str(bench.folder / "plain.yaml"),
                "overrides": {"STUB.FAIL": "out of luck"},
            },
            "ours": {"config": str(bench.folder / "other.yaml")},
        },
        seeds=[1],
    )
    done = bench.run()
    assert done.returncode == 1
    assert (
        "[1/2] parts/small/baseline/seed 1: FAILED, exit 3: RuntimeError: out of luck (all of it: "
        in done.stderr
    )
    table = (bench.output / "table.md").read_text()
    assert "| baseline | failed" in table
    assert "| ours     | 41.0" in table
    assert [row["status"] for row in rows(bench) if row["method"] == "baseline"] == ["failed"]
    # the cause is gone, which the harness cannot know: it runs again when asked, and the other one is kept
    (bench.folders()[0] / "fixed").touch()
    again = bench.run()
    assert again.returncode == 1
    assert "1 cell failed in an earlier run, left as found; --retry failed tries again" in again.stderr
    assert bench.starts() == [1, 1]
    assert bench.run("--retry", "failed").returncode == 0
    assert bench.starts() == [2, 1]


def test_a_training_without_a_result_has_failed(bench):
    bench.matrix(seeds=[1], overrides={"STUB.NO_RESULT": 1})
    done = bench.run()
    assert done.returncode == 1
    assert "FAILED, it ended without a result.json" in done.stderr


def test_a_killed_training_has_failed_with_the_signals_name(bench):
    bench.script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    bench.matrix(seeds=[1])
    done = bench.run()
    assert done.returncode == 1
    assert "FAILED, killed by SIGKILL: no message" in done.stderr


def test_ctrl_c_drains_running_cells_end_and_no_further_one_starts(bench):
    gate = bench.folder / "gate"
    bench.matrix(seeds=[1], overrides={"STUB.GATE": str(gate)})
    process = bench.start()
    wait_for(lambda: list(bench.output.glob("cells/*/starts.txt")), while_running=process.poll)
    process.send_signal(signal.SIGINT)
    said = "draining: 1 running to the end, no further one is started"
    wait_for(lambda: said in bench.said(), while_running=process.poll)
    gate.touch()
    assert process.wait() == 130
    assert [row["status"] for row in rows(bench) if row["metric"] in ("", "sem_seg/mAcc")] == [
        "finished",
        "finished",
        "missing",
    ]
    assert bench.starts() == [1]


@pytest.mark.parametrize(
    ("signals", "status"),
    [([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGTERM], 143), ([signal.SIGHUP, signal.SIGHUP], 129)],
)
def test_a_signal_stops_the_training_and_the_same_command_goes_on(bench, signals, status):
    bench.matrix(seeds=[1], overrides={"STUB.STEP_SECONDS": 100, "STUB.CHILD": 1})
    process = bench.start()
    wait_for(lambda: any(path.read_text() for path in bench.output.glob("cells/*/child.txt")))
    folder = bench.folders()[0]
    child = int((folder / "child.txt").read_text())
    for signum in signals:
        before = bench.said()
        process.send_signal(signum)
        wait_for(lambda before=before: bench.said() != before or process.poll() is not None)
    assert process.wait() == status
    stderr = bench.said()
    assert stderr.splitlines()[-1] == "run_matrix.py: stopped; the same command goes on from here"
    assert "Traceback" not in stderr
    assert (bench.folder / "stdout.txt").read_text() == ""
    # the training was asked to stop, and what it had started is gone too
    assert "KeyboardInterrupt" in (folder / "stderr.txt").read_text()
    wait_for(lambda: not is_alive(child))
    assert {row["status"] for row in rows(bench)} == {"missing"}
    assert not list(bench.output.glob("**/*.tmp"))

    (folder / "fixed").touch()
    bench.matrix(
        seeds=[1],
        overrides={"STUB.STEP_SECONDS": 100, "STUB.CHILD": 1},
        methods={"baseline": {"config": str(bench.folder / "plain.yaml")}},
    )
    assert bench.run().returncode == 0
    assert bench.starts() == [2]


def test_one_more_signal_ends_a_training_that_does_not_stop_by_itself(bench):
    bench.matrix(seeds=[1], overrides={"STUB.STEP_SECONDS": 100, "STUB.CHILD": 1, "STUB.STUBBORN": 1})
    process = subprocess.Popen(bench.command(), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(path.read_text() for path in bench.output.glob("cells/*/child.txt")))
    child = int((bench.folders()[0] / "child.txt").read_text())
    process.send_signal(signal.SIGTERM)
    while "stopping after this iteration" not in process.stderr.readline():
        assert process.poll() is None
    assert is_alive(child)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    wait_for(lambda: not is_alive(child))


def test_a_second_harness_on_the_same_folder_is_refused(bench):
    bench.matrix(seeds=[1], overrides={"STUB.STEP_SECONDS": 100})
    process = subprocess.Popen(bench.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(bench.output.glob("cells/*/starts.txt")))
    second = bench.run()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert second.returncode == 2
    assert second.stderr == (
        f"run_matrix.py: {bench.output} is in use by another run_matrix.py; wait for it, or stop it\n"
    )


def one_line_error(done):
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("run_matrix.py: ")
    return done.stderr


def test_bad_input_is_one_line_and_starts_nothing(bench):
    bench.matrix(methods=None)
    assert "methods is missing" in one_line_error(bench.run())
    bench.matrix()
    assert "unrecognized arguments: --shortn" in one_line_error(bench.run("--shortn"))
    assert "does not exist" in one_line_error(bench.run("--train-script", "absent.py"))
    assert "does not exist" in one_line_error(bench.run("--matrix", "absent.yaml"))
    assert not bench.output.exists()


def test_a_folder_of_another_matrix_is_refused(bench):
    bench.matrix(seeds=[1])
    bench.run()
    bench.matrix(name="another")
    assert "holds the matrix test, not another; choose another --output" in one_line_error(bench.run())
    (bench.output / "matrix.json").write_text("{")
    assert "matrix.json is damaged" in one_line_error(bench.run())


def test_a_result_of_another_schema_is_refused(bench):
    bench.matrix(seeds=[1], overrides={"STUB.SCHEMA": 2})
    done = bench.run()
    assert done.returncode == 2
    assert "has schema 2 and this harness reads 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_that_cannot_be_written_is_one_line(bench):
    bench.output.write_text("a file")
    assert f"--output {bench.output} is not a folder" in one_line_error(bench.run())
    bench.output.unlink()
    bench.matrix(seeds=[1])
    bench.run()
    (bench.output / "results.csv").unlink()
    (bench.output / "results.csv").mkdir()
    done = bench.run()
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "results.csv" in done.stderr.splitlines()[-1]


def test_several_data_sets_and_a_missing_pair_in_one_table(bench):
    """A column for every axis with several names; the difference is over the seeds that both have."""
    bench.matrix(datasets={"parts": None, "town": {"overrides": {"X": 1}}}, seeds=[1, 2])
    bench.run()
    lost = next(folder for folder in bench.folders() if folder.name.startswith("town-small-baseline-seed2"))
    (lost / "result.json").unlink()
    bench.script.write_text("import sys\nsys.exit('broken')\n")
    assert bench.run().returncode == 1
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (bench.output / "table.md").read_text().splitlines()
    ]
    assert lines[0][:3] == ["dataset", "method", "mIoU"]
    assert lines[4][:3] == ["town", "baseline", "41.0, 1 of 2 failed"]
    assert lines[5][:3] == ["town", "ours", "43.0 ± 0.7 (2)"]
    assert lines[5][-2:] == ["+1.5", "n too small"]


def test_the_smoke_matrix_compares_the_baseline_with_its_hicl_twin():
    from hicl_d2.harness import ROOT
    from hicl_d2.harness.matrix import read_matrix

    path = ROOT / "benchmark" / "matrices" / "smoke.yaml"
    for shorten in (False, True):
        matrix = read_matrix(path, shorten)
        assert [cell.method for cell in matrix.cells] == ["baseline", "hicl"]
        assert matrix.baseline == {"method": "baseline"}
        assert len({str(cell.resolved["DATASETS.TRAIN"]) for cell in matrix.cells}) == 1


@pytest.mark.slow
def test_a_watched_status_follows_a_run_to_its_end(bench):
    gate = bench.folder / "gate"
    bench.matrix(overrides={"STUB.GATE": str(gate)})
    run = subprocess.Popen(bench.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(bench.output.glob("cells/*/metrics.json")), while_running=run.poll)
    watch = bench.start("--watch", verb="status")
    shown = bench.folder / "stdout.txt"
    wait_for(lambda: "test: 4 cells" in shown.read_text(), while_running=watch.poll)
    gate.touch()
    assert watch.wait() == 0
    looks = [line for line in shown.read_text().splitlines() if line.startswith("test: 4 cells")]
    assert "1 running" in looks[0]
    assert looks[-1] == "test: 4 cells, 4 done"
    assert "\033" not in shown.read_text()  # not a terminal: no colours, no moving
    assert run.wait() == 0
