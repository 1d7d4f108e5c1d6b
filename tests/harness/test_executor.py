"""Running cells on this machine: places, retries, time-outs, and harnesses that are killed."""

import fcntl
import json
import signal
import subprocess
from pathlib import Path

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.harness.cells import Resources
from hicl_d2.harness.slots import Gpu, Slots, find_slots
from tests.harness.test_run_matrix import is_alive, one_line_error, rows
from tests.support.waiting import wait_for


def attempts(bench):
    """Return the kinds of failure of every cell's attempts (None: none)."""
    return [
        [
            (json.loads(path.read_text())["failure"] or {}).get("kind")
            for path in sorted((folder / "attempts").iterdir())
        ]
        for folder in bench.folders()
    ]


def test_cells_are_packed_on_gpus_as_far_as_memory_and_number_allow():
    slots = Slots([Gpu(0, 24), Gpu(1, 80)], per_gpu=3)
    big, small, unknown = Resources(memory_gb=60), Resources(memory_gb=10), Resources()
    first = slots.take(small)
    assert first.gpus == (0,)
    assert slots.take(small).gpus == (0,)  # the GPU that is in use already is filled first
    assert slots.take(small).gpus == (1,)  # 30 of 24 GiB would be too much
    assert slots.take(big).gpus == (1,)
    assert slots.take(small).gpus == (1,)
    assert slots.take(small) is None
    slots.give_back(first)
    assert slots.take(unknown) is None  # it may need a whole GPU
    assert slots.take(small).gpus == (0,)


def test_a_cell_that_must_be_alone_waits_for_an_empty_gpu_and_keeps_others_away():
    slots = Slots([Gpu(0, 24)], per_gpu=2)
    company = slots.take(Resources(memory_gb=1))
    assert slots.take(Resources(memory_gb=1), alone=True) is None
    slots.give_back(company)
    assert slots.take(Resources(memory_gb=1), alone=True).gpus == (0,)
    assert slots.take(Resources(memory_gb=1)) is None


def test_a_cell_with_several_gpus_gets_them_together_and_cpu_cells_leave_them_alone():
    slots = Slots([Gpu(0, 24), Gpu(1, 24), Gpu(2, 24)])
    assert slots.take(Resources(gpus=2)).gpus == (0, 1)
    assert slots.take(Resources(gpus=2)) is None
    assert slots.take(Resources(gpus=0)).gpus == ()
    assert slots.take(Resources(gpus=0)) is None
    with pytest.raises(InputError, match="x needs 4 GPUs and 3 are to be used"):
        slots.check(Resources(gpus=4), "x")
    with pytest.raises(InputError, match="x needs 30 GiB of GPU memory and the largest GPU here has 24"):
        slots.check(Resources(memory_gb=30), "x")


def test_gpus_are_those_that_are_there_and_visible(gpus, monkeypatch):
    assert find_slots(None, 1, 1).gpus == 2
    assert find_slots("1", 1, 1).take(Resources()).gpus == (1,)
    assert find_slots("", 1, 1).gpus == 0
    with pytest.raises(InputError, match="GPU 2 is not there; here are: 0, 1"):
        find_slots("0,2", 1, 1)
    with pytest.raises(InputError, match="GPU 1 is named twice"):
        find_slots("1,1", 1, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(InputError, match="GPU 0 is not there; here are: 1"):
        find_slots("0", 1, 1)


def test_trainings_run_at_the_same_time_on_gpus_of_their_own(bench, gpus):
    bench.matrix(seeds=[1], overrides={"STUB.MEET": 2}, resources={"memory_gb": 20})
    assert bench.run().returncode == 0  # each of them waited for the other
    places = [(folder / "where.txt").read_text().split() for folder in bench.folders()]
    assert sorted(place[0] for place in places) == ["0", "1"]


def test_a_training_on_two_gpus_is_told_so(bench, gpus):
    bench.matrix(seeds=[1], resources={"gpus": 2})
    assert bench.run("--only", "*baseline*").returncode == 0
    assert (bench.folders()[0] / "where.txt").read_text().split()[:2] == ["0,1", "2"]


def test_one_that_runs_out_of_memory_in_company_goes_on_alone(bench, gpus):
    gate = bench.folder / "gate"
    fails = {"STUB.FAIL_ONCE": "CUDA out of memory"}
    bench.matrix(
        seeds=[1],
        resources={"memory_gb": 5},
        methods={
            "baseline": {"config": str(bench.folder / "plain.yaml"), "overrides": {"STUB.GATE": str(gate)}},
            "ours": {"config": str(bench.folder / "other.yaml"), "overrides": fails},
        },
    )
    process = bench.start("--gpus", "0", "--per-gpu", "2")
    said = "ours/seed 1: out of memory while sharing its GPU; retrying on a GPU of its own"
    wait_for(lambda: said in bench.said(), while_running=process.poll)
    gate.touch()
    assert process.wait() == 0, bench.said()
    assert attempts(bench) == [[None], ["out of memory", None]]
    other, first = (float((folder / "results.txt").read_text()) for folder in bench.folders())
    assert float((bench.folders()[1] / "where.txt").read_text().splitlines()[1].split()[2]) > other
    assert first > other


def test_one_that_runs_out_of_memory_alone_has_failed(bench, gpus):
    bench.matrix(seeds=[1], overrides={"STUB.FAIL_ONCE": "CUDA out of memory"})
    done = bench.run("--only", "*ours*")
    assert done.returncode == 1
    assert "lower SOLVER.IMS_PER_BATCH" in done.stderr
    assert attempts(bench) == [["out of memory"]]


def test_a_killed_training_and_a_taken_port_are_tried_again_at_once(bench):
    bench.matrix(
        seeds=[1],
        methods={
            "baseline": {"config": str(bench.folder / "plain.yaml"), "overrides": {"STUB.KILL_ONCE": 1}},
            "ours": {
                "config": str(bench.folder / "other.yaml"),
                "overrides": {"STUB.FAIL_ONCE": "EADDRINUSE"},
            },
        },
    )
    done = bench.run()
    assert done.returncode == 0, done.stderr
    assert "killed by SIGKILL: no message; it goes on from its last checkpoint" in done.stderr
    assert attempts(bench) == [["killed", None], ["port", None]]


def test_a_time_out_ends_the_training_and_all_that_it_has_started(bench):
    for seconds in (2, 20, 200):  # as long as a busy machine needs to get so far
        hours = seconds / 3600
        bench.matrix(
            seeds=[1],
            overrides={"STUB.STEP_SECONDS": 1000, "STUB.CHILD": 1, "STUB.STUBBORN": 1},
            resources={"timeout_hours": hours},
        )
        done = bench.run("--only", "*baseline*", "--retry", "failed")
        assert done.returncode == 1
        assert f"FAILED, it took longer than {hours:g} h" in done.stderr
        assert set(attempts(bench)[0]) == {"time-out"}
        if any(path.read_text() for path in bench.output.glob("cells/*/child.txt")):
            break
    child = int((bench.folders()[0] / "child.txt").read_text())
    assert not is_alive(child)


@pytest.mark.slow
def test_fail_fast_stops_the_others_and_keep_going_does_not(bench):
    fails = {"config": str(bench.folder / "plain.yaml"), "overrides": {"STUB.FAIL": "x"}}
    bench.matrix(seeds=[1], methods={"baseline": fails, "ours": {"config": str(bench.folder / "other.yaml")}})
    done = bench.run("--fail-fast")
    assert done.returncode == 1
    assert "no further cell is started: a cell failed" in done.stderr
    assert len(bench.folders()) == 1
    assert bench.run("--keep-going").returncode == 1
    assert len(bench.folders()) == 2


def test_a_full_disk_ends_the_run(bench):
    bench.matrix(seeds=[1], overrides={"STUB.FAIL": "No space left on device"})
    done = bench.run()
    assert done.returncode == 1
    assert "no further cell is started: exit 3: RuntimeError: No space left on device" in done.stderr
    assert attempts(bench) == [["disk"]]


@pytest.mark.slow
def test_only_chooses_cells_and_a_dry_run_writes_nothing(bench):
    assert "2 cells: 2 to run" in bench.run("--only", "*/ours/*", "--dry-run").stdout
    assert not bench.output.exists()
    assert "--only xyz chooses none of the cells" in one_line_error(bench.run("--only", "xyz"))
    assert "--retry oom is no kind of failure" in one_line_error(bench.run("--retry", "oom"))
    assert "GPU 7 is not there" in one_line_error(bench.run("--gpus", "7"))
    assert bench.run("--only", "*/ours/seed 1").returncode == 0
    assert len(bench.folders()) == 1
    assert {row["status"] for row in rows(bench)} == {"finished", "missing"}


def test_a_harness_that_was_killed_leaves_a_training_that_the_next_run_ends_and_goes_on_with(bench):
    bench.matrix(seeds=[1], overrides={"STUB.STEP_SECONDS": 100, "STUB.CHILD": 1})
    process = subprocess.Popen(bench.command("--only", "*ours*"), stderr=subprocess.DEVNULL)
    wait_for(lambda: any(path.read_text() for path in bench.output.glob("cells/*/child.txt")))
    folder = bench.folders()[0]
    child = int((folder / "child.txt").read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert is_alive(child)
    (folder / "fixed").touch()
    done = bench.run("--only", "*ours*")
    assert done.returncode == 0
    assert "ended 1 trainings that an earlier run had left behind" in done.stderr
    assert not is_alive(child)
    assert bench.starts() == [2]
    assert len((folder / "results.txt").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_cell_that_is_alive_elsewhere_is_not_run_twice(bench):
    """The lock of the cell alone tells; the process does not carry the cell's mark."""
    bench.matrix(seeds=[1])
    assert bench.run().returncode == 0
    folder = bench.folders()[0]
    (folder / "result.json").unlink()
    with (folder / ".cell.lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = bench.run()
    assert done.returncode == 1
    assert "a training is still running in" in done.stderr
    assert bench.starts() == [1, 1]


def test_a_read_only_folder_is_one_line(bench):
    if Path("/proc/self/status").read_text().split("Uid:")[1].split()[0] == "0":
        target = "/proc/nothing"  # root may write anywhere but here
        bench.output = Path(target)
        assert target in one_line_error(bench.run())
        return
    bench.output.mkdir(mode=0o500)
    assert "Permission denied" in one_line_error(bench.run())


def test_what_plan_says_before_and_after_a_run(bench):
    bench.matrix(methods={"a": {"config": "no/such.yaml"}, "b": {"config": str(bench.folder / "plain.yaml")}})
    planned = bench.run(verb="plan").stdout
    assert "4 cells: 2 blocked, 2 to run" in planned
    assert planned.splitlines()[2] == "no config no/such.yaml (2 cells)"
    assert not bench.output.exists()
    assert "no config no/such.yaml (2 cells); choose other cells with --only" in one_line_error(bench.run())
    assert bench.run("--only", "*/b/seed 1").returncode == 0
    planned = bench.run(verb="plan").stdout
    assert "4 cells: 1 done, 2 blocked, 1 to run" in planned
    # 3 iterations of 0.26 s and one evaluation of 1 s
    assert f"| {(3 * 0.26 + 1) / 3600:.3g}     | earlier runs |" in planned
    assert "keep  done     parts/small/b/seed 1" in planned


@pytest.mark.slow
def test_a_probe_tells_what_cells_will_take(bench):
    bench.write("base.yaml", "SOLVER: {MAX_ITER: 1000, BASE_LR: 0.01}\n")
    bench.matrix(seeds=[1])
    assert "without 2 cells that nothing is known of" in bench.run(verb="plan").stdout
    planned = bench.run("--probe", verb="plan").stdout
    assert planned.count("a probe") == 2
    assert f"{(1000 * 0.26 + 1) / 3600:.3g}" in planned
    assert "2 cells: 2 to run" in planned


@pytest.mark.slow
def test_status_and_clean(bench):
    bench.matrix(seeds=[1])
    fails = bench.run("--only", "*ours*")
    assert fails.returncode == 0
    shown = bench.run(verb="status").stdout
    assert "test: 2 cells, 1 done, 1 waiting" in shown
    assert [line.split()[2:] for line in shown.splitlines() if "ours" in line] == [["done", "3/3", "42.5"]]
    folder = bench.folders()[0]
    left = f".hicl_d2-{16 * 'a'}-result.json.tmp"
    foreign = (".result.json.1.tmp", ".hicl_d2-notes.tmp")
    for name in ("model_0000001.pth", "model_final.pth", left, *foreign):
        (folder / name).write_text("x")
    (bench.output / "cells" / "strange").mkdir()
    dry = bench.run("--dry-run", verb="clean")
    assert "would remove" in dry.stderr
    assert (folder / "model_0000001.pth").exists()
    asked = bench.run(verb="clean")
    assert asked.returncode == 2
    assert "nothing was removed; --yes removes what is listed" in asked.stderr
    assert (folder / "model_0000001.pth").exists()
    assert bench.run("--yes", verb="clean").returncode == 0
    assert not (folder / "model_0000001.pth").exists()
    assert not (folder / left).exists()
    assert all((folder / name).exists() for name in foreign)
    assert (folder / "model_final.pth").exists()
    assert (folder / "result.json").exists()
    bench.matrix(seeds=[2])
    assert bench.run("--only", "*ours*").returncode == 0
    assert bench.run("--yes", verb="clean").returncode == 0
    assert folder.exists()
    bench.run("--orphans", "--yes", verb="clean")
    assert not folder.exists()
    assert (bench.output / "cells" / "strange").exists()
    assert len(bench.folders()) == 1
