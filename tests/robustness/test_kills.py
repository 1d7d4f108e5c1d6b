"""A training that is killed at any moment and resumed ends as the one that was left alone."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.conftest import FEW, TRIALS, Runs
from tests.support.forks import ROOT, Child
from tests.support.states import assert_equal, run_state
from tests.support.tiny import HALT_CHECKPOINT

Report = Callable[[str, int, str], None]
pytestmark = pytest.mark.slow
PATIENCE = 60.0


def _until(condition: Callable[[], bool], child: Child) -> bool:
    """Wait until ``condition`` holds, as closely as can be; return False if the training ends before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if child.status() is not None or time.monotonic() > end:
            return False
        time.sleep(0.0005)
    return True


def _seconds(runs: Runs, folder: Path) -> float:
    start = time.monotonic()
    assert runs.start(folder).wait().code == 0
    return time.monotonic() - start


def test_sigkill_at_any_moment(
    runs: Runs, undisturbed: dict[str, Any], chance: random.Random, tmp_path: Path, report: Report
) -> None:
    seconds = _seconds(runs, tmp_path / "timed")
    killed, with_checkpoint = 0, 0
    for trial in range(10 * TRIALS):
        folder = tmp_path / f"killed{trial}"
        child = runs.start(folder, **{"DATALOADER.NUM_WORKERS": str(trial % 2)})
        time.sleep(chance.uniform(0, seconds))
        child.kill()
        if child.wait().code == 0:
            continue
        killed += 1
        with_checkpoint += (folder / "last_checkpoint").exists()
        runs.resume(folder)
        assert_equal(run_state(folder), undisturbed, f"killed after {trial}")
        if killed == TRIALS:
            break
    assert killed == TRIALS
    report(
        "SIGKILL at a random moment, then `--resume`",
        killed,
        f"{killed} equal bit for bit ({with_checkpoint} went on from a checkpoint)",
    )


def test_sigkill_during_a_checkpoint(
    runs: Runs, undisturbed: dict[str, Any], chance: random.Random, tmp_path: Path, report: Report
) -> None:
    for trial in range(FEW):
        folder, iteration = tmp_path / f"killed{trial}", 3 * chance.randrange(10) + 2
        name = f".*-model_{iteration:07d}.pth.*"
        child = runs.start(folder, environment={HALT_CHECKPOINT: str(iteration)})
        assert _until(
            lambda folder=folder, name=name: any(file.stat().st_size for file in folder.glob(name)), child
        )
        child.kill()
        child.wait()
        assert len(list(folder.glob(name))) == 1
        assert not (folder / f"model_{iteration:07d}.pth").exists()
        runs.resume(folder)
        assert not any(folder.glob(".*.tmp"))
        assert_equal(run_state(folder), undisturbed, f"killed in the checkpoint of {iteration}")
    report(
        "SIGKILL while a checkpoint is written, then `--resume`",
        FEW,
        f"{FEW} equal bit for bit, each had left a half-written file",
    )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_ask(
    signum: signal.Signals,
    runs: Runs,
    undisturbed: dict[str, Any],
    chance: random.Random,
    tmp_path: Path,
    report: Report,
) -> None:
    stopped = 0
    for trial in range(FEW):
        folder = tmp_path / f"stopped{trial}"
        child = runs.start(folder)
        _until(lambda folder=folder: (folder / "last_checkpoint").exists(), child)
        time.sleep(chance.uniform(0, 0.3))
        child.kill(signum)
        ended = child.wait()
        assert ended.code in (0, 128 + signum), ended.err[-2000:]
        assert "Traceback" not in ended.err
        if ended.code:
            stopped += 1
            assert ended.err.splitlines()[-1] == f"train_net: stopped by {signum.name}"
            runs.resume(folder)
        assert_equal(run_state(folder), undisturbed, f"stopped {trial}")
    assert stopped > 0
    report(
        f"{signum.name}{' (Ctrl-C)' if signum == signal.SIGINT else ''}, then `--resume`",
        stopped,
        f"exit code {128 + signum} with a checkpoint, {stopped} equal bit for bit",
    )


def _workers(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_loader_worker_that_is_killed(
    runs: Runs, undisturbed: dict[str, Any], chance: random.Random, tmp_path: Path, report: Report
) -> None:
    two = {"DATALOADER.NUM_WORKERS": "2"}
    said = 0
    for trial in range(FEW):
        folder = tmp_path / f"lost{trial}"
        child = runs.start(folder, **two)
        if _until(lambda folder=folder: (folder / "last_checkpoint").exists(), child) and _workers(child.pid):
            os.kill(chance.choice(_workers(child.pid)), signal.SIGKILL)
        ended = child.wait()
        assert ended.code in (0, 2), ended.err[-2000:]
        assert "Traceback" not in ended.err
        if ended.code:
            said += 1
            assert "DataLoader worker" in ended.err.splitlines()[-1]
            runs.resume(folder, **two)
        assert_equal(run_state(folder), undisturbed, f"lost {trial}")
    assert said > 0
    report(
        "a loader's worker killed, then `--resume`", said, f"one line, exit code 2, {said} equal bit for bit"
    )


def _family(mark: str) -> list[int]:
    """Return the processes that have ``mark`` in their environment and run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_one = mark.encode() in (folder / "environ").read_bytes()
            if is_one and (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(int(folder.name))
    return found


def _ranks(pid: int) -> list[int]:
    """Return the processes that ``launch`` started, in order."""
    is_rank = {child: b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes() for child in _workers(pid)}
    return [child for child in sorted(is_rank) if is_rank[child]]


@pytest.mark.parametrize("victim", [0, 1, None])
def test_a_process_of_two_that_is_killed(
    victim: int | None, config: Path, data_root: Path, tmp_path: Path, report: Report
) -> None:
    trials = max(2, FEW // 2)
    for trial in range(trials):
        folder, mark = tmp_path / f"run{trial}", f"HICL_TEST={tmp_path.name}-{trial}"
        words = ["--config-file", str(config), "--num-gpus", "2", "OUTPUT_DIR", str(folder)]
        settings = {
            "SOLVER.MAX_ITER": "100000",
            "SOLVER.CHECKPOINT_PERIOD": "20",
            "TEST.EVAL_PERIOD": "0",
            "DATALOADER.NUM_WORKERS": "2",
        }
        name, _, value = mark.partition("=")
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.tiny",
                *words,
                *(w for pair in settings.items() for w in pair),
            ],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(data_root), name: value},
        )
        while not (folder / "last_checkpoint").exists() and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid if victim is None else _ranks(process.pid)[victim], signal.SIGKILL)
        _, err = process.communicate()  # ends when nobody has standard error open any more
        assert "Traceback" not in err
        lines = [
            line
            for line in err.splitlines()
            if not line.startswith(("TinySegmentor", "running on", "iteration", "saved"))
        ]
        if victim is None:
            assert (process.returncode, lines) == (-signal.SIGKILL, [])
        else:
            assert process.returncode == 2
            (line,) = lines
            assert line.startswith(f"train_net: process {victim} of the run was ended by SIGKILL; ")
        while _family(mark):
            time.sleep(0.01)
    who = "the process that started them" if victim is None else f"process {victim}"
    said = "no process left" if victim is None else "one line, exit code 2, no process left"
    report(f"of two processes {who} killed", trials, said)
