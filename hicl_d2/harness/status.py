"""The state of every cell, as a plain table."""

from collections import Counter
from pathlib import Path

from hicl_d2.command.console import duration
from hicl_d2.command.errors import counted
from hicl_d2.command.live import bar
from hicl_d2.harness import folder as files
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.folder import State
from hicl_d2.harness.local import headline
from hicl_d2.harness.progress import METRICS_FILE, read_progress
from hicl_d2.harness.workspace import Workspace

HEADINGS = ("cell", "state", "iteration", "ETA", "loss", "mIoU")
ITERATION = HEADINGS.index("iteration")
BAR_WIDTH = 20
ALWAYS_SHOWN = (files.RUNNING, files.FAILED, files.STOPPED, files.QUEUED)
MOST_ROWS = 60


def describe(workspace: Workspace, *, bars: bool = False) -> str:
    """Return a count of the states and a row per cell: its state, iteration, time left, last loss and mIoU, and a bar of
    its iterations if asked for.

    Of a large matrix, only the cells that something has happened to have a row.
    """
    from tabulate import tabulate

    counts = Counter(workspace.states[cell.slug].name for cell in workspace.cells)
    summary = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    cells = workspace.cells
    if len(cells) > MOST_ROWS:
        cells = tuple(workspace.in_state(*ALWAYS_SHOWN))
    rows = [_row(cell, workspace.states[cell.slug], workspace.output) for cell in cells[:MOST_ROWS]]
    lines = [f"{workspace.matrix.name}: {counted(len(workspace.cells), 'cell')}, {summary}"]
    lines += workspace.notes()
    if rows:
        headings: tuple[str, ...] = HEADINGS
        if bars:
            headings = (*HEADINGS, "")
            rows = [[*row, _bar(row[ITERATION])] for row in rows]
        lines += ["", tabulate(rows, headings, tablefmt="simple", disable_numparse=True)]
    if len(cells) > MOST_ROWS:
        lines.append(f"and {len(cells) - MOST_ROWS} more; --only chooses")
    return "\n".join(lines)


def _bar(iteration: str) -> str:
    """Return a bar for "3/10"; none where it is not known how many there are."""
    done, _, total = iteration.partition("/")
    return bar(int(done) / int(total), BAR_WIDTH) if done.isdigit() and total.isdigit() and int(total) else ""


def _row(cell: Cell, state: State, output: Path) -> list[str]:
    if state.name == files.DONE:
        total = (state.result or {}).get("iterations")
        score = headline(state.result or {}).removeprefix("mIoU ")
        return [cell.name, state.name, f"{total}/{total}", "", "", score]
    name = state.name if state.failure is None else f"{state.name}: {state.failure.kind}"
    progress = read_progress(cell.folder(output) / METRICS_FILE)
    if progress is None:
        return [cell.name, name, "", "", "", ""]
    eta = (
        ""
        if progress.seconds_left is None or state.name != files.RUNNING
        else duration(progress.seconds_left)
    )
    score = "" if progress.score is None else f"{progress.score:.1f}"
    iteration = f"{progress.iteration}/{cell.iterations or '?'}"
    return [cell.name, name, iteration, eta, f"{progress.loss:.4g}", score]
