"""Checkpoints that were damaged, disks that are full or read-only, clocks that are wrong."""

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.robustness.conftest import FEW, TRIALS, Runs
from tests.support.states import assert_equal, run_state

Report = Callable[[str, int, str], None]
pytestmark = pytest.mark.slow


def _cut(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content[: chance.randrange(len(content))])


def _zero(content: bytearray, chance: random.Random) -> bytes:
    """Zero a stretch, as a file system may leave it after a power cut."""
    start = chance.randrange(len(content) - 64)
    end = chance.randrange(start + 64, len(content) + 1)
    return bytes(content[:start]) + bytes(end - start) + bytes(content[end:])


def _flip(content: bytearray, chance: random.Random) -> bytes:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


DAMAGES = {"truncated": _cut, "partly zeroed": _zero, "one bit flipped": _flip}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(
    damage: str,
    runs: Runs,
    undisturbed: dict[str, Any],
    chance: random.Random,
    tmp_path: Path,
    report: Report,
) -> None:
    """The one before it is taken, unless the damage is where nothing is kept and the state is all there."""
    folder = tmp_path / "undisturbed"
    final = (folder / "model_0000029.pth").read_bytes()
    named = 0
    for trial in range(TRIALS):
        for name in ("result.json", "model_final.pth"):
            (folder / name).unlink()
        (folder / "last_checkpoint").write_text("model_0000029.pth")
        (folder / "model_0000029.pth").write_bytes(DAMAGES[damage](bytearray(final), chance))
        ended = runs.resume(folder)
        named += "model_0000029.pth cannot be read" in ended.err
        assert ("going on from model_0000026.pth instead" in ended.err) == (
            "model_0000029.pth cannot be read" in ended.err
        )
        assert_equal(run_state(folder), undisturbed, f"{damage} {trial}")
    assert named > 0
    seen = f"{TRIALS} equal bit for bit ({named} named and the one before it taken"
    rest = f", {TRIALS - named} hit bytes that hold nothing" if named < TRIALS else ""
    report(f"newest checkpoint {damage}, then `--resume`", TRIALS, f"{seen}{rest})")


def test_all_checkpoints_damaged(
    runs: Runs, undisturbed: dict[str, Any], tmp_path: Path, report: Report
) -> None:
    folder = tmp_path / "undisturbed"
    (folder / "result.json").unlink()
    for file in folder.glob("model_*.pth"):
        file.write_bytes(file.read_bytes()[:500])
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    ended = runs.start(folder, "--resume").wait()
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert "can be resumed: weights" in line
    assert before == {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    report("all checkpoints truncated", 1, "one line, exit code 2, nothing touched")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount disks of a given size."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
        if done.returncode:
            pytest.skip("a small disk cannot be mounted here (this needs root)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def _resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def test_a_disk_that_becomes_full(
    runs: Runs,
    undisturbed: dict[str, Any],
    disk: Callable[[str], Path],
    tmp_path: Path,
    chance: random.Random,
    report: Report,
) -> None:
    whole = sum(file.stat().st_size for file in (tmp_path / "undisturbed").rglob("*") if file.is_file())
    with_checkpoint = 0
    for trial in range(FEW + 2):
        size = f"{int(whole / 1024 * chance.uniform(0.1, 0.9))}k"
        mounted = disk(size)
        ended = runs.start(mounted / "run").wait()
        assert ended.code == 2, ended.err[-2000:]
        assert "Traceback" not in ended.err
        assert "no space left on the disk" in ended.err.splitlines()[-1]
        assert not list((mounted / "run").rglob("*.tmp"))
        for file in (mounted / "run").glob("model_*.pth"):
            torch.load(file, weights_only=True)  # whole, each of them
        for file in (mounted / "run").glob("*.json"):
            texts = file.read_text().splitlines() if file.name == "metrics.json" else [file.read_text()]
            assert all(json.loads(text) for text in texts), file
        with_checkpoint += (mounted / "run/last_checkpoint").exists()
        _resize(mounted, "64m")
        runs.resume(mounted / "run")
        assert_equal(run_state(mounted / "run"), undisturbed, f"full {trial} at {size}")
    report(
        "disk that becomes full, then room and `--resume`",
        FEW + 2,
        f"one line, exit code 2, checkpoints whole ({with_checkpoint} had one), {FEW + 2} equal bit for bit",
    )


def test_a_disk_that_is_read_only(runs: Runs, disk: Callable[[str], Path], report: Report) -> None:
    mounted = disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    ended = runs.start(mounted / "run").wait()
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert "no permission to write" in line
    report("output on a read-only disk", 1, "one line, exit code 2")


def test_a_clock_that_is_set_back(
    runs: Runs, undisturbed: dict[str, Any], tmp_path: Path, report: Report
) -> None:
    """Files that come from the future: what is newest is told by iterations, not by times."""
    folder = tmp_path / "stopped"
    child = runs.start(folder)
    while not (folder / "model_0000008.pth").exists() and child.status() is None:
        pass
    child.kill()
    child.wait()
    files = sorted(folder.rglob("*"))
    for age, file in enumerate(files):
        os.utime(file, (4_000_000_000 - age, 4_000_000_000 - age))
    (folder / "last_checkpoint").unlink()
    ended = runs.resume(folder)
    newest = max(int(file.stem[6:]) for file in folder.glob("model_0*.pth") if file.stat().st_mtime > 3e9)
    assert f"going on from model_{newest:07d}.pth" in ended.err
    assert_equal(run_state(folder), undisturbed)
    report("clock set back by decades, then `--resume`", 1, "1 equal bit for bit")
