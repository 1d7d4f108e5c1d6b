"""The command line of run_matrix.py."""

import argparse
import errno
from collections.abc import Sequence
from pathlib import Path

from hicl_d2.command.cli import Parser, status, whole
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError
from hicl_d2.harness import ROOT, TRAIN_SCRIPT
from hicl_d2.harness.signals import Signals
from hicl_d2.harness.verbs import VERBS

TOOL = "run_matrix.py"
MATRIX_FILE = ROOT / "benchmark" / "matrices" / "paper.yaml"
EXPECTED_FILE = ROOT / "benchmark" / "expected.yaml"
EXECUTORS = ("local", "slurm")


def main(arguments: Sequence[str] | None = None, tool: str = TOOL) -> int:
    """Run the command, called ``tool``, and return its status: 0, 1 if a cell failed, 2 for bad input, 130 after Ctrl-C."""
    signals = Signals()
    return status(
        tool,
        lambda: _run(arguments, tool, signals),
        handling=signals.handled,
        stopped="stopped; the same command goes on from here",
    )


def _run(arguments: Sequence[str] | None, tool: str, signals: Signals) -> int:
    options = _arguments(arguments, tool)
    try:
        return VERBS[options.verb](options, console, signals)
    except OSError as error:  # every path is the user's choice: none of these is a fault of the harness
        reason = "no space left" if error.errno == errno.ENOSPC else error.strerror
        raise InputError(
            f"{error.filename or 'a file'}: {reason}; choose another --output, or put this right"
        ) from None


def _arguments(arguments: Sequence[str] | None, tool: str) -> argparse.Namespace:
    parser = Parser(
        prog=tool,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train the cells of a matrix file (data sets x models x methods x ablations x seeds) and compare\n"
        "them. Cells that are finished are kept; the same command goes on after an interruption.",
        epilog="verbs:\n" + "\n".join(f"  {name:<7} {verb.__doc__}" for name, verb in VERBS.items()),
    )
    option = parser.add_argument
    option("verb", nargs="?", choices=list(VERBS), default="plan", help="what to do (default: plan)")
    option(
        "--matrix",
        type=Path,
        default=MATRIX_FILE,
        metavar="FILE",
        help="matrix file, or the name of one of the project's: smoke (default: paper)",
    )
    option(
        "--output", type=Path, metavar="DIR", help="where cells and tables are (default: output/<its name>)"
    )
    option("--only", action="append", default=[], metavar="GLOB", help="cells by name; may be given again")
    option("--dry-run", action="store_true", help="say what would be done, and do nothing")
    option("--shorten", action="store_true", help="the few iterations of the matrix's shorten, for a check")

    _add_run_options(parser)
    other = parser.add_argument_group("other verbs").add_argument
    other("--probe", action="store_true", help="plan: train ten iterations of each kind for an estimate")
    other("--list", action="store_true", help="plan: a line for every cell")
    other(
        "--against", metavar="NAME", help="table: show differences to this method or ablation; write nothing"
    )
    other("--watch", action="store_true", help="status: again every few seconds, until all is done")
    other("--orphans", action="store_true", help="clean: also cells that the matrix does not have any more")
    other("--yes", action="store_true", help="clean: remove what it lists without asking")
    other("--expected", type=Path, default=EXPECTED_FILE, metavar="FILE", help="gate: what is expected")
    return parser.parse_args(arguments)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run").add_argument
    run(
        "--retry",
        action="append",
        default=[],
        metavar="WHAT",
        help="also start what has failed: failed, or a kind such as 'out of memory'; stale: cells whose folder is of an older "
        "scheme, anew",
    )
    run(
        "--skip-broken",
        action="store_true",
        help="leave out cells that cannot run (config, data or weights) and run the others",
    )
    run(
        "--download",
        action="store_true",
        help="fetch weights from https addresses that have no checksum (#sha256=...)",
    )
    run("--fail-fast", dest="fail_fast", action="store_true", help="stop at the first failure")
    run("--keep-going", dest="fail_fast", action="store_false", help="go on after a failure (default)")
    run("--gpus", metavar="N,...", help="GPUs to use (default: all; '' for none)")
    run("--per-gpu", type=whole(1), default=1, metavar="N", help="cells on a GPU, as far as memory_gb allows")
    run("--slots", type=whole(1), default=1, metavar="N", help="cells at a time on the CPU (default 1)")
    run("--executor", choices=EXECUTORS, default="local", help="where cells run (default: local)")
    run("--partition", metavar="NAME", help="SLURM partition")
    run("--account", metavar="NAME", help="SLURM account")
    run("--max-cells", type=whole(1), default=32, metavar="N", help="cells at a time on SLURM (default 32)")
    run(
        "--job-minutes",
        type=whole(1),
        default=1440,
        metavar="N",
        help="wall time of a job; it is queued again after",
    )
    run("--train-script", type=Path, default=TRAIN_SCRIPT, metavar="FILE", help="what trains a cell")
