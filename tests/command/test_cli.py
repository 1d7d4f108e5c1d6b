"""The command line: its arguments, its exit status, and what it says."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from hicl_d2.command import interrupts
from hicl_d2.command.address import masked
from hicl_d2.command.cli import explain, run, status
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "projects/HiCL/train_net.py"


def _ended(main: Callable[[], None], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        run("tool", main)
    return exit_.value.code, capsys.readouterr().err


def _raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_a_worker_that_lost_its_process_is_silent_and_other_faults_are_shown() -> None:
    code = (
        "import os, sys\n"
        "from hicl_d2.command import interrupts\n"
        "def show(error): sys.excepthook(type(error), error, None)\n"
        "with interrupts.handled():\n"
        "    show(ConnectionResetError('of the process itself'))\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        show(EOFError('of a worker'))\n"
        "        show(BrokenPipeError('of a worker'))\n"
        "        show(ValueError('a fault in a worker'))\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "assert sys.excepthook is sys.__excepthook__\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "ConnectionResetError: of the process itself",
        "ValueError: a fault in a worker",
    ]


def test_help_is_shown_without_loading_torch() -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['train_net.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "finally:\n"
        "    assert not {'torch', 'numpy', 'yaml'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--config-file" in done.stdout


def test_no_tool_loads_the_compiler_with_torch() -> None:
    """It takes as long as torch itself, and a start that ends in an error takes no more than torch."""
    tools = "train, predict, check, inspect, export"
    code = f"import sys\nfrom hicl_d2.tools import {tools}\nassert 'torch._dynamo' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "train_net: the following arguments are required: --config-file; see --help\n"


def test_success_is_zero_and_a_tool_may_have_a_status_of_its_own(capsys: pytest.CaptureFixture) -> None:
    assert _ended(lambda: None, capsys) == (0, "")
    assert _ended(lambda: 1, capsys) == (1, "")


def test_a_tool_may_answer_signals_its_own_way(capsys: pytest.CaptureFixture) -> None:
    noted: list[int] = []

    def work() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        raise interrupts.Interrupted(noted[0])

    def handling() -> AbstractContextManager[None]:
        return interrupts.installed(lambda signum, frame: noted.append(signum))

    assert status("tool", work, handling=handling, stopped="{signal} came") == 143
    assert capsys.readouterr().err == "tool: SIGTERM came\n"


def test_an_error_has_a_line_of_its_own_below_the_moving_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def main() -> None:
        console.progress("50 %")
        raise InputError("wrong")

    assert _ended(main, capsys) == (2, "\r\033[K50 %\ntool: wrong\n")


def test_a_console_that_is_gone_leaves_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", gone)
        result = status("tool", _raising(InputError("x" * 100_000)))
        patch.undo()
        with suppress(BrokenPipeError):
            gone.close()
    assert result == 2


ONE_LINE = {
    "input": (InputError("wrong"), "tool: wrong\n"),
    "full disk": (
        OSError(errno.ENOSPC, "No space left on device", "/x/file"),
        "tool: no space left on the disk of /x/file",
    ),
    "quota": (
        OSError(errno.EDQUOT, "Disk quota exceeded", "/x/file"),
        "tool: no space left on the disk of /x/file",
    ),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "/x"), "tool: no permission to use /x"),
    "a file that is gone": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
        "tool: /x cannot be used: no such file or directory",
    ),
    "a name that is too long": (
        OSError(errno.ENAMETOOLONG, "File name too long", "/x"),
        "tool: /x cannot be used: file name too long",
    ),
    "a file that is too large": (
        OSError(errno.EFBIG, "File too large", "/x"),
        "tool: /x is larger than a file may be here; raise the limit (ulimit -f)",
    ),
    "open files": (
        OSError(errno.EMFILE, "Too many open files", "/x"),
        "tool: too many files are open (/x); raise the limit (ulimit -n)",
    ),
    "memory": (MemoryError(), "tool: no memory for what the config asks for"),
    "memory of the system": (OSError(errno.ENOMEM, "Cannot allocate memory"), "tool: no memory for what"),
    "memory of torch": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        "tool: no memory for what",
    ),
    "threads": (RuntimeError("can't start new thread"), "tool: no memory for what"),
    "a password": (
        InputError("weights https://me:pass@a.example/w.pth?x=1&token=s3cret are gone"),
        "tool: weights https://***@a.example/w.pth?x=1&token=*** are gone\n",
    ),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "/x"), "tool: no permission to use /x"),
    "worker": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        "DATALOADER.NUM_WORKERS",
    ),
    "beyond lite": (
        ImportError("engine.hooks.PreciseBN: this needs Detectron2, ..."),
        "this needs Detectron2",
    ),
}


@pytest.mark.parametrize("kind", ONE_LINE)
def test_what_the_user_can_put_right_is_one_line(kind: str, capsys: pytest.CaptureFixture) -> None:
    error, text = ONE_LINE[kind]
    code, said = _ended(_raising(error), capsys)
    assert code == 2
    assert text in said
    assert said.count("\n") == 1


def test_out_of_memory_is_one_line(capsys: pytest.CaptureFixture) -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch's is called."""

    code, said = _ended(_raising(OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB.")), capsys)
    assert code == 2
    assert said == "tool: CUDA out of memory; lower SOLVER.IMS_PER_BATCH or INPUT.CROP.SIZE\n"


class _Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise InputError("image 7.png is truncated")


def test_an_error_in_a_loader_worker_is_one_line(capsys: pytest.CaptureFixture) -> None:
    code, said = _ended(lambda: list(DataLoader(_Broken(), num_workers=1)), capsys)
    assert (code, said) == (2, "tool: image 7.png is truncated\n")


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    assert explain(KeyError("x")) is None
    assert explain(OSError("no file is named")) is None
    assert explain(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer", "/x")) is None
    with pytest.raises(KeyError):
        run("tool", _raising(KeyError("x")))


def test_the_traceback_of_an_input_error_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HICL_TRACEBACK", "1")
    with pytest.raises(InputError):
        run("tool", _raising(InputError("wrong")))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_with_their_status(signum: int, capsys: pytest.CaptureFixture) -> None:
    before = signal.getsignal(signum)
    code, said = _ended(lambda: os.kill(os.getpid(), signum), capsys)
    assert code == 128 + signum
    assert said == f"tool: stopped by {signal.Signals(signum).name}\n"
    assert signal.getsignal(signum) is before


def _signal_self() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_within_an_iteration_waits_for_its_end() -> None:
    with interrupts.handled():
        interrupts.defer()
        _signal_self()
        assert interrupts.release() == signal.SIGTERM


def test_a_signal_that_ended_a_command_is_none_of_what_follows_in_its_process(
    capsys: pytest.CaptureFixture,
) -> None:
    code, _ = _ended(_signal_self, capsys)
    assert code == 128 + signal.SIGTERM
    interrupts.defer()
    assert interrupts.release() is None


def test_a_second_signal_does_not_wait() -> None:
    with interrupts.handled():
        interrupts.defer()
        _signal_self()
        with pytest.raises(interrupts.Interrupted):
            _signal_self()


def test_a_lost_terminal_is_one_signal_however_often_it_is_told() -> None:
    with interrupts.handled():
        interrupts.defer()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.release() == signal.SIGHUP


def test_a_lost_terminal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.handled():
            os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.received() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_another_one_started_takes_two_signals_for_one() -> None:
    with interrupts.handled(patient=True):
        interrupts.defer()
        _signal_self()
        _signal_self()
        assert interrupts.release() == signal.SIGTERM


def test_a_process_that_follows_goes_on_until_the_main_one_stops() -> None:
    with interrupts.handled(patient=True, follows=True):
        _signal_self()
        interrupts.defer()
        _signal_self()
        assert interrupts.release() is None
        assert interrupts.received() == signal.SIGTERM


@pytest.mark.parametrize("way", [["-W", "error"], []])
def test_warnings_that_are_errors_are_those_of_this_project_alone(way: list[str]) -> None:
    code = (
        "import subprocess, sys, types, warnings\n"
        "from hicl_d2.command.cli import status\n"
        "def module(name):\n"
        "    made = types.ModuleType(name)\n"
        "    exec('import warnings\\ndef warn(): warnings.warn(\"old\", DeprecationWarning)', made.__dict__)\n"
        "    return made\n"
        "def main():\n"
        "    module('torch.jit').warn()\n"
        "    options = subprocess._args_from_interpreter_flags()\n"
        "    child = [sys.executable, *options, '-c', 'import warnings; warnings.warn(\"old\")']\n"
        "    assert subprocess.run(child).returncode == 0\n"
        "    try:\n"
        "        module('hicl_d2.config').warn()\n"
        "    except DeprecationWarning:\n"
        "        return 7\n"
        "sys.exit(status('tool', main))\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "" if way else "error"}
    done = subprocess.run(
        [sys.executable, *way, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 7, done.stderr


def test_without_asserts_and_docstrings_the_help_is_shown() -> None:
    done = subprocess.run(
        [sys.executable, "-OO", str(SCRIPT), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--config-file" in done.stdout


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@a.example/w.pth#sha256=12", "https://***@a.example/w.pth#sha256=12"),
        ("see ftp://user@host/x, mail me@host", "see ftp://***@host/x, mail me@host"),
        ("https://a/w?X-Amz-Signature=abc&key=model", "https://a/w?X-Amz-Signature=***&key=model"),
        ("['https://u:p@a/w', 'https://b/x@2.pth']", "['https://***@a/w', 'https://b/x@2.pth']"),
        ("/data/me@host/w.pth?token=1", "/data/me@host/w.pth?token=***"),
    ],
)
def test_no_secret_of_an_address_is_shown(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize("place", ["/dev/full", "a closed pipe"])
def test_a_result_that_cannot_be_written_is_one_line(place: str) -> None:
    code = (
        "import sys\n"
        "from hicl_d2.command.cli import run\n"
        "from hicl_d2.command.console import console\n"
        "run('tool', lambda: console.show('x' * 100_000))\n"
    )
    if place == "/dev/full":
        out = os.open(place, os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(out)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("tool: standard output cannot be written (")
