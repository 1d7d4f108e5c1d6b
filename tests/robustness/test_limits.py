"""A system that gives less than is asked: open files, memory, sizes of files, shared memory, permissions, a console."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.forks import ROOT
from tests.support.states import assert_equal, run_state

Report = Callable[[str, int, str], None]
pytestmark = pytest.mark.slow
# Set for the tiny training: two workers that hand over batches through files of shared memory.
WORKERS = ("DATALOADER.NUM_WORKERS", "2")
LARGE = ("INPUT.CROP.SIZE", "[500, 500]", "SOLVER.IMS_PER_BATCH", "4")

Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def train(config: Path, data_root: Path, tmp_path: Path) -> Start:
    """Run train_net's command line in a process of its own, after ``before`` was called in it."""

    def run(
        *words: str,
        before: Callable[[], object] | None = None,
        prefix: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        folder: Path = tmp_path / "run",
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        command = [
            *prefix,
            sys.executable,
            *options,
            "-m",
            "tests.support.tiny",
            "--config-file",
            str(config),
        ]
        return subprocess.run(
            [*command, "OUTPUT_DIR", str(folder), *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            preexec_fn=before,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "DETECTRON2_DATASETS": str(data_root),
                **environment,
            },
        )

    return run


def _limit(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


def _is_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("train_net: ")
    assert all(word in last for word in words), last


@pytest.mark.parametrize("most", [20, 40, 95])
def test_too_few_open_files_for_workers_are_known_before_the_start(
    most: int, train: Start, tmp_path: Path
) -> None:
    _is_one_line(
        train(*WORKERS, before=_limit(resource.RLIMIT_NOFILE, most)), f"and {most} are allowed", "ulimit -n"
    )
    assert not (tmp_path / "run").exists()


def test_open_files_that_run_out(train: Start, report: Report) -> None:
    limit = _limit(resource.RLIMIT_NOFILE, 100)
    done = train(*WORKERS, "SOLVER.IMS_PER_BATCH", "64", before=limit)
    _is_one_line(done, "lower DATALOADER.NUM_WORKERS")
    report("100 open files allowed, two workers, 64 images", 1, "one line, exit code 2, no waiting")


def test_a_low_limit_that_may_be_raised_is_raised(train: Start) -> None:
    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    assert train(*WORKERS, before=low).returncode == 0


@pytest.mark.parametrize("kilobytes", [1, 8, 16])
def test_files_that_may_not_be_so_large(kilobytes: int, train: Start, tmp_path: Path, report: Report) -> None:
    done = train(before=_limit(resource.RLIMIT_FSIZE, kilobytes * 1024))
    _is_one_line(done, str(tmp_path / "run"), "larger than a file may be", "ulimit -f")
    assert not list((tmp_path / "run").glob(".*.tmp*"))
    report(f"files of {kilobytes} KB at most", 1, "one line with the file, exit code 2")


@pytest.mark.parametrize("words", [(), WORKERS])
def test_address_space_that_ends(words: tuple[str, ...], train: Start, report: Report) -> None:
    sizes = ("INPUT.CROP.SIZE", "[20000, 20000]")
    _is_one_line(train(*words, *sizes, before=_limit(resource.RLIMIT_AS, 3 * 2**30)))
    report(f"3 GB of address space, {'two' if words else 'no'} workers", 1, "one line, exit code 2")


@pytest.mark.parametrize("size", ["64k", "1m"])
def test_shared_memory_that_is_full(size: str, train: Start, report: Report) -> None:
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 77; exec "$@"'
    done = train(*WORKERS, *LARGE, prefix=("unshare", "-m", "bash", "-c", mount, "bash"))
    if done.returncode in (1, 77) and "tiny" not in done.stderr:
        pytest.skip("a small /dev/shm cannot be mounted here (this needs root)")
    _is_one_line(done, "/dev/shm")
    report(f"/dev/shm of {size}B, two workers", 1, "one line, exit code 2")


PLACES = ("log.txt", "metrics.json", "manifest.json", "last_checkpoint", ".lock", "best.json")


@pytest.mark.parametrize("name", PLACES)
def test_a_pipe_in_the_place_of_a_file_of_a_run_is_not_waited_for(
    name: str, train: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    os.mkfifo(folder / name)
    _is_one_line(train("--resume", folder=folder), name)


@pytest.mark.parametrize("name", ["last_checkpoint", "model_0000005.pth"])
def test_a_pipe_in_the_place_of_a_checkpoint_is_not_waited_for(
    name: str, train: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert train("SOLVER.MAX_ITER", "6", folder=folder).returncode == 0
    (folder / "result.json").unlink()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    done = train("--resume", "SOLVER.MAX_ITER", "6", folder=folder)
    if name == "last_checkpoint":
        _is_one_line(done, name)
    else:
        assert done.returncode == 0, done.stderr


def _closed(descriptors: tuple[int, ...]) -> Callable[[], None]:
    """Let nobody read what is written to ``descriptors``."""

    def close() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        for descriptor in descriptors:
            os.dup2(writer, descriptor)

    return close


@pytest.mark.parametrize("descriptors", [(1,), (2,), (1, 2)])
def test_a_console_that_is_gone_ends_no_training(
    descriptors: tuple[int, ...], train: Start, tmp_path: Path, report: Report
) -> None:
    assert train(folder=tmp_path / "heard").returncode == 0
    done = train(before=_closed(descriptors))
    assert done.returncode == 0
    assert_equal(run_state(tmp_path / "run"), run_state(tmp_path / "heard"))
    assert "iter: 5" in (tmp_path / "run/log.txt").read_text()
    names = {1: "standard output", 2: "standard error"}
    which = " and ".join(names[each] for each in descriptors)
    report(f"nobody reads {which}", 1, "training goes on, log.txt is whole, equal bit for bit")


def test_a_lost_terminal_leaves_a_checkpoint(
    config: Path, data_root: Path, tmp_path: Path, report: Report
) -> None:
    """SIGHUP, with nobody left who reads the console."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "tests.support.tiny", "--config-file", str(config)]
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*command, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", "100000", "TEST.EVAL_PERIOD", "0"],
        cwd=ROOT,
        stdout=writer,
        stderr=writer,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "DETECTRON2_DATASETS": str(data_root),
        },
    )
    os.close(writer)
    while not (folder / "last_checkpoint").exists():
        assert process.poll() is None
        threading.Event().wait(0.02)
    os.close(reader)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 128 + signal.SIGHUP
    last = (folder / "last_checkpoint").read_text()
    assert (folder / last).is_file()
    report("terminal lost (SIGHUP, dead console)", 1, f"exit code {128 + signal.SIGHUP}, a checkpoint")


@pytest.mark.parametrize("way", ["-O", "-OO"])
def test_an_interpreter_that_leaves_out_asserts(
    way: str, train: Start, tmp_path: Path, report: Report
) -> None:
    branch = ("MODEL.META_ARCHITECTURE", "HiCL", *WORKERS)
    assert train(*branch, folder=tmp_path / "plain").returncode == 0
    done = train(*branch, options=(way,))
    assert done.returncode == 0, done.stderr[-2000:]
    assert_equal(run_state(tmp_path / "run"), run_state(tmp_path / "plain"))
    report(f"python {way}", 1, "trains, equal bit for bit")


def test_warnings_that_are_errors(tmp_path: Path, report: Report) -> None:
    """The script itself: the stand-in loads torch before the command line is read."""
    script, file = ROOT / "projects/HiCL/train_net.py", ROOT / "configs/parts/deeplab_v3_plus_R_18_hicl.yaml"
    short = {"SOLVER.MAX_ITER": "2", "SOLVER.STEPS": "()", "SOLVER.WARMUP_ITERS": "0", "TEST.PICTURES": "1"}
    words = [word for pair in short.items() for word in pair]
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            "--config-file",
            str(file),
            "OUTPUT_DIR",
            str(tmp_path / "run"),
            *words,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONWARNINGS": "error",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "DETECTRON2_DATASETS": str(tmp_path / "data"),
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run/result.json").is_file()
    report("PYTHONWARNINGS=error", 1, "trains: warnings of libraries stay warnings")


def test_a_user_without_permissions(train: Start, data_root: Path, report: Report) -> None:
    """The install, the data set and the working folder belong to somebody else; OUTPUT_DIR too."""
    with contextlib.suppress(OSError):
        os.chmod(data_root, 0o755)
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    done = train(prefix=nobody, HOME="/nonexistent")
    if "Permission denied" in done.stderr and "tiny.py" not in done.stderr and "train_net" not in done.stderr:
        pytest.skip("this install cannot be read by other users")
    _is_one_line(done)
    report("a user who may write nowhere", 1, "one line, exit code 2")
