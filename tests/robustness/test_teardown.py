"""Processes of a run end as they should, however late their communication threads notice."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.robustness.conftest import FEW, TRIALS
from tests.support.forks import ROOT

Report = Callable[[str, int, str], None]
pytestmark = pytest.mark.slow

TINY = ("-m", "tests.support.tiny")
# Launches and nothing else: python launch.py PROCESSES TIMES.
LAUNCH = """
import sys
from hicl_d2.lite.engine import launch
from hicl_d2.lite.utils import comm

def main():
    assert comm.all_gather(comm.get_rank()) == list(range(comm.get_world_size()))

if __name__ == "__main__":
    for _ in range(int(sys.argv[2])):
        launch(main, int(sys.argv[1]), dist_url="auto")
"""


def _run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT, env=everything
    )


@pytest.mark.parametrize(
    "way",
    [
        "launch",
        "torchrun",
        "tests",
        pytest.param(
            "detectron2",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("detectron2") is None, reason="Detectron2 is not installed here"
            ),
        ),
    ],
)
def test_processes_whose_communication_threads_are_starved_end_without_an_abort(
    way: str, tmp_path: Path, report: Report
) -> None:
    # Without the groups left, each of the two processes aborts in a quarter to a half of the trials.
    trials = max(10, FEW)
    done = _run("-m", "tests.support.starved", way, str(trials), str(tmp_path))
    assert Counter(json.loads(done.stdout)) == {0: 2 * trials}, done.stderr
    assert "terminate called" not in done.stderr
    if way != "tests":
        report(f"communication threads starved, two processes ({way})", trials, "both end with exit code 0")


@pytest.mark.parametrize("processes", [2, 4])
def test_launches_end_without_an_abort(processes: int, tmp_path: Path, report: Report) -> None:
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    trials = 4 * TRIALS
    done = _run(str(script), str(processes), str(trials))
    assert (done.returncode, done.stderr) == (0, "")
    report(f"launches of {processes} processes", trials, "all end with exit code 0 and without a word")


@pytest.mark.parametrize("launcher", ["--num-gpus", "torchrun"])
def test_trainings_of_two_processes_end_without_an_abort(
    launcher: str, config: Path, data_root: Path, tmp_path: Path, report: Report
) -> None:
    is_torchrun = launcher == "torchrun"
    trials = 2 * FEW if is_torchrun else 3 * FEW
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2") if is_torchrun else ()
    processes = () if is_torchrun else ("--num-gpus", "2")
    for trial in range(trials):
        folder = tmp_path / f"run{trial}"
        words = ("--config-file", str(config), *processes, "OUTPUT_DIR", str(folder))
        done = _run(*start, *TINY, *words, DETECTRON2_DATASETS=str(data_root))
        assert done.returncode == 0, done.stderr
        assert "terminate called" not in done.stderr
        assert (folder / "result.json").is_file()
    report(f"trainings of two processes ({launcher})", trials, "all end with exit code 0 and a result")
