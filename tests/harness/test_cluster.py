"""The cluster executor on a real SLURM of one node, and on stand-ins for its tools where there is none."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from hicl_d2.harness import folder as files
from hicl_d2.harness.job import STOP_FILE, CellJob
from hicl_d2.harness.matrix import read_matrix
from tests.harness import slurm_node
from tests.harness.test_run_matrix import one_line_error, rows, wait_for

pytestmark = pytest.mark.slow
needs_slurm = pytest.mark.skipif(slurm_node.obstacle() is not None, reason=str(slurm_node.obstacle()))

CPU = {"cpus": 1, "gpus": 0}
ON_SLURM = ("--executor", "slurm")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    pytest.importorskip("submitit")
    with slurm_node.slurm_node(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@pytest.fixture
def cluster(node, bench, monkeypatch):
    for name, value in node.items():
        monkeypatch.setenv(name, value)
    yield bench
    subprocess.run(["scancel", "--me"], check=False)


def start(bench, *options):
    return bench.start(*ON_SLURM, *options)


def kill_job(job):
    """End every process of a job at once, as a machine that goes down does."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SLURM_JOB_ID={job}\0".encode() in (place / "environ").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)


@needs_slurm
def test_cells_run_as_jobs_with_the_same_results_as_here(cluster):
    cluster.matrix(seeds=[1], resources=CPU)
    done = cluster.run(*ON_SLURM)
    assert done.returncode == 0, done.stderr
    there = [(row["cell"], row["metric"], row["at"], row["value"]) for row in rows(cluster)]
    table = (cluster.output / "table.md").read_text()
    for folder in cluster.folders():
        assert json.loads((folder / "attempts" / "0001.json").read_text())["job"]
    assert cluster.run(*ON_SLURM).returncode == 0
    assert cluster.starts() == [1, 1]
    cluster.output = cluster.folder / "here"
    assert cluster.run().returncode == 0
    assert [(row["cell"], row["metric"], row["at"], row["value"]) for row in rows(cluster)] == there
    assert (cluster.output / "table.md").read_text() == table


@needs_slurm
def test_no_more_cells_run_at_a_time_than_are_allowed(cluster):
    cluster.matrix(resources=CPU, overrides={"STUB.STEP_SECONDS": 0.7})
    assert cluster.run(*ON_SLURM, "--max-cells", "1").returncode == 0
    spans = sorted(
        (float((folder / "where.txt").read_text().split()[2]), float((folder / "results.txt").read_text()))
        for folder in cluster.folders()
    )
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@needs_slurm
def test_a_failure_is_told_apart_and_the_others_run(cluster):
    fails = {"config": str(cluster.folder / "plain.yaml"), "overrides": {"STUB.FAIL": "loss is not finite"}}
    cluster.matrix(
        seeds=[1], resources=CPU, methods={"a": fails, "b": {"config": str(cluster.folder / "other.yaml")}}
    )
    done = cluster.run(*ON_SLURM)
    assert done.returncode == 1
    assert "FAILED, exit 3: RuntimeError: loss is not finite" in done.stderr
    assert sorted(row["status"] for row in rows(cluster) if row["at"] != "best")[0] == "failed"
    assert cluster.starts() == [1, 1]


@needs_slurm
def test_a_job_whose_time_is_over_keeps_a_checkpoint_and_is_queued_again(cluster):
    cluster.matrix(seeds=[1], resources=CPU, overrides={"STUB.SLOW_ONCE": 1})
    done = cluster.run(*ON_SLURM, "--job-minutes", "2", "--only", "*ours*")
    assert done.returncode == 0, done.stderr
    folder = cluster.folders()[0]
    assert cluster.starts() == [2]
    assert "KeyboardInterrupt" in (folder / "stderr.txt").read_text()  # it was asked, not killed
    first, second = files.attempts(folder)
    assert first["failure"] is None
    assert first["job"] == second["job"]


@needs_slurm
def test_a_job_that_is_preempted_is_queued_again(cluster):
    """Preemption as SLURM does it: the signal that the job asked for, then the queue again."""
    cluster.matrix(seeds=[1], resources=CPU, overrides={"STUB.SLOW_ONCE": 1})
    process = start(cluster, "--only", "*ours*")
    wait_for(lambda: list(cluster.output.glob("cells/*/where.txt")))
    job = files.last_attempt(cluster.folders()[0])["job"]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    assert process.wait() == 0, cluster.said()
    assert cluster.starts() == [2]
    assert "KeyboardInterrupt" in (cluster.folders()[0] / "stderr.txt").read_text()  # asked, not killed
    assert len((cluster.folders()[0] / "results.txt").read_text().splitlines()) == 1


@needs_slurm
def test_a_job_that_is_lost_is_submitted_again(cluster):
    cluster.matrix(seeds=[1], resources=CPU, overrides={"STUB.SLOW_ONCE": 1})
    process = start(cluster, "--only", "*ours*")
    wait_for(lambda: list(cluster.output.glob("cells/*/where.txt")))
    job = files.last_attempt(cluster.folders()[0])["job"]
    kill_job(job)
    assert process.wait() == 0, cluster.said()
    assert "left the queue without a result; it is submitted again" in cluster.said()
    assert cluster.starts() == [2]


@needs_slurm
def test_jobs_outlive_a_harness_that_is_killed_and_the_next_one_finds_them(cluster):
    cluster.matrix(seeds=[1], resources=CPU, overrides={"STUB.STEP_SECONDS": 4})
    process = start(cluster)
    wait_for(lambda: len(list(cluster.output.glob("cells/*/where.txt"))) == 2)
    process.kill()
    process.wait()
    done = cluster.run(*ON_SLURM)
    assert done.returncode == 0, done.stderr
    assert "already" in done.stderr
    assert "left behind" not in done.stderr
    assert cluster.starts() == [1, 1]


@needs_slurm
@pytest.mark.parametrize(("signals", "done"), [(1, 1), (2, 0)])
def test_ctrl_c_drains_and_twice_stops(cluster, signals, done):
    gate = cluster.folder / "gate"
    cluster.matrix(resources=CPU, overrides={"STUB.GATE": str(gate)})
    process = start(cluster, "--max-cells", "1")
    wait_for(lambda: list(cluster.output.glob("cells/*/where.txt")))
    for _ in range(signals):
        before = cluster.said()
        process.send_signal(signal.SIGINT)
        wait_for(lambda before=before: cluster.said() != before, while_running=process.poll)
    if done:
        gate.touch()
    assert process.wait() == 130, cluster.said()
    assert len(list(cluster.output.glob("cells/*/result.json"))) == done
    assert len(list(cluster.output.glob("cells/*/starts.txt"))) == 1
    queue = subprocess.run(["squeue", "--me", "-h"], capture_output=True, text=True, check=True).stdout
    assert queue == ""


def test_without_slurm_there_is_one_line(bench, monkeypatch):
    bench.matrix(seeds=[1])
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "--executor slurm needs SLURM: squeue is not on this machine" in one_line_error(
        bench.run(*ON_SLURM)
    )


def test_a_cluster_that_does_not_answer_is_one_line(bench, monkeypatch, tmp_path):
    bench.matrix(seeds=[1])
    tool = tmp_path / "tools" / "squeue"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\necho 'squeue: error: fetch_config: DNS SRV lookup failed' >&2\n"
        "echo 'squeue: fatal: Could not establish a configuration source' >&2\nexit 1\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    assert (
        "does not reach the cluster (Could not establish a configuration source); start it"
        in one_line_error(bench.run(*ON_SLURM))
    )


def test_a_job_leaves_a_cell_alone_that_is_done_or_was_stopped(bench):
    cell = read_matrix(bench.matrix(seeds=[1])).cells[0]
    job = CellJob(cell, bench.script, bench.output)
    folder = cell.folder(bench.output)
    folder.mkdir(parents=True)
    (folder / STOP_FILE).touch()
    assert job() == "stopped before"
    assert not (folder / "starts.txt").exists()
    (folder / STOP_FILE).unlink()
    assert job() == "done"
    assert job() == "done before"
    assert bench.starts() == [1]
    assert os.environ.get("SLURM_JOB_ID") is None
