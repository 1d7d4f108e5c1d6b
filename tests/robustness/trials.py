"""Trials of the harness: speed of planning, overhead, kills, two at once, a full disk, a read-only folder."""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hicl_d2.harness.training import processes_of
from tests.robustness import BENCHMARK

CELL = Path(__file__).resolve().parent / "cell.py"


class Folder:
    """A matrix of cells that only wait, and its output."""

    def __init__(self, place: Path, cells: int, seconds: float, output: Path | None = None) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place = place
        self.output = output or place / "output"
        self.matrix = place / "matrix.yaml"
        config = place / "config.yaml"
        config.write_text("SOLVER: {MAX_ITER: 5}\nMODEL: {DEVICE: cpu}\n")
        methods = {f"m{n}": {"overrides": {"LOAD.NAME": f"m{n}"}} for n in range(-(-cells // 5))}
        content = {
            "name": "load",
            "config": str(config),
            "datasets": ["waiting"],
            "models": ["none"],
            "methods": methods,
            "seeds": [1, 2, 3, 4, 5],
            "overrides": {"LOAD.SECONDS": seconds},
        }
        self.matrix.write_text(json.dumps(content))
        self.count = 5 * len(methods)

    def command(self, verb: str, *options: str) -> list[str]:
        """Return a command line of run_matrix.py."""
        tool = [sys.executable, str(BENCHMARK / "run_matrix.py"), verb, "--matrix", str(self.matrix)]
        return [*tool, "--output", str(self.output), "--train-script", str(CELL), *options]

    def run(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(self.command(verb, *options), capture_output=True, text=True, check=False)

    def start(self) -> subprocess.Popen[bytes]:
        """Start a run on two slots and let it go on."""
        quiet = subprocess.DEVNULL
        return subprocess.Popen(self.command("run", "--slots", "2"), stdout=quiet, stderr=quiet)

    def cells(self) -> list[Path]:
        """Return the folders of the cells that were started."""
        place = self.output / "cells"
        return sorted(place.iterdir()) if place.is_dir() else []

    def scores(self) -> dict[tuple[str, str, str], str]:
        """Return what results.csv says of every cell."""
        with (self.output / "results.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {(row["cell"], row["metric"], row["at"]): row["value"] for row in rows}


def planning_seconds(place: Path, cells: int) -> float:
    """Return how long ``plan`` takes, from its start to its end."""
    folder = Folder(place, cells, 1.0)
    before = time.monotonic()
    done = folder.run("plan")
    seconds = time.monotonic() - before
    assert f"{folder.count} cells: {folder.count} to run" in done.stdout, done.stderr
    return seconds


def overhead(place: Path, cells: int, seconds: float) -> tuple[float, float]:
    """Return how much longer a run on two slots takes than its cells do, as a share, and a bare pool's share.

    The bare pool starts the same cells with no more than a thread per slot: what this machine cannot do better.
    """
    folder = Folder(place / "harness", cells, seconds)
    before = time.monotonic()
    done = folder.run("run", "--slots", "2")
    ours = time.monotonic() - before
    assert done.returncode == 0, done.stderr[-2000:]
    bare = Folder(place / "bare", cells, seconds)
    manifests = [json.loads((cell / "cell.json").read_text()) for cell in folder.cells()]
    commands = []
    for number, manifest in enumerate(manifests):
        target = bare.output / str(number)
        target.mkdir(parents=True)
        commands.append([*manifest["command"][:-1], str(target)])
    before = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda words: subprocess.run(words, check=True), commands))
    theirs = time.monotonic() - before
    floor = folder.count * seconds / 2
    return ours / floor - 1, theirs / floor - 1


def kills(place: Path, cells: int, seconds: float, count: int, seed: int) -> dict[str, int]:
    """Kill the harness or a cell at ``count`` random moments, then run to the end; return what was found.

    All of "missing", "run again", "different", "stray", "damaged" and "left over" must be 0.
    """
    chance = random.Random(seed)
    undisturbed = Folder(place / "undisturbed", cells, 0.0)
    undisturbed.run("run", "--slots", "2")
    folder = Folder(place / "disturbed", cells, seconds)
    harness = folder.start()
    of_harness = of_cells = 0
    while of_harness + of_cells < count:
        is_for_cell = chance.random() < 0.5
        victims = _wait_for_cells(folder.output, harness) if is_for_cell else []
        time.sleep(chance.uniform(0.0, 0.5 if victims else 2.0))
        if victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(victims), signal.SIGKILL)
                of_cells += 1
        elif harness.poll() is None:
            harness.kill()
            of_harness += 1
        if harness.poll() is not None:
            harness.wait()
            harness = folder.start()
    harness.kill()
    harness.wait()
    done_before = len([cell for cell in folder.cells() if (cell / "result.json").exists()])
    last = folder.run("run", "--slots", "2")
    found = {
        "harness killed": of_harness + 1,
        "cells killed": of_cells,
        "done before the last run": done_before,
        "exit status of the last run": last.returncode,
        **inspect(folder, undisturbed),
    }
    return found


def _wait_for_cells(output: Path, harness: "subprocess.Popen[bytes]") -> list[int]:
    """Return the processes of cells, as soon as there are some or the harness has nothing more to do."""
    while harness.poll() is None:
        found = [pid for pid, _ in processes_of(output / "cells")] if output.exists() else []
        if found:
            return found
        time.sleep(0.02)
    return []


def inspect(folder: Folder, undisturbed: Folder) -> dict[str, int]:
    """Return how many things are not as in an undisturbed run."""
    cells = folder.cells()
    starts = [(cell / "starts.txt").read_text().split() for cell in cells]
    ours = {(key[0].rsplit("-", 1)[0], *key[1:]): value for key, value in folder.scores().items()}
    theirs = {(key[0].rsplit("-", 1)[0], *key[1:]): value for key, value in undisturbed.scores().items()}
    return {
        "missing": folder.count - sum((cell / "result.json").exists() for cell in cells),
        "run again": sum("again" in found for found in starts),
        "different": len(set(ours.items()) ^ set(theirs.items())),
        "stray": len(processes_of(folder.output)),
        "damaged": sum(not _is_whole(path) for path in folder.output.rglob("*.json")),
        "left over": len(list(folder.output.rglob(".*.tmp"))),
    }


def _is_whole(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def two_at_once(place: Path) -> dict[str, int]:
    """Start two harnesses on one folder; return the cells that were started twice and the exit statuses."""
    folder = Folder(place, 10, 0.5)
    both = [folder.start(), folder.start()]
    statuses = sorted(process.wait() for process in both)
    starts = [(cell / "starts.txt").read_text().split() for cell in folder.cells()]
    return {
        "started twice": sum(len(found) != 1 for found in starts),
        "done": len(starts),
        "first exit": statuses[0],
        "second exit": statuses[1],
    }


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """Give a disk of ``size`` in memory; OSError where that is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OSError(done.stderr.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=False)


def full_disk(place: Path) -> dict[str, int]:
    """Fill the disk in the middle of a run, make room, run again; return what was found."""
    with small_disk(place / "disk", "2m") as disk:
        folder = Folder(place, 20, 0.2, disk / "output")
        first = folder.start()
        while len(list(folder.output.glob("cells/*/result.json"))) < 3:
            time.sleep(0.05)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 1024)
        first.wait()
        again = folder.run("run", "--slots", "2")
        before = {
            cell: (cell / "result.json").read_text()
            for cell in folder.cells()
            if (cell / "result.json").exists()
        }
        ballast.unlink()
        last = folder.run("run", "--slots", "2")
        lines = [line for line in again.stderr.splitlines() if line.startswith("run_matrix.py:")]
        return {
            "exit when full": again.returncode,
            "tracebacks": again.stderr.count("Traceback"),
            "lines of error": len(lines),
            "lost": sum((cell / "result.json").read_text() != text for cell, text in before.items()),
            "exit with room": last.returncode,
            "missing": folder.count - len(list(folder.output.glob("cells/*/result.json"))),
        }


def read_only(place: Path) -> dict[str, int]:
    """Run on a folder that became read-only; return what was found."""
    with small_disk(place / "disk", "8m") as disk:
        folder = Folder(place, 5, 0.0, disk / "output")
        folder.run("run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        done = folder.run("run")
        after = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        return {
            "exit": done.returncode,
            "lines": len(done.stderr.splitlines()),
            "tracebacks": done.stderr.count("Traceback"),
            "changed": sum(after.get(path) != content for path, content in before.items()),
        }
