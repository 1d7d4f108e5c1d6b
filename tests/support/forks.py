"""A process that has loaded everything and forks a command-line tool in an instant, to be killed at will.

Starting Python and torch takes seconds and a training of the tiny model less than one. What is forked here is a
process of its own with its own memory, files and signals; it has trained nothing before.
"""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a tool ended: exit status (minus the signal's number if a signal ended it), and what it wrote."""

    code: int
    out: str
    err: str


class Child:
    """A tool at work."""

    def __init__(self, forks: "Forks", pid: int, folder: Path) -> None:
        self._forks = forks
        self.pid = pid
        self._folder = folder
        self._status: int | None = None

    def status(self) -> int | None:
        """Return the exit status, None while it runs."""
        if self._status is None:
            self._status = self._forks.ask(poll=self.pid)["status"]
        return self._status

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        if self.status() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def wait(self, timeout: float = PATIENCE) -> Ended:
        """Wait for the end; after ``timeout`` seconds kill it and raise TimeoutError."""
        end = time.monotonic() + timeout
        while self.status() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"it hangs: {self._text('err')[-2000:]}")
            time.sleep(0.002)
        assert self._status is not None
        return Ended(self._status, self._text("out"), self._text("err"))

    def _text(self, name: str) -> str:
        return (self._folder / name).read_text(errors="replace")


class Forks:
    """The process that forks; close it in the end."""

    def __init__(self, folder: Path) -> None:
        """``folder`` receives what the tools write to standard output and error."""
        self._folder = folder
        self._count = 0
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def start(self, *arguments: str, tool: str = "train_net", **environment: str) -> Child:
        """Start ``tool`` with ``arguments`` and these environment variables besides."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        answer = self.ask(tool=tool, arguments=arguments, environment=environment, folder=str(folder))
        return Child(self, answer["pid"], folder)

    def run(self, *arguments: str, tool: str = "train_net", **environment: str) -> Ended:
        """Run ``tool`` to its end."""
        return self.start(*arguments, tool=tool, **environment).wait()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process; tools that still run are killed."""
        assert self._process.stdin is not None
        # The end of the pipe alone would not do: whatever this process has forked holds it open too.
        self._process.stdin.write("{}\n")
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """Have a process that forks inside the block."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Forks(folder)
    try:
        yield server
    finally:
        server.close()


# ----------------------------------------------------------------------------------------------------------
# Inside that process


def _train_net() -> None:
    from tests.support import tiny

    tiny.run("train_net", tiny.main)


def _run_matrix() -> None:
    from hicl_d2.harness.command import main

    sys.exit(main())


def _script(name: str) -> Callable[[], object]:
    """Return what runs a script of projects/HiCL as it is, with the tiny model and data set known."""
    return partial(runpy.run_path, str(ROOT / "projects" / "HiCL" / f"{name}.py"), run_name="__main__")


TOOLS: dict[str, Callable[[], object]] = {
    "train_net": _train_net,
    "run_matrix": _run_matrix,
    "prepare": partial(runpy.run_module, "hicl_d2.data.prepare", run_name="__main__"),
    **{name: _script(name) for name in ("predict", "check_dataset", "inspect_components")},
}


def _serve() -> None:
    # Loaded before the first fork, so that every tool finds them there.
    import hicl_d2.tools.predict
    import hicl_d2.tools.train  # noqa: F401
    from tests.support import tiny  # noqa: F401

    ended: dict[int, int] = {}
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            break
        if "poll" in request:
            answer: dict[str, Any] = {"status": _poll(request["poll"], running, ended)}
        else:
            pid = os.fork()
            if pid == 0:
                _become(request)
            running.add(pid)
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _poll(pid: int, running: set[int], ended: dict[int, int]) -> int | None:
    if pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        running.discard(pid)
        ended[pid] = os.waitstatus_to_exitcode(status)
    return ended[pid]


def _become(request: dict[str, Any]) -> None:
    """Be the tool, and never return."""
    code = 1
    try:
        os.setpgid(0, 0)
        folder = Path(request["folder"])
        for descriptor, name in ((1, "out"), (2, "err")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["environment"])
        sys.argv = [f"{request['tool']}.py", *request["arguments"]]
        TOOLS[request["tool"]]()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
