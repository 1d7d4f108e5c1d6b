"""The command line: arguments, and errors as one line. Nothing heavy is imported here."""

import contextlib
import errno
import os
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from typing import NoReturn

from hicl_d2.command import interrupts
from hicl_d2.command.errors import InputError, exit_with_error, nearest, one_line

# Set to have the traceback of an input error too.
TRACEBACK = "HICL_TRACEBACK"

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


class Parser(ArgumentParser):
    """An ArgumentParser whose complaints are input errors: one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def train_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """Read the command line of train_net.py: Detectron2's flags, before or after the overrides (``opts``)."""
    parser = Parser(
        prog="train_net.py",
        usage="%(prog)s --config-file FILE [options] [KEY VALUE ...]",
        description="Train and evaluate the model of a config file. KEY VALUE pairs override the file.",
        epilog="All output is below OUTPUT_DIR: result.json, pictures, checkpoints, metrics.json, log.txt.",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--config-file", metavar="FILE", help="config file (configs/...)")
    flag(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one"
    )
    flag(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS (with --resume: the last checkpoint)"
    )
    flag(
        "--check",
        action="store_true",
        help="check all that a start checks, say in one line how it would start, and end",
    )
    flag(
        "--check-each",
        metavar="FILE",
        help="the same for many starts: FILE (- is standard input) holds the arguments of one in each line, as a JSON list; "
        "each is answered by a line of JSON; exit status 2 if one cannot start",
    )
    flag(
        "--list-features",
        action="store_true",
        help="show the modules of the model that Hi-CL can read, with channels and stride, and end",
    )
    flag(
        "--num-gpus",
        type=_count,
        default=1,
        metavar="N",
        help="processes on this machine; on the CPU without GPUs",
    )
    flag(
        "--download",
        action="store_true",
        help="fetch MODEL.WEIGHTS from an https address that has no checksum (#sha256=...)",
    )
    flag("--num-machines", type=_count, default=1, metavar="N", help="number of machines")
    flag("--machine-rank", type=whole(0), default=0, metavar="N", help="this machine's number, from 0")
    flag(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where processes meet: tcp://HOST:PORT; auto: a free port",
    )
    args, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("--"):
            hint = nearest(word, parser._option_string_actions)
            raise InputError(f"unknown option {word}{hint}; see --help")
    if not args.config_file and not args.check_each:
        parser.error("the following arguments are required: --config-file")
    args.opts = rest
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


def _count(text: str) -> int:
    """Return a number of processes; 0 GPUs means one process on the CPU, as with Detectron2."""
    return max(whole(0)(text), 1)


def run(tool: str, main: Callable[[], None]) -> NoReturn:
    """Run ``main`` and exit: 0 when it returns, 2 with one line for what the user can put right, 130 or 143
    when stopped.

    Any other exception is a fault of ours and keeps its traceback (exit 1).
    """
    try:
        with interrupts.handled():
            main()
    except (Exception, interrupts.Interrupted) as error:
        signum = stop_signal(error)
        if signum is not None:
            sys.stderr.write(f"{tool}: stopped by {signal.Signals(signum).name}\n")
            sys.exit(128 + signum)  # what a shell expects
        message = explain(error)
        if message is None or os.environ.get(TRACEBACK):
            raise
        exit_with_error(tool, InputError(message))
    sys.exit(0)


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
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"no space left on the disk of {_place(error)}; make room, then go on with --resume"
    if isinstance(error, OSError) and error.errno in NO_PERMISSION:
        return f"no permission to use {_place(error)} ({error.strerror})"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return f"{one_line(error).split('. ')[0]}; lower SOLVER.IMS_PER_BATCH or INPUT.CROP.SIZE"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch's, on the CPU
        return "no memory for what the config asks for; make its model or its batch smaller"
    if _lost_a_worker(error):
        return f"{one_line(error)}; lower DATALOADER.NUM_WORKERS if memory (or /dev/shm) ran out"
    if isinstance(error, ImportError) and (
        "this needs Detectron2" in str(error) or "HICL_RUNTIME" in str(error)
    ):
        return one_line(error)
    return None


def _lost_a_worker(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _place(error: OSError) -> str:
    return str(error.filename) if error.filename else "a file"
