"""Compare results with what is expected of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hicl_d2.command.errors import InputError
from hicl_d2.command.safe_yaml import read_yaml
from hicl_d2.harness import folder as files
from hicl_d2.harness.points import check_keys, read_text, shown
from hicl_d2.harness.results import measured, measures, never_measured, number
from hicl_d2.harness.workspace import Workspace, matches

KEYS = ("cell", "metric", "value", "tolerance", "at")
GOOD, OFF, MISSING = "ok", "OFF", "MISSING"


@dataclass(frozen=True)
class Expectation:
    """The value that a metric of some cells must have, within a tolerance."""

    cell: str
    metric: str
    value: float
    tolerance: float
    at: str = "last"


def read_expected(path: Path, matrix: str) -> list[Expectation]:
    """Return what is expected of a matrix; InputError if the file does not name it or is malformed."""
    content = read_yaml(path, "file of expected results", text_keys=True).content
    if not isinstance(content.get(matrix), list) or not content[matrix]:
        raise InputError(f"{path} expects nothing of the matrix {matrix}; add a list under {matrix}:")
    return [_expectation(entry, f"{path}: {matrix}: entry {n}") for n, entry in enumerate(content[matrix], 1)]


def _expectation(entry: Any, place: str) -> Expectation:
    if not isinstance(entry, dict):
        raise InputError(f"{place} must have {', '.join(KEYS)}, not {shown(entry)}")
    check_keys(entry, KEYS, place)
    for key in ("cell", "metric", "value", "tolerance"):
        if key not in entry:
            raise InputError(f"{place}: {key} is missing")
    for key in ("cell", "metric", "at"):
        if key in entry:
            read_text(entry, key, place)
    for key in ("value", "tolerance"):
        if number(entry[key]) is None:
            raise InputError(f"{place}: {key} must be a number, not {shown(entry[key])}")
    if entry["tolerance"] < 0:
        raise InputError(f"{place}: tolerance must not be negative")
    return Expectation(**entry)


def check(workspace: Workspace, expected: list[Expectation]) -> tuple[str, bool]:
    """Return a table with a row per expectation and cell, and whether all of them hold.

    Below the table stands, for a metric that none of its cells measured, the nearest that they did. Raises InputError for a
    glob that matches no cell of the matrix.
    """
    from tabulate import tabulate

    rows: list[list[str]] = []
    notes: dict[str, None] = {}
    for entry in expected:
        cells = [cell for cell in workspace.matrix.cells if matches(cell, entry.cell)]
        if not cells:
            raise InputError(
                f"{entry.cell} matches no cell; one is called {workspace.matrix.cells[0].name!r}"
            )
        results = [workspace.states[cell.slug].result for cell in cells]
        note = never_measured(entry.metric, entry.at, measured(filter(None, results)))
        if note is not None:
            notes[note] = None
        for cell in cells:
            result = workspace.states[cell.slug].result
            found = {(metric, at): value for metric, at, value, _ in measures(result or {})}
            value = found.get((entry.metric, entry.at))
            wanted = f"{entry.value:g} ± {entry.tolerance:g}"
            rows.append([cell.name, entry.metric, entry.at, wanted, *_verdict(value, entry)])
            if value is None and workspace.states[cell.slug].name != files.DONE:
                rows[-1][-2] = workspace.states[cell.slug].name
    headings = ["cell", "metric", "at", "expected", "found", ""]
    is_good = all(row[-1] == GOOD for row in rows)
    table = tabulate(rows, headings, tablefmt="github", disable_numparse=True)
    return "\n\n".join(filter(None, (table, "\n".join(notes)))), is_good


def _verdict(value: float | None, entry: Expectation) -> tuple[str, str]:
    if value is None:
        return "-", MISSING
    return f"{value:.4g}", GOOD if abs(value - entry.value) <= entry.tolerance else OFF
