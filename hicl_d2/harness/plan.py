"""What a run would do: cells, hours and disk."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hicl_d2.command.errors import counted
from hicl_d2.harness import folder as files
from hicl_d2.harness import weights
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.folder import State
from hicl_d2.harness.results import number, result_or_none
from hicl_d2.harness.workspace import Workspace

PROBE_FOLDER = "probes"
PROBE_OVERRIDES = {"SOLVER.MAX_ITER": 10, "TEST.EVAL_PERIOD": 0, "TEST.PICTURES": 0}
LISTED_CELLS = 40


@dataclass(frozen=True)
class Cost:
    """The cost of a cell: hours on its GPUs (or the CPU), bytes on the disk, and what the estimate is taken from."""

    hours: float
    size: int
    source: str


class Estimates:
    """Costs estimated from a similar cell that has run, or else from a probe of ten iterations."""

    def __init__(self, workspace: Workspace) -> None:
        self._known: dict[tuple[str, ...], Cost | None] = {}
        self._examples: dict[tuple[str, ...], tuple[Cell, dict[str, Any], Path, str]] = {}
        for cell in reversed(workspace.matrix.cells):
            result = workspace.states[cell.slug].result
            if result is not None:
                self._add(cell, result, cell.folder(workspace.output), "earlier runs")
        for cell, folder in probes(workspace) if (workspace.output / PROBE_FOLDER).is_dir() else ():
            result = result_or_none(folder)
            if result is not None:
                self._add(cell, result, folder, "a probe", first=False)

    def _add(self, cell: Cell, result: dict[str, Any], folder: Path, source: str, first: bool = True) -> None:
        for key in _likeness(cell):
            if first or key not in self._examples:
                self._examples[key] = (cell, result, folder, source)

    def cost(self, cell: Cell) -> Cost | None:
        """Return the estimated cost of ``cell``, None if nothing similar has run."""
        for key in _likeness(cell):
            if key in self._examples:
                return _scaled(cell, *self._examples[key])
        return None


def _likeness(cell: Cell) -> Iterator[tuple[str, ...]]:
    yield cell.group
    yield cell.group[:3]
    yield cell.group[:2]


def _scaled(cell: Cell, example: Cell, result: dict[str, Any], folder: Path, source: str) -> Cost | None:
    seconds = result.get("seconds") or {}
    each, evaluation = number(seconds.get("per_iteration")), number(seconds.get("evaluation")) or 0.0
    if each is None or cell.iterations is None:
        return None
    total = each * cell.iterations + evaluation / example.evaluations * cell.evaluations
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Cost(total / 3600, size * _checkpoints(cell) // _checkpoints(example), source)


def _checkpoints(cell: Cell) -> int:
    period, total = cell.resolved.get("SOLVER.CHECKPOINT_PERIOD"), cell.iterations
    return 1 + (total // period if isinstance(period, int) and period > 0 and total else 0)


def probes(workspace: Workspace) -> Iterator[tuple[Cell, Path]]:
    """Yield a short cell for every data set, model and method of the matrix, and its folder."""
    seen: set[tuple[str, ...]] = set()
    for cell in workspace.matrix.cells:
        if cell.obstacle is None and cell.group[:3] not in seen:
            seen.add(cell.group[:3])
            probe = replace(
                cell,
                overrides={**cell.overrides, **PROBE_OVERRIDES},
                resolved={**cell.resolved, **PROBE_OVERRIDES},
                digest="",
                adopted="",
            )
            yield probe, probe.folder(workspace.output / PROBE_FOLDER)


def missing_probes(workspace: Workspace) -> list[Cell]:
    """Return the probes for chosen cells that will run and have no estimate yet."""
    estimates = Estimates(workspace)
    unknown = {cell.group[:3] for cell in workspace.needed(["failed"]) if estimates.cost(cell) is None}
    return [probe for probe, _ in probes(workspace) if probe.group[:3] in unknown]


# ----------------------------------------------------------------------------------------------------------


def describe(
    workspace: Workspace, retry: list[str], list_cells: bool = False, checked: Iterable[str] = ()
) -> str:
    """Return the plan as text: counts, obstacles, a row per data set, model and method, and the sums.

    ``checked`` are lines about the configs, which the plan only shows.
    """
    cells = workspace.cells
    to_run = {cell.slug for cell in workspace.needed(retry)}
    estimates = Estimates(workspace)
    lines = [
        f"{workspace.matrix.name} ({workspace.matrix.path}) in {workspace.output}",
        _counts(workspace, to_run),
    ]
    lines += [f"{text} ({counted(count, 'cell')})" for text, count in workspace.obstacles().items()]
    lines += weights.describe(workspace.needed(retry))
    lines += [*workspace.notes(), *checked]
    if list_cells or len(cells) <= LISTED_CELLS:
        lines += ["", *(f"  {_mark(workspace.states[c.slug], c.slug in to_run)}  {c.name}" for c in cells)]
    lines += ["", _table(workspace, to_run, estimates), "", *_sums(workspace, to_run, estimates)]
    return "\n".join(lines)


def _counts(workspace: Workspace, to_run: set[str]) -> str:
    counts = Counter(workspace.states[cell.slug].name for cell in workspace.cells)
    names = [files.DONE, files.FAILED, files.RUNNING, files.QUEUED, files.STOPPED, files.BLOCKED]
    names += [files.STALE, files.DAMAGED]
    found = [f"{counts[name]} {name}" for name in names if counts[name]]
    return f"{counted(len(workspace.cells), 'cell')}: {', '.join([*found, f'{len(to_run)} to run'])}"


def _mark(state: State, runs: bool) -> str:
    return f"{'run' if runs else 'keep' if state.name == files.DONE else '-':<4}  {state.name:<7}"


def _table(workspace: Workspace, to_run: set[str], estimates: Estimates) -> str:
    from tabulate import tabulate

    rows = []
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in workspace.cells:
        groups.setdefault(cell.group[:3], []).append(cell)
    for names, cells in groups.items():
        runs = [cell for cell in cells if cell.slug in to_run]
        costs = [cost for cost in map(estimates.cost, runs) if cost is not None]
        done = sum(workspace.states[cell.slug].name == files.DONE for cell in cells)
        each = f"{costs[0].hours:.3g}" if costs else "?" if runs else "-"
        rows.append([*names, len(cells), done, len(runs), each, costs[0].source if costs else ""])
    headings = ["data set", "model", "method", "cells", "done", "to run", "hours each", "known from"]
    return tabulate(rows, headings, tablefmt="github", disable_numparse=True)


def _sums(workspace: Workspace, to_run: set[str], estimates: Estimates) -> Iterable[str]:
    runs = [cell for cell in workspace.cells if cell.slug in to_run]
    known = [(cell, cost) for cell in runs if (cost := estimates.cost(cell)) is not None]
    gpu_hours = sum(cost.hours * max(1, cell.resources.gpus) for cell, cost in known)
    disk = sum(cost.size for _, cost in known) / 1e9
    free = _free_space(workspace.output) / 1e9
    if runs:
        unknown = len(runs) - len(known)
        what = f"{gpu_hours:.3g} GPU hours, {disk:.3g} GB of disk" if known else "GPU hours and disk unknown"
        yield f"estimate: {what} ({free:.0f} GB free)"
        if unknown:
            kinds = "plan --probe trains ten iterations of each kind"
            yield f"without {counted(unknown, 'cell')} that nothing is known of: {kinds}"


def _free_space(folder: Path) -> int:
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free
