"""What the report of a graphics card does with its minutes."""

import json
import subprocess
import sys
from pathlib import Path

import gpu_report
import pytest

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"


def python(name: str, code: str, share: float = 1.0) -> gpu_report.Part:
    return gpu_report.Part(name, [sys.executable, "-c", code], share)


def test_a_part_that_is_done_leaves_its_log_and_is_marked(tmp_path: Path) -> None:
    outcome = gpu_report.do(python("one", "print('seen')"), tmp_path / "one", 60)
    assert outcome.startswith("done in")
    assert (tmp_path / "one" / "log.txt").read_text() == "seen\n"
    assert (tmp_path / "one" / "done").exists()


def test_a_part_that_fails_names_its_log_and_may_be_done_again(tmp_path: Path) -> None:
    outcome = gpu_report.do(python("one", "raise SystemExit(3)"), tmp_path / "one", 60)
    assert outcome.startswith("failed with status 3")
    assert outcome.endswith(f"see {tmp_path / 'one' / 'log.txt'}")
    assert not (tmp_path / "one" / "done").exists()


@pytest.mark.parametrize("code", ["import time; time.sleep(600)", STUBBORN])
def test_a_part_that_runs_out_of_time_is_stopped(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_report, "GRACE", 1)
    outcome = gpu_report.do(python("one", code), tmp_path / "one", 4)
    assert outcome.startswith("stopped after")
    assert not (tmp_path / "one" / "done").exists()


def test_a_second_call_does_what_the_first_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = python(
        "second", f"raise SystemExit(not __import__('os').path.exists({str(tmp_path / 'mended')!r}))"
    )
    counts = python("first", f"open({str(tmp_path / 'times')!r}, 'a').write('1')")
    monkeypatch.setattr(gpu_report, "parts", lambda *_, **__: [counts, fails])
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--output", str(tmp_path / "out"), "--device", "cpu"])
    assert gpu_report.main() == 1
    (tmp_path / "mended").touch()
    assert gpu_report.main() == 0
    assert (tmp_path / "times").read_text() == "1"
    assert json.loads((tmp_path / "out" / "machine.json").read_text())["device"]
    assert "first: done before" in capsys.readouterr().err


def test_every_part_names_files_that_exist(tmp_path: Path) -> None:
    for part in gpu_report.parts(tmp_path, "cuda", gpu_report.MATRIX, 4, tiny=False):
        files = [word for word in part.command[1:] if word.endswith((".py", ".yaml"))]
        assert files
        assert all((gpu_report.ROOT / word).is_file() for word in files)


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_at_tiny_sizes(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    matrix = root / "benchmark" / "matrices" / "smoke.yaml"
    command = [
        sys.executable,
        str(root / "benchmark" / "gpu_report.py"),
        "--output",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [*command, "--tiny", "--minutes", "60", "--matrix", str(matrix)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for file in (
        "deeplab_v3_plus/deeplab_v3_plus.csv",
        "mask2former/mask2former.csv",
        "steps/steps.csv",
        "contrasts/contrasts.csv",
    ):
        assert len((tmp_path / file).read_text().splitlines()) > 2
    assert (tmp_path / "cells" / "short" / "results.csv").exists()
