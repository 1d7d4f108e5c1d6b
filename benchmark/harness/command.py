"""The command line of run_matrix.py."""

import argparse
import errno
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from harness.cells import Cell, read_result
from harness.console import Console, duration
from harness.errors import InputError
from harness.files import locked, write_text
from harness.matrix import ROOT, Matrix, read_matrix
from harness.tables import MAIN_METRIC, collect, compare, write_results, write_table
from harness.training import Stopped, Training, stopped_by_signals

TRAIN_SCRIPT = ROOT / "projects" / "HiCL" / "train_net.py"
FOLDER_FILE = "matrix.json"
FOLDER_SCHEMA = 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its status: 0, 1 if a cell failed, 2 for bad input, 130 after Ctrl-C."""
    try:
        with stopped_by_signals():
            return run(_arguments(arguments))
    except InputError as error:
        return _fail(str(error))
    except OSError as error:
        reason = "no space left" if error.errno == errno.ENOSPC else error.strerror
        return _fail(f"{error.filename or 'a file'}: {reason}; choose another --output, or put this right")
    except Stopped as stop:
        sys.stderr.write("run_matrix.py: stopped; the same command goes on from here\n")
        return 128 + stop.signum


def _fail(message: str) -> int:
    sys.stderr.write(f"run_matrix.py: {' '.join(message.split())}\n")
    return 2


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="run_matrix.py",
        allow_abbrev=False,
        description="Train the cells of a matrix file (data sets x models x methods x seeds) and compare "
        "them. Cells that are finished are kept; the same command goes on after an interruption.",
    )
    parser.add_argument(
        "verb", nargs="?", choices=["run"], default="run", help="run what is missing (default)"
    )
    parser.add_argument(
        "--matrix", type=Path, required=True, metavar="FILE", help="matrix file (benchmark/matrices/...)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="where cells and tables are written"
    )
    parser.add_argument(
        "--shorten", action="store_true", help="the few iterations of the matrix's shorten, for a check"
    )
    parser.add_argument(
        "--train-script",
        type=Path,
        default=TRAIN_SCRIPT,
        metavar="FILE",
        help="what trains a cell (default: train_net.py)",
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Run what is missing, then write and show the table."""
    matrix = read_matrix(options.matrix, options.shorten)
    if not options.train_script.is_file():
        raise InputError(f"--train-script {options.train_script} does not exist")
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    failed: dict[str, str] = {}
    with locked(output):
        _claim(output, matrix)
        try:
            for number, cell in enumerate(matrix.cells, 1):
                label = f"[{number}/{len(matrix.cells)}] {cell.name}"
                reason = _run_cell(cell, label, options.train_script, output, console)
                if reason is not None:
                    failed[cell.slug] = reason
        except Stopped:
            write_results(collect(matrix, output, failed), output)
            raise
        _report(matrix, output, failed, console)
    return 1 if failed else 0


def _claim(output: Path, matrix: Matrix) -> None:
    """Note which matrix the folder belongs to; InputError if it is another one's."""
    path = output / FOLDER_FILE
    if not path.exists():
        write_text(path, json.dumps({"schema": FOLDER_SCHEMA, "matrix": matrix.name}) + "\n")
        return
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))["matrix"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged; remove it if {output} holds the matrix {matrix.name}") from None
    if owner != matrix.name:
        raise InputError(f"{output} holds the matrix {owner}, not {matrix.name}; choose another --output")


def _run_cell(cell: Cell, label: str, script: Path, output: Path, console: Console) -> str | None:
    """Run a cell unless it is finished, and return why it failed, None if it did not."""
    result = read_result(cell.folder(output))
    if result is not None:
        console.say(f"{label}: kept, {_headline(result)}")
        return None
    training = Training(cell, script, output)
    console.say(f"{label}: started")
    try:
        while not training.wait():
            console.progress(f"{label}: {training.describe()}")
    except Stopped:
        console.say(f"{label}: stopping after this iteration, to keep a checkpoint (Ctrl-C again: at once)")
        training.stop()
        raise
    finally:
        training.kill()
    reason = training.failure()
    if reason is not None:
        console.say(f"{label}: FAILED, {reason} (all of it: {training.folder / 'stderr.txt'})")
        return reason
    result = read_result(training.folder) or {}
    console.say(f"{label}: done in {duration(time.monotonic() - training.start)}, {_headline(result)}")
    return None


def _headline(result: dict) -> str:
    score = result.get("metrics", {}).get("last", {}).get(MAIN_METRIC)
    return "no score" if score is None else f"mIoU {score:.1f}"


def _report(matrix: Matrix, output: Path, failed: dict[str, str], console: Console) -> None:
    """Write results.csv and table.md, and show the table and the places of everything."""
    rows = collect(matrix, output, failed)
    results = write_results(rows, output)
    table = compare(rows, matrix)
    write_table(table, output)
    console.result(f"\n{table}\n")
    for cell in matrix.cells:
        pictures = cell.folder(output) / "pictures"
        if pictures.is_dir():
            console.result(f"pictures of {cell.name}: {pictures}")
    console.result(f"results: {results}")
