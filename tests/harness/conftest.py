"""A matrix on disk, and a stand-in for the training that does what its overrides ask."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmark"
sys.path.insert(0, str(BENCHMARK))

STUB = """
import json, os, pathlib, signal, subprocess, sys, time
words = sys.argv[1:]
assert words[0] == "--config-file" and words[2] == "--resume", words
keys = dict(zip(words[3::2], words[4::2]))
keys["gpus"] = keys.pop("--num-gpus", "1")
output = pathlib.Path(keys["OUTPUT_DIR"])
fixed = (output / "fixed").exists()
seed, steps = int(keys["SEED"]), int(keys.get("SOLVER.MAX_ITER", 3))
with open(output / "starts.txt", "a") as file:
    file.write(f"{words}\\n")
print("training starts")
with open(output / "where.txt", "a") as file:
    file.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {keys.get('gpus')} {time.time()}\\n")
is_first = len((output / "starts.txt").read_text().splitlines()) == 1
if is_first and keys.get("STUB.KILL_ONCE"):
    os.kill(os.getpid(), signal.SIGKILL)
if is_first and keys.get("STUB.SLOW_ONCE"):
    time.sleep(1000)
if is_first and keys.get("STUB.FAIL_ONCE"):
    time.sleep(float(keys.get("STUB.STEP_SECONDS", 0)))
    sys.exit(keys["STUB.FAIL_ONCE"])
if keys.get("STUB.STUBBORN"):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
with open(output / "metrics.json", "a") as file:
    for step in range(steps):
        line = {"iteration": step, "total_loss": 1.5 / (step + 1), "eta_seconds": 60.0 * (steps - step - 1)}
        file.write(json.dumps(line) + "\\n")
        file.flush()
        if keys.pop("STUB.CHILD", None):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
            (output / "child.txt").write_text(str(child.pid))
        while keys.get("STUB.GATE") and not pathlib.Path(keys["STUB.GATE"]).exists():
            time.sleep(0.01)
        while len(list(output.parent.glob("*/where.txt"))) < int(keys.get("STUB.MEET", 0)):
            time.sleep(0.01)
        if not fixed:
            time.sleep(float(keys.get("STUB.STEP_SECONDS", 0)))
failure = keys.get("STUB.FAIL")
if failure and not fixed:
    sys.stderr.write(f"Traceback (most recent call last):\\n  a line\\nRuntimeError: {failure}\\n\\n")
    sys.exit(3)
if keys.get("STUB.NO_RESULT"):
    sys.exit(0)
gain = float(keys.get("STUB.GAIN", 0))
miou = 40.0 + seed + gain
scores = {"iteration": steps, "sem_seg/mIoU": miou, "sem_seg/mAcc": 50.0, "sem_seg/IoU-sky": 60.0}
best = {"iteration": 2, "sem_seg/mIoU": 44.0 + seed, "sem_seg/mAcc": None}
(output / "pictures").mkdir(exist_ok=True)
result = {
    "schema": int(keys.get("STUB.SCHEMA", 1)), "status": "finished", "dataset": "d", "iterations": steps,
    "metrics": {"last": scores, "best": best}, "class_iou": {"sky": 60.0, "road": None},
    "seconds": {"total": 9.0, "per_iteration": 0.25 + seed / 100, "evaluation": 1.0}, "peak_memory_mb": 123.0,
    "parameters": {"model": 10, "branch": 2}, "seed": seed, "config_hash": "x", "versions": {}, "git": {},
    "device": "cpu",
}
if keys.get("STUB.IDENTITY"):
    (output / "manifest.json").write_text(json.dumps({"identity": {"config": keys["STUB.IDENTITY"]}}))
(output / ".new").write_text(json.dumps(result))
(output / ".new").rename(output / "result.json")
with open(output / "results.txt", "a") as file:
    file.write(f"{time.time()}\\n")
"""


class Bench:
    """A folder with configs, a matrix file and a stand-in training script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.script = folder / "stub.py"
        self.script.write_text(STUB)
        self.write("base.yaml", "SOLVER: {MAX_ITER: 3, BASE_LR: 0.01}\n")
        self.write("plain.yaml", "_BASE_: base.yaml\nMODEL: {META_ARCHITECTURE: A}\n")
        self.write("other.yaml", "_BASE_: base.yaml\nMODEL: {META_ARCHITECTURE: B}\n")
        self.matrix()

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def matrix(self, **changes) -> Path:
        """Write the matrix file: two methods and two seeds unless told otherwise; None removes a key."""
        content = {
            "name": "test",
            "datasets": ["parts"],
            "models": ["small"],
            "methods": {
                "baseline": {"config": str(self.folder / "plain.yaml")},
                "ours": {"config": str(self.folder / "other.yaml"), "overrides": {"STUB.GAIN": 1.5}},
            },
            "seeds": [1, 2],
            "shorten": {"SOLVER.MAX_ITER": 1},
        }
        content.update(changes)
        content = {key: value for key, value in content.items() if value is not None}
        return self.write("matrix.yaml", json.dumps(content))  # JSON is YAML

    def command(self, *options: str, verb: str = "run") -> list[str]:
        fixed = ["--matrix", str(self.folder / "matrix.yaml"), "--output", str(self.output)]
        script = ["--train-script", str(self.script)]
        return [sys.executable, str(BENCHMARK / "run_matrix.py"), verb, *fixed, *script, *options]

    def run(self, *options: str, verb: str = "run") -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*options, verb=verb), capture_output=True, text=True, check=False)

    def start(self, *options: str, verb: str = "run") -> "subprocess.Popen[bytes]":
        """Start the command and let it go on; what it says goes to files (:meth:`said`)."""
        with (
            (self.folder / "stdout.txt").open("wb") as out,
            (self.folder / "stderr.txt").open("wb") as error,
        ):
            return subprocess.Popen(self.command(*options, verb=verb), stdout=out, stderr=error)

    def said(self) -> str:
        """Return what the command that was started last has written to standard error so far."""
        return (self.folder / "stderr.txt").read_text()

    def folders(self) -> list[Path]:
        """Return the folders of the cells that were started."""
        return sorted(path for path in (self.output / "cells").iterdir() if (path / "attempts").exists())

    def starts(self) -> list[int]:
        """Return how often each cell was started."""
        return [len((folder / "starts.txt").read_text().splitlines()) for folder in self.folders()]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Make it look as if there were two GPUs of 24 and 80 GiB."""
    tools = tmp_path / "tools"
    tools.mkdir()
    tool = tools / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, Small, 24576'\necho '1, Large, 81920'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
