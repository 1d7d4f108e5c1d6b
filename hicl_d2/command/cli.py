"""The command line: arguments, and errors as one line. Nothing heavy is imported here."""

import contextlib
import errno
import os
import signal
import sys
import warnings
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NoReturn

from hicl_d2.command import interrupts
from hicl_d2.command.console import console, printable, write_error
from hicl_d2.command.errors import InputError, nearest, one_line
from hicl_d2.command.extras import explain_missing

# Set to have the traceback of an input error too.
TRACEBACK = "HICL_TRACEBACK"

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
# How libraries, torch before all, say that memory or threads ran out, where they do not raise MemoryError.
NO_MEMORY = (
    *("can't allocate memory", "Cannot allocate memory", "std::bad_alloc", "bad allocation"),
    *("can't start new thread", "failed to map segment", "Resource temporarily unavailable"),
)
OUT_OF_MEMORY = "no memory for what the config asks for; make its model or its batch smaller, or lower DATALOADER.NUM_WORKERS"


class Parser(ArgumentParser):
    """An ArgumentParser that raises InputError for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parse_with_overrides(parser: ArgumentParser, arguments: Sequence[str] | None = None) -> Namespace:
    """Parse a command line that may end in overrides of the config, KEY VALUE ...; ``args.opts`` are their words.

    ``--opts KEY VALUE ...`` is the same, for a line that ends in an option with several values. Raises InputError for an
    option that does not exist.
    """
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of the config, as at the end"
    )
    args, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("--"):
            hint = nearest(word, parser._option_string_actions)
            raise InputError(f"unknown option {word}{hint}; see --help")
    args.opts = [*args.opts, *rest]
    return args


def whole(least: int) -> Callable[[str], int]:
    """Return what reads a whole number of ``least`` or more from a command line."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise ArgumentTypeError(f"must be a whole number, {least} or more, not {text!r}")

    return read


def share(text: str) -> float:
    """Read a share from a command line, 0 to 1."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")


def run(tool: str, main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with :func:`status`."""
    interrupts.quieten_loaders()
    sys.exit(status(tool, main))


def status(
    tool: str,
    main: Callable[[], int | None],
    *,
    handling: Callable[[], AbstractContextManager[object]] = interrupts.handled,
    stopped: str = "stopped by {signal}",
) -> int:
    """Run ``main`` and return the exit status: its own (None is 0), 2 after one line for what the user can put right,
    128 and the signal's number when stopped.

    Any other exception is a fault of ours and keeps its traceback (exit 1). ``handling`` is the context that answers
    signals meanwhile; ``stopped`` is what is said after one.
    """
    _keep_warnings_of_libraries()
    try:
        with handling():
            return main() or 0
    except (Exception, interrupts.Interrupted) as error:
        console.close()
        signum = stop_signal(error)
        if signum is not None:
            write_error(f"{tool}: {stopped.format(signal=signal.Signals(signum).name)}\n")
            return 128 + signum  # what a shell expects
        message = explain(error)
        if message is None or os.environ.get(TRACEBACK):
            raise
        write_error(f"{tool}: {printable(one_line(InputError(message)))}\n")
        return 2


def _keep_warnings_of_libraries() -> None:
    """Where the user makes errors of warnings (PYTHONWARNINGS=error, -W error), do so for those of this project alone.

    Libraries warn of what they will change, some while they are imported; a run is not to end for it. Processes that are
    started from here get the same.
    """
    if not any(action == "error" and module is None for action, _, _, module, _ in warnings.filters):
        return
    warnings.simplefilter("default")
    warnings.filterwarnings("error", module=r"hicl_d2(\.|$)")
    sys.warnoptions[:] = [option for option in sys.warnoptions if not option.startswith("error")]
    os.environ.pop("PYTHONWARNINGS", None)


def stop_signal(error: BaseException) -> int | None:
    """Return the signal that ``error`` follows from, None if it has another cause.

    A signal often goes to the loaders' workers and to the other processes too: what breaks when they are gone is
    no error of its own.
    """
    if isinstance(error, interrupts.Interrupted):
        return error.signum
    return interrupts.received() if explain(error) is None or _lost_a_worker(error) else None


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can put right, None for a fault of ours."""
    if isinstance(error, InputError):
        return one_line(error)
    if _lost_a_worker(error):
        return f"{one_line(error)}; lower DATALOADER.NUM_WORKERS if memory (or /dev/shm) ran out"
    if isinstance(error, OSError):
        return _explain_system(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return f"{one_line(error).split('. ')[0]}; lower SOLVER.IMS_PER_BATCH or INPUT.CROP.SIZE"
    text = str(error)
    is_full = isinstance(error, RuntimeError | ImportError) and any(each in text for each in NO_MEMORY)
    if is_full or isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and ("Too many open files" in text or "items of ancdata" in text):
        return _too_many("")
    if isinstance(error, ImportError) and ("this needs Detectron2" in text or "HICL_RUNTIME" in text):
        return one_line(error)
    return explain_missing(error)


def _explain_system(error: OSError) -> str | None:
    """Return one line for what the system refused; None where it names no file, or a lost connection is the cause."""
    if error.errno in NO_SPACE:
        return f"no space left on the disk of {_place(error)}; make room and run it again (a training with --resume)"
    if error.errno in NO_PERMISSION:
        return f"no permission to use {_place(error)} ({error.strerror})"
    if error.errno == errno.EFBIG:
        return (
            f"{_place(error)} is larger than a file may be here; raise the limit (ulimit -f) and run it again (a training with "
            "--resume)"
        )
    if error.errno in TOO_MANY_FILES:
        return _too_many(f" ({error.filename})" if error.filename else "")
    if error.errno == errno.ENOMEM:
        return OUT_OF_MEMORY
    if error.errno is None or error.filename is None or isinstance(error, ConnectionError | InterruptedError):
        return None
    return f"{error.filename} cannot be used: {str(error.strerror).lower()}"


def _too_many(what: str) -> str:
    return f"too many files are open{what}; raise the limit (ulimit -n) or lower DATALOADER.NUM_WORKERS"


def _lost_a_worker(error: BaseException) -> bool:
    return isinstance(error, RuntimeError | OSError) and "DataLoader worker" in str(error)


def _place(error: OSError) -> str:
    return str(error.filename) if error.filename else "a file"
