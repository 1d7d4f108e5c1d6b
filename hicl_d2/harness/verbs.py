"""What run_matrix.py can do: a function per verb, which returns the exit status."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hicl_d2.command.console import Console
from hicl_d2.command.errors import InputError, counted, nearest_or_known
from hicl_d2.command.files import occupied
from hicl_d2.command.interrupts import Interrupted
from hicl_d2.harness import checks, clean, plan, status, weights
from hicl_d2.harness import folder as files
from hicl_d2.harness.failures import RULES
from hicl_d2.harness.local import LocalExecutor, Outcome, headline
from hicl_d2.harness.signals import Signals
from hicl_d2.harness.slots import Slots, find_slots
from hicl_d2.harness.training import end_strays
from hicl_d2.harness.workspace import FOLDER_FILE, Workspace, claim, open_workspace

if TYPE_CHECKING:
    import pandas as pd

WATCH_SECONDS = 5.0
STALE = files.STALE
# What --retry names beside the kinds of failure.
RETRIED = (files.FAILED, STALE)


def plan_verb(options: Namespace, console: Console, signals: Signals) -> int:
    """say how many cells there are, which would run, and what they would take"""
    workspace = _open(options)
    if options.probe:
        _probe(workspace, options, console, signals)
    _show_plan(workspace, options, console)
    return 0


def _show_plan(workspace: Workspace, options: Namespace, console: Console) -> None:
    slots = find_slots(options.gpus, 1, 1)
    try:
        checked = _check_configs(workspace, options, console, slots, checks.PLAN_CHECKS)
        lines = _check_lines(checked, options)
        if not options.dry_run and (workspace.output / FOLDER_FILE).is_file():
            checks.keep(checked, workspace.output)
    except InputError as error:  # no answer; the rest of the plan is none the worse
        lines = [str(error)]
    console.show(plan.describe(workspace, options.retry, options.list, lines))


def run_verb(options: Namespace, console: Console, signals: Signals) -> int:
    """run what is missing, then write and show the table"""
    if not options.train_script.is_file():
        raise InputError(f"--train-script {options.train_script} does not exist")
    for what in options.retry:
        if what not in (*RETRIED, *RULES):
            raise InputError(
                f"--retry {what} is no kind of failure{nearest_or_known(what, [*RETRIED, *RULES])}"
            )
    slots = find_slots(options.gpus, options.per_gpu, options.slots)
    workspace = _open(options)
    if options.dry_run:
        _show_plan(workspace, options, console)
        return 0
    _check_older_scheme(workspace, options.retry)
    if not options.skip_broken:
        _check_obstacles(workspace)
        weights.check(workspace.needed(options.retry))
    checked = _check_configs(workspace, options, console, slots)
    left_out = _left_out(workspace, options, checked, console)
    output = workspace.output
    output.mkdir(parents=True, exist_ok=True)
    with occupied(output, _busy(output)):
        claim(workspace)
        checks.keep(checked, output)
        strays = end_strays(output)
        if strays:
            console.say(f"ended {strays} trainings that an earlier run had left behind")
        clean.clear_unfinished(workspace)
        workspace = _open(options)
        labels = _labels(workspace)
        _say_kept(workspace, labels, console)
        for line in workspace.notes():
            console.say(line)
        cells = [cell for cell in workspace.needed(options.retry) if cell.name not in left_out]
        try:
            if options.executor == "slurm":
                from hicl_d2.harness.cluster import SlurmExecutor

                outcome = SlurmExecutor(workspace, options, console, signals, labels).run(cells)
            else:
                executor = LocalExecutor(
                    options.train_script,
                    output,
                    workspace.matrix.name,
                    slots,
                    options.fail_fast,
                    console,
                    signals,
                    labels,
                )
                outcome = executor.run(cells)
        except Interrupted:
            _write_results(_open(options))
            raise
        return _finish(_open(options), outcome, console)


def _busy(folder: Path) -> str:
    return f"{folder} is in use by another run_matrix.py; wait for it, or stop it"


def _check_obstacles(workspace: Workspace) -> None:
    """Raise InputError if a chosen cell cannot run here: nothing is started before all can be finished."""
    obstacles = workspace.obstacles()
    if obstacles:
        more = (
            f" and {counted(len(obstacles) - 1, 'more obstacle')} (plan lists them)"
            if len(obstacles) > 1
            else ""
        )
        text, count = next(iter(obstacles.items()))
        raise InputError(
            f"{workspace.matrix.path}: {text} ({counted(count, 'cell')}){more}; choose other cells with --only, or exclude them"
        )


def _check_older_scheme(workspace: Workspace, retry: list[str]) -> None:
    """Raise InputError if a chosen cell has a folder whose identity cannot be compared, unless it is to be trained anew."""
    older = workspace.of_older_scheme()
    if older and STALE not in retry:
        raise InputError(f"{workspace.earlier[older[0].slug].text} ({counted(len(older), 'cell')})")


def _check_configs(
    workspace: Workspace, options: Namespace, console: Console, slots: Slots, most: int | None = None
) -> checks.Checked:
    """Ask the train script about the configs of all cells that would run and have no other obstacle."""
    needed = workspace.needed(options.retry)
    absent = weights.missing(needed)
    cells = [c for c in needed if c.obstacle is None and c.resolved.get(weights.KEY) not in absent]
    gpus = slots.gpus if options.executor == "local" else 1
    return checks.check(cells, options.train_script, workspace.output, gpus, console, most)


def _check_lines(checked: checks.Checked, options: Namespace) -> list[str]:
    if not checks.is_asked(options.train_script):
        return [f"configs are not checked: {options.train_script} is not the project's train script"]
    lines = checked.lines()
    if checked.unasked:
        lines.append(
            f"{checked.unasked} configs are not checked yet; run checks all before it starts the first"
        )
    return lines


def _left_out(
    workspace: Workspace, options: Namespace, checked: checks.Checked, console: Console
) -> set[str]:
    """Return the names of cells that cannot run. Raises InputError if there are some, unless they are to be skipped."""
    broken = [cell for cells in checked.broken.values() for cell in cells]
    for line in checked.lines():
        console.say(line)
    if broken and not options.skip_broken:
        raise InputError(
            f"{counted(len(broken), 'cell')} cannot run, for {counted(len(checked.broken), 'reason')}; nothing was started: "
            "put them right, or "
            "run the other cells with --skip-broken"
        )
    if options.skip_broken:
        needed = workspace.needed(options.retry)
        absent = weights.missing(needed)
        for text, count in workspace.obstacles().items():
            console.say(f"{text} ({counted(count, 'cell')})")
        for text in absent.values():
            console.say(text)
        broken += [c for c in needed if c.obstacle is not None or c.resolved.get(weights.KEY) in absent]
    return {cell.name for cell in broken}


def _labels(workspace: Workspace) -> dict[str, str]:
    total = len(workspace.cells)
    return {cell.slug: f"[{number}/{total}] {cell.name}" for number, cell in enumerate(workspace.cells, 1)}


def _say_kept(workspace: Workspace, labels: dict[str, str], console: Console) -> None:
    done = workspace.in_state(files.DONE)
    if len(done) > plan.LISTED_CELLS:
        console.say(f"{counted(len(done), 'cell is', 'cells are')} done and kept")
    else:
        for cell in done:
            console.say(f"{labels[cell.slug]}: kept, {headline(workspace.states[cell.slug].result or {})}")


def _finish(workspace: Workspace, outcome: Outcome, console: Console) -> int:
    """Write results and tables, show the table and the places of everything; 1 if a cell has no result."""
    from hicl_d2.harness.tables import RESULTS_FILE, SHORT_NOTE, markdown, write_tables

    results = _write_results(workspace)
    table = markdown(results, workspace.matrix)
    write_tables(results, workspace.matrix, workspace.tables)
    console.show(f"\n{table}\n")
    for line in (
        *workspace.mixed_data(),
        *workspace.unmeasured(),
        *([SHORT_NOTE] if workspace.matrix.is_short else ()),
    ):
        console.say(line)
    for cell in workspace.cells:
        pictures = cell.folder(workspace.output) / "pictures"
        if pictures.is_dir() and len(workspace.cells) <= plan.LISTED_CELLS:
            console.show(f"pictures of {cell.name}: {pictures}")
    console.show(f"results: {workspace.tables / RESULTS_FILE}")
    for cell in workspace.in_state(files.DAMAGED):
        console.say(workspace.states[cell.slug].note)
    failed = workspace.in_state(files.FAILED)
    again = [cell for cell in failed if cell.slug not in outcome.failed]
    if again:
        console.say(
            f"{counted(len(again), 'cell')} failed in an earlier run, left as found; --retry failed tries again"
        )
    is_whole = len(workspace.in_state(files.DONE)) == len(workspace.cells)
    if workspace.in_state(files.DAMAGED):
        return 2
    return 0 if is_whole and outcome.left_out is None else 1


def _write_results(workspace: Workspace) -> "pd.DataFrame":
    from hicl_d2.harness.tables import collect, write_results

    rows = collect(workspace.matrix, workspace.states)
    write_results(rows, workspace.tables)
    return rows


def _probe(workspace: Workspace, options: Namespace, console: Console, signals: Signals) -> None:
    cells = plan.missing_probes(workspace)
    if options.dry_run or not cells:
        return
    folder = workspace.output / plan.PROBE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    slots = find_slots(options.gpus, 1, 1)
    labels = {cell.slug: f"probe of {cell.name}" for cell in cells}
    with occupied(folder, _busy(folder)):
        end_strays(folder)
        executor = LocalExecutor(
            options.train_script, folder, workspace.matrix.name, slots, False, console, signals, labels
        )
        executor.run(cells)


def status_verb(options: Namespace, console: Console, signals: Signals) -> int:
    """show what the cells are doing: state, iteration, time left, loss, mIoU"""
    was_busy = False
    while True:
        workspace = _open(options)
        bars = options.watch and sys.stdout.isatty()
        console.screen(status.describe(workspace, bars=bars), is_moving=options.watch)
        is_busy = bool(workspace.in_state(files.RUNNING, files.QUEUED))
        # Between two cells none is running: only a second look tells that it is over.
        if not options.watch or not (is_busy or was_busy):
            return 0
        was_busy = is_busy
        time.sleep(WATCH_SECONDS)


def table_verb(options: Namespace, console: Console, signals: Signals) -> int:
    """write results.csv, summary.csv, table.md, classes.md and table.tex, and show the table"""
    from hicl_d2.harness.tables import SHORT_NOTE, collect, markdown, write_results, write_tables

    workspace = _open(options)
    for line in workspace.notes():
        console.say(line)
    if workspace.matrix.is_short:
        console.say(SHORT_NOTE)
    rows = collect(workspace.matrix, workspace.states)
    if options.against is not None:  # another look at the same results: their files stay as they are
        console.show(markdown(rows, workspace.matrix.against(options.against)))
        return 0
    if not options.dry_run:
        write_results(rows, workspace.tables)
        write_tables(rows, workspace.matrix, workspace.tables)
    console.show(markdown(rows, workspace.matrix))
    return 0


def report_verb(options: Namespace, console: Console, signals: Signals) -> int:
    """write report.html: tables, curves, bars, pictures and where everything came from"""
    from hicl_d2.harness.report import write_report

    workspace = _open(options)
    if options.dry_run:
        console.show(f"would write {workspace.tables / 'report.html'}")
        return 0
    for line in workspace.notes():
        console.say(line)
    console.show(f"report: {write_report(workspace)}")
    return 0


def clean_verb(options: Namespace, console: Console, signals: Signals) -> int:
    """remove probes, half-written files and the checkpoints before the last one of finished cells"""
    workspace = _open(options)
    if not workspace.output.is_dir():
        raise InputError(f"{workspace.output} does not exist")
    clean.check_claimed(workspace)
    with occupied(workspace.output, _busy(workspace.output)):
        found = list(clean.find(workspace, options.orphans))
        total = sum(map(clean.size, found)) / 1e9
        for path in found:
            console.say(f"{'would remove' if options.dry_run else 'to remove:'} {path}")
        if options.dry_run or not found:
            console.show(f"{total:.3g} GB to gain")
            return 0
        if not options.yes and not _agrees(
            f"remove what is listed, {counted(len(found), 'file or folder', 'files and folders')} ({total:.3g} GB)?"
        ):
            raise InputError("nothing was removed; --yes removes what is listed without asking")
        for path in found:
            clean.remove(path)
        clean.clear_probes(workspace)
    console.show(f"{total:.3g} GB gained")
    return 0


def _agrees(question: str) -> bool:
    """Return whether the user says yes; who has no terminal is not asked and does not."""
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def gate_verb(options: Namespace, console: Console, signals: Signals) -> int:
    """compare results with expected.yaml; status 1 if one is off or missing"""
    from hicl_d2.harness.gate import check, read_expected

    workspace = _open(options)
    table, is_good = check(workspace, read_expected(options.expected, workspace.matrix.name))
    console.show(table)
    return 0 if is_good else 1


def _open(options: Namespace) -> Workspace:
    if options.download:
        weights.allow_download()
    output: Path | None = options.output
    return open_workspace(options.matrix, output, options.shorten, options.only)


VERBS: dict[str, Callable[[Namespace, Console, Signals], int]] = {
    "plan": plan_verb,
    "run": run_verb,
    "status": status_verb,
    "table": table_verb,
    "report": report_verb,
    "clean": clean_verb,
    "gate": gate_verb,
}
