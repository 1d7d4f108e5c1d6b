"""torchrun itself: one message when a process fails, and a new start when one is lost."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.support.forks import ROOT
from tests.support.waiting import wait_for

LONG = {"SOLVER.MAX_ITER": "1500", "SOLVER.CHECKPOINT_PERIOD": "100", "TEST.EVAL_PERIOD": "0"}


def _start(
    config: Path, folder: Path, data_root: Path, *options: str, **overrides: str
) -> subprocess.Popen[str]:
    settings = {"OUTPUT_DIR": str(folder), "TEST.PICTURES": "0", **overrides}
    words = [word for pair in settings.items() for word in pair]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(data_root)}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "tests.support.tiny", "--config-file", str(config), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def _workers(pid: int) -> list[int]:
    """Return the processes that ``pid`` started, in order."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.slow
def test_the_process_that_failed_is_heard(config: Path, own_data_root: Path, tmp_path: Path) -> None:
    bad = own_data_root / "tiny/images/train/5.png"
    bad.write_bytes(bad.read_bytes()[:200])
    process = _start(config, tmp_path / "run", own_data_root)
    _, err = process.communicate()
    assert process.returncode == 1
    said = [line for line in err.splitlines() if line.startswith("train_net: ")]
    assert len([line for line in said if str(bad) in line]) == 1
    assert all(str(bad) in line or line == "train_net: stopped by SIGTERM" for line in said)
    assert str(bad) in err[err.index("Root Cause") :]


@pytest.mark.slow
def test_a_lost_process_leads_to_a_new_start_from_the_last_checkpoint(
    config: Path, data_root: Path, tmp_path: Path
) -> None:
    undisturbed = _start(config, tmp_path / "undisturbed", data_root, **LONG)
    _, err = undisturbed.communicate()
    assert undisturbed.returncode == 0, err
    folder = tmp_path / "run"
    process = _start(config, folder, data_root, "--max-restarts", "1", **LONG)
    wait_for((folder / "last_checkpoint").exists, while_running=process.poll)
    os.kill(_workers(process.pid)[-1], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "iterations 0 to 1500" in err
    assert len([line for line in err.splitlines() if ": iterations " in line]) == 2, err
    models = [
        torch.load(run / "model_final.pth", weights_only=True)["model"]
        for run in (folder, tmp_path / "undisturbed")
    ]
    for name, value in models[1].items():
        assert torch.equal(models[0][name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_stopped_for_a_while_changes_nothing(
    victim: int, config: Path, data_root: Path, tmp_path: Path
) -> None:
    settings = {"SOLVER.MAX_ITER": "200", "SOLVER.CHECKPOINT_PERIOD": "50", "TEST.EVAL_PERIOD": "0"}
    for name in ("undisturbed", "run"):
        process = _start(config, tmp_path / name, data_root, **settings)
        if name == "run":
            wait_for((tmp_path / name / "last_checkpoint").exists, while_running=process.poll)
            pid = _workers(process.pid)[victim]
            os.kill(pid, signal.SIGSTOP)
            threading.Event().wait(2)
            os.kill(pid, signal.SIGCONT)
        _, err = process.communicate()
        assert process.returncode == 0, err
    models = [
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("undisturbed", "run")
    ]
    for name, value in models[0].items():
        assert torch.equal(models[1][name], value), name
