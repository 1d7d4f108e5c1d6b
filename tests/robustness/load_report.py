"""Measure the harness with cells that only wait: how fast, how tight, and what survives.

``python -m tests.robustness.load_report`` (``make load``) prints a table; with the defaults it takes about a quarter of
an hour. Exit status 1 if something does not hold.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tests.robustness import trials

NONE_OF = (
    "missing",
    "run again",
    "different",
    "stray",
    "damaged",
    "left over",
    "exit status of the last run",
)
PLAN_SECONDS = 5.0
OVERHEAD = 0.05

Row = tuple[str, str, str, bool]


def main() -> int:
    """Go through the chosen trials and print what was found."""
    options = _arguments()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="harness_load_") as name:
        for trial in options.only or list(TRIALS):
            sys.stderr.write(f"{trial} ...\n")
            rows += TRIALS[trial](Path(name) / trial, options)
    shown = [[what, found, wanted, "yes" if holds else "NO"] for what, found, wanted, holds in rows]
    sys.stdout.write(tabulate(shown, ["trial", "found", "to reach", "holds"], tablefmt="github") + "\n")
    return 0 if all(row[-1] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--only", action="append", choices=list(TRIALS), help="this trial; may be given again"
    )
    parser.add_argument("--plan-cells", type=int, default=10_000)
    parser.add_argument("--cells", type=int, default=1000, help="cells of the trial of overhead")
    parser.add_argument("--seconds", type=float, default=1.0, help="what each of them takes")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kill-cells", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _plan(place: Path, options: argparse.Namespace) -> Iterator[Row]:
    seconds = trials.planning_seconds(place, options.plan_cells)
    yield (
        f"plan {options.plan_cells} cells",
        f"{seconds:.2f} s",
        f"< {PLAN_SECONDS:g} s",
        seconds < PLAN_SECONDS,
    )


def _overhead(place: Path, options: argparse.Namespace) -> Iterator[Row]:
    share, floor = trials.overhead(place, options.cells, options.seconds)
    what = f"{options.cells} cells of {options.seconds:g} s on 2 slots"
    yield (
        what,
        f"{100 * share:.1f} % over (a bare pool: {100 * floor:.1f} %)",
        f"< {100 * OVERHEAD:g} % over",
        share < OVERHEAD,
    )


def _kills(place: Path, options: argparse.Namespace) -> Iterator[Row]:
    found = trials.kills(place, options.kill_cells, 1.0, options.kills, options.seed)
    yield (
        f"{options.kills} SIGKILLs, {options.kill_cells} cells",
        _text(found),
        "0 in the last seven",
        _clean(found),
    )


def _two(place: Path, options: argparse.Namespace) -> Iterator[Row]:
    found = trials.two_at_once(place)
    holds = found == {"started twice": 0, "done": 10, "first exit": 0, "second exit": 2}
    yield "two harnesses on one folder", _text(found), "none started twice, one refused", holds


def _full(place: Path, options: argparse.Namespace) -> Iterator[Row]:
    yield from _on_small_disk(
        "full disk", trials.full_disk, place, _full_holds, "one line each, nothing lost"
    )


def _full_holds(found: dict[str, int]) -> bool:
    is_told = found["exit when full"] != 0 and found["tracebacks"] == 0 and found["lines of error"] <= 1
    return is_told and found["lost"] == found["exit with room"] == found["missing"] == 0


def _read_only(place: Path, options: argparse.Namespace) -> Iterator[Row]:
    wanted = {"exit": 2, "lines": 1, "tracebacks": 0, "changed": 0}
    yield from _on_small_disk(
        "read-only folder", trials.read_only, place, wanted.__eq__, "one line, nothing changed"
    )


def _on_small_disk(
    what: str,
    trial: Callable[[Path], dict[str, int]],
    place: Path,
    holds: Callable[[dict[str, int]], Any],
    wanted: str,
) -> Iterator[Row]:
    try:
        found = trial(place)
    except OSError as error:
        yield what, f"not tried: {error}", wanted, True
    else:
        yield what, _text(found), wanted, bool(holds(found))


def _clean(found: dict[str, int]) -> bool:
    return all(found[name] == 0 for name in NONE_OF)


def _text(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())


TRIALS: dict[str, Callable[[Path, argparse.Namespace], Iterator[Row]]] = {
    "plan": _plan,
    "overhead": _overhead,
    "kills": _kills,
    "two": _two,
    "full": _full,
    "read-only": _read_only,
}

if __name__ == "__main__":
    sys.exit(main())
