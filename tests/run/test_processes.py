"""Several processes on the CPU train what one does, and fail with one message."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError
from hicl_d2.command.interrupts import Interrupted
from hicl_d2.run.processes import _failure, silence_all_but_the_first
from tests.support.fixtures import Command
from tests.support.waiting import wait_for

PLAIN = ("MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", "0.0")  # what a rank draws at random is its own


def _start(config: Path, folder: Path, *arguments: str) -> subprocess.Popen:
    words = ["--config-file", str(config), "OUTPUT_DIR", str(folder), "--num-gpus", "2", *PLAIN, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.tiny", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _model(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_two_processes_equal_one_with_the_same_batch(command: Command, config: Path, tmp_path: Path) -> None:
    assert command(*PLAIN).code == 0
    process = _start(config, tmp_path / "two")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert len([line for line in err.splitlines() if ": iterations 0 to" in line]) == 1, err
    one, two = _model(tmp_path / "run"), _model(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5, msg=name)
    last_of_one, last_of_two = (_result(tmp_path / run)["metrics"]["last"] for run in ("run", "two"))
    assert last_of_two == pytest.approx(last_of_one, abs=1.0)
    losses = [
        [
            line["total_loss"]
            for line in map(json.loads, (tmp_path / run / "metrics.json").open())
            if "lr" in line
        ]
        for run in ("run", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert (tmp_path / "two/log.txt.rank1").exists()
    assert _result(tmp_path / "two")["config_hash"] == _result(tmp_path / "run")["config_hash"]


def test_a_bad_image_in_any_process_ends_all_with_one_line(
    own_data_root: Path, config: Path, tmp_path: Path
) -> None:
    bad = own_data_root / "tiny/images/train/5.png"  # the check before the start reads the first four
    bad.write_bytes(bad.read_bytes()[:200])
    process = _start(config, tmp_path / "run")
    _, err = process.communicate()
    assert process.returncode == 2, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("train_net: ")]
    assert len(lines) == 1
    assert str(bad) in lines[0]


def test_sigterm_stops_all_processes_after_a_checkpoint(
    command: Command, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    long = ("SOLVER.MAX_ITER", "100000", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()")
    process = _start(config, folder, *long)
    wait_for((folder / "last_checkpoint").exists, while_running=process.poll)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "train_net: stopped by SIGTERM"
    last = (folder / "last_checkpoint").read_text()
    saved = torch.load(folder / last, weights_only=True)
    assert last == f"model_{saved['iteration']:07d}.pth"


@pytest.mark.parametrize(("rank", "said"), [("0", "here\n"), ("1", "")])
def test_of_torchruns_processes_the_first_alone_speaks_before_they_have_met(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", rank)
    try:
        silence_all_but_the_first()
        console.say("here")
    finally:
        console.silence(False)
    assert capsys.readouterr().err == said


def _write(records: Path, rank: int, **record: Any) -> None:
    (records / f"{rank}.json").write_text(json.dumps({"signal": None, **record}))
    (records / f"{rank}.ended").touch()


def test_the_first_mistake_of_the_user_is_told_and_not_what_followed_from_it(tmp_path: Path) -> None:
    _write(tmp_path, 0, kind="fault", time=1.0, message="connection closed by peer")
    _write(tmp_path, 1, kind="input", time=3.0, message="b.png is truncated")
    _write(tmp_path, 2, kind="input", time=2.0, message="a.png is truncated")
    failure = _failure(tmp_path, RuntimeError("x"), range(3))
    assert isinstance(failure, InputError)
    assert str(failure) == "a.png is truncated"


def test_a_fault_is_told_with_the_traceback_of_the_first_process(tmp_path: Path) -> None:
    _write(tmp_path, 0, kind="fault", time=2.0, message="Traceback: connection closed by peer")
    _write(tmp_path, 1, kind="fault", time=1.0, message="Traceback: KeyError")
    assert "Traceback: KeyError" in str(_failure(tmp_path, RuntimeError("x"), range(2)))
    unknown = RuntimeError("killed by SIGKILL")
    assert _failure(tmp_path / "nothing", unknown, range(2)) is unknown


@pytest.mark.parametrize(("fault", "stop"), [(1.0, 2.0), (2.0, 1.0)])
def test_of_a_fault_and_a_stop_the_first_is_told(fault: float, stop: float, tmp_path: Path) -> None:
    _write(tmp_path, 0, kind="fault", time=fault, message="Traceback: ZeroDivisionError")
    _write(tmp_path, 1, kind="stopped", time=stop, signal=signal.SIGTERM, message="")
    failure = _failure(tmp_path, ProcessExitedException("x", 0, 123, 3), range(2))
    assert isinstance(failure, Interrupted) == (stop < fault)
    assert ("ZeroDivisionError" in str(failure)) == (fault < stop)


def test_a_process_that_was_killed_is_told_and_not_what_followed_from_it(tmp_path: Path) -> None:
    _write(tmp_path, 4, kind="fault", time=2.0, message="connection closed by peer")
    _write(tmp_path, 5, kind="stopped", time=1.0, signal=signal.SIGTERM, message="")
    by_signal = ProcessExitedException("x", 0, 123, -9, "SIGKILL")
    assert "process 4 of the run was ended by SIGKILL; " in str(_failure(tmp_path, by_signal, range(4, 6)))
    by_itself = ProcessExitedException("x", 0, 123, 3)
    assert isinstance(_failure(tmp_path, by_itself, range(4, 6)), Interrupted)
    lost = _failure(tmp_path, by_itself, range(4, 7))  # the sixth has left nothing
    assert isinstance(lost, InputError)
    assert "process 6 of the run was ended from outside; " in str(lost)
