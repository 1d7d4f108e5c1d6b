"""Results of all cells as one long CSV, their summary over seeds, and the tables that compare methods."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hicl_d2.command.console import printable
from hicl_d2.command.files import write_text
from hicl_d2.harness import folder as files
from hicl_d2.harness.cells import AXES
from hicl_d2.harness.folder import State
from hicl_d2.harness.matrix import Matrix
from hicl_d2.harness.reference import published
from hicl_d2.harness.results import CLASS_PREFIX, measures
from hicl_d2.harness.statistics import (
    ENOUGH_FOR_INTERVAL,
    ENOUGH_PAIRS,
    bootstrap_interval,
    holm,
    sign_flip_p,
)

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("matrix", "cell", *AXES, "seed", "metric", "at", "value", "iteration", "status")
SUMMARY_COLUMNS = (
    *AXES,
    "metric",
    "at",
    "n",
    "mean",
    "std",
    "min",
    "max",
    "pairs",
    "diff",
    "diff_low",
    "diff_high",
    "p_value",
    "p_holm",
)
RESULTS_FILE, SUMMARY_FILE, MARKDOWN_FILE, LATEX_FILE = "results.csv", "summary.csv", "table.md", "table.tex"
CLASSES_FILE = "classes.md"
HEADINGS = {
    "seconds/per_iteration": "seconds per iteration",
    "seconds/total": "seconds",
    "peak_memory_mb": "MiB",
}
FORMATS = {"seconds/per_iteration": "{:.3f}", "seconds/total": "{:.0f}", "peak_memory_mb": "{:.0f}"}
NOTHING = "-"
# What a spreadsheet takes for the beginning of a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
TOO_SMALL = "n too small"
SHORT_NOTE = "Shortened trainings (--shorten), to see that everything runs: these figures are no results."


def collect(matrix: Matrix, states: Mapping[str, State]) -> "pd.DataFrame":
    """Return a row per cell and metric; a cell without a result has one row, without a metric."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for cell in matrix.cells:
        about = {"matrix": matrix.name, "cell": cell.slug, "seed": cell.seed}
        about |= dict(zip(AXES, cell.group, strict=True))
        state = states[cell.slug]
        if state.result is None:
            shown = state.name if state.name in (files.FAILED, files.STALE, files.DAMAGED) else "missing"
            rows.append({**about, "status": shown})
            continue
        for metric, at, value, iteration in measures(state.result):
            numbers = {"metric": metric, "at": at, "value": value, "iteration": iteration}
            rows.append({**about, **numbers, "status": "finished"})
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"iteration": "Int64", "value": float})


def summarise(rows: "pd.DataFrame", matrix: Matrix) -> "pd.DataFrame":
    """Return a row per data set, model, method, ablation, metric and time of measuring.

    Mean, standard deviation (n - 1) and range over the seeds; the mean difference to the baseline over the ``pairs`` of
    seeds that both have, its bootstrap interval (from six pairs on) and sign-flip p (from two), adjusted over the rows that
    have a p to the same baseline: also those with too few pairs for the table to show it, which were tried like the others.
    """
    import pandas as pd

    finished = rows[rows["value"].notna()]
    keys = [*AXES, "metric", "at"]
    wide = finished.pivot_table(
        index=keys, columns="seed", values="value", dropna=False, observed=True, sort=False
    )
    wide = wide.dropna(how="all")
    order = {group: number for number, group in enumerate(matrix.groups())}
    by_key = dict(zip(wide.index, wide.to_numpy(), strict=True))
    found = [
        {**dict(zip(keys, key, strict=True)), **_numbers(values), **_difference(key, values, by_key, matrix)}
        for key, values in by_key.items()
    ]
    summary = pd.DataFrame(found, columns=list(SUMMARY_COLUMNS)).astype({"n": "int64", "pairs": "Int64"})
    place = summary[list(AXES)].apply(lambda row: order[tuple(row)], axis=1) if len(summary) else []
    summary = (
        summary.assign(place=place)
        .sort_values(["place", "at", "metric"], kind="stable")
        .drop(columns="place")
    )
    summary["p_holm"] = _adjusted(summary, matrix)
    return summary.reset_index(drop=True)


def _numbers(values: Any) -> dict[str, float]:
    import numpy as np

    there = values[~np.isnan(values)]
    std = float(there.std(ddof=1)) if len(there) > 1 else float("nan")
    return {"n": len(there), "mean": there.mean(), "std": std, "min": there.min(), "max": there.max()}


def _difference(
    key: tuple[str, ...], values: Any, by_key: Mapping[Any, Any], matrix: Matrix
) -> dict[str, float]:
    """Return what distinguishes a row from its baseline; nothing for the baseline itself."""
    import numpy as np

    base = matrix.baseline_of(key[: len(AXES)])
    if base == key[: len(AXES)]:
        return {}
    other = by_key.get((*base, *key[len(AXES) :]))
    gaps = values - other if other is not None else values[:0]
    paired = gaps[~np.isnan(gaps)]
    found: dict[str, float] = {"pairs": len(paired)}
    if len(paired):
        found["diff"] = float(paired.mean())
    if len(paired) >= ENOUGH_FOR_INTERVAL:
        found["diff_low"], found["diff_high"] = bootstrap_interval(tuple(paired))
    if len(paired) > 1:
        found["p_value"] = sign_flip_p(tuple(paired))
    return found


def _adjusted(summary: "pd.DataFrame", matrix: Matrix) -> "pd.Series":
    adjusted = summary["p_value"].astype(float).copy()
    bases = [matrix.baseline_of(tuple(row)) for row in summary[list(AXES)].itertuples(index=False)]
    family = [
        f"{base}{metric}{at}"
        for base, metric, at in zip(bases, summary["metric"], summary["at"], strict=True)
    ]
    tested = adjusted.notna()
    for _, members in adjusted[tested].groupby(
        [name for name, is_in in zip(family, tested, strict=True) if is_in]
    ):
        adjusted[members.index] = holm(list(members))
    return adjusted


# ----------------------------------------------------------------------------------------------------------
# Tables for readers


def heading(metric: str) -> str:
    """Return what a metric is called in a table."""
    return HEADINGS.get(metric, metric.rsplit("/", 1)[-1])


def comparison(rows: "pd.DataFrame", matrix: Matrix) -> "pd.DataFrame":
    """Return the table that compares methods, as text: a row per group of cells, headline metrics first.

    Figures are of the last iteration; the best one of the main metric stands in a column of its own.
    """
    import pandas as pd

    summary = summarise(rows, matrix)
    by_key = {tuple(row[:6]): row for row in summary.itertuples(index=False, name=None)}
    labels = [
        axis for axis in AXES if axis == "method" or len({getattr(cell, axis) for cell in matrix.cells}) > 1
    ]
    # Grouped by names and not by cell: a kept CSV may hold cells whose configs have changed since.
    states = rows.drop_duplicates("cell").groupby(list(AXES))["status"].agg(list).to_dict()
    main = matrix.metrics[0]
    lines = []
    for group, cells in matrix.groups().items():
        names = dict(zip(AXES, group, strict=True))
        line = {label: names[label] for label in labels}
        unfinished = [status for status in states.get(group, []) if status != "finished"]
        absent, count = sorted(set(unfinished)), len(unfinished)
        for metric in matrix.metrics:
            row = by_key.get((*group, metric, "last"))
            line[heading(metric)] = _mean(row, metric)
        if count == len(cells):
            line[heading(main)] = "/".join(absent)
        if absent and count < len(cells):
            line[heading(main)] += f", {count} of {len(cells)} {'/'.join(absent)}"
        line[f"best {heading(main)}"] = _mean(by_key.get((*group, main, "best")), main)
        row = by_key.get((*group, main, "last"))
        line["difference"], line["p (Holm)"] = _compared(row, main)
        lines.append(line)
    return pd.DataFrame(lines)


def class_comparison(summary: "pd.DataFrame", matrix: Matrix) -> "pd.DataFrame":
    """Return, as text, the IoU of every class for a baseline and the differences of the other methods to it.

    Figures are of the last iteration; a row per class (of each data set and model), a column per method (and ablation).
    ``summary`` is that of `summarise`.
    """
    import pandas as pd

    is_class = summary["metric"].astype(str).str.startswith(CLASS_PREFIX) & (summary["at"] == "last")
    varied = [
        axis for axis in ("dataset", "model") if len({getattr(cell, axis) for cell in matrix.cells}) > 1
    ]
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in summary[is_class].itertuples(index=False, name=None):
        names = dict(zip(AXES, row, strict=False))
        metric = str(row[len(AXES)])
        line = lines.setdefault(
            (names["dataset"], names["model"], metric),
            {**{axis: names[axis] for axis in varied}, "class": metric.removeprefix(CLASS_PREFIX)},
        )
        is_baseline = matrix.baseline_of(row[: len(AXES)]) == row[: len(AXES)]
        column = " ".join(filter(None, (names["method"], names["ablation"])))
        line[column] = _mean(row, metric) if is_baseline else _compared(row, metric)[0]
    return pd.DataFrame(list(lines.values())).fillna(NOTHING)


def _mean(row: tuple[Any, ...] | None, metric: str) -> str:
    if row is None:
        return NOTHING
    form = FORMATS.get(metric, "{:.1f}")
    values = dict(zip(SUMMARY_COLUMNS, row, strict=True))
    if values["n"] == 1:
        return form.format(values["mean"])
    return f"{form.format(values['mean'])} ± {form.format(values['std'])} ({values['n']})"


def _compared(row: tuple[Any, ...] | None, metric: str) -> tuple[str, str]:
    """Return the difference with its interval, and p with the adjusted one."""
    import pandas as pd

    values = dict(zip(SUMMARY_COLUMNS, row, strict=True)) if row else {"diff": float("nan")}
    if pd.isna(values["diff"]):
        return NOTHING, NOTHING
    form = FORMATS.get(metric, "{:.1f}").replace("{:", "{:+")
    difference = form.format(values["diff"])
    if not pd.isna(values["diff_low"]):
        difference += f" [{form.format(values['diff_low'])}, {form.format(values['diff_high'])}]"
    if values["pairs"] < ENOUGH_PAIRS:
        return difference, TOO_SMALL
    return difference, f"{values['p_value']:.3f} ({values['p_holm']:.3f})"


def markdown(rows: "pd.DataFrame", matrix: Matrix) -> str:
    """Return the comparison as a markdown table."""
    return _markdown(comparison(rows, matrix))


def _markdown(frame: "pd.DataFrame") -> str:
    """Return a table of text as markdown; a bar in a name is no border of a cell."""
    plain = frame.map(_without_bar)
    plain.columns = [_without_bar(name) for name in frame.columns]
    return str(plain.to_markdown(index=False, disable_numparse=True))


def _without_bar(cell: Any) -> Any:
    """Return a cell in one line, without the border of markdown and the tags of HTML, which markdown would take over."""
    if not isinstance(cell, str):
        return cell
    line = " ".join(printable(cell).split())
    return line.replace("|", "&#124;").replace("<", "&lt;")


def latex(frame: "pd.DataFrame") -> str:
    """Return a table of text as LaTeX, with the rules of booktabs."""
    from tabulate import tabulate

    text = tabulate(
        frame.values.tolist(), list(frame.columns), tablefmt="latex_booktabs", disable_numparse=True
    )
    return text.replace("±", r"$\pm$")


def class_markdown(rows: "pd.DataFrame", matrix: Matrix) -> str:
    """Return the comparison by class as a markdown table."""
    return _markdown(class_comparison(summarise(rows, matrix), matrix))


def write_results(rows: "pd.DataFrame", output: Path) -> None:
    """Write ``results.csv``."""
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / RESULTS_FILE, _csv(rows))


def _csv(frame: "pd.DataFrame") -> str:
    """Return a table as CSV in which no text is a formula to a spreadsheet: such a text begins with a quote."""
    text = frame.select_dtypes(exclude="number").columns
    safe = frame.assign(**{name: frame[name].map(_no_formula) for name in text})
    return str(safe.to_csv(index=False, lineterminator="\n"))


def _no_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def write_tables(rows: "pd.DataFrame", matrix: Matrix, output: Path) -> None:
    """Write ``summary.csv``, ``table.md``, ``table.tex`` and, of segmentation, ``classes.md``.

    Published figures stand in tables of their own; tables of shortened cells begin with a line that says so.
    """
    output.mkdir(parents=True, exist_ok=True)
    summary = summarise(rows, matrix)
    write_text(output / SUMMARY_FILE, _csv(summary))
    ours, theirs = comparison(rows, matrix), published(matrix)
    mark = f"**{SHORT_NOTE}**\n\n" if matrix.is_short else ""
    comment = f"% {SHORT_NOTE}\n" if matrix.is_short else ""
    text = f"{mark}{_markdown(ours)}\n"
    source = f"{comment}{latex(ours)}\n"
    if len(theirs):
        note = "Published elsewhere, under their own protocols:"
        text += f"\n{note}\n\n{_markdown(theirs)}\n"
        source += f"\n% {note}\n{latex(theirs)}\n"
    write_text(output / MARKDOWN_FILE, text)
    write_text(output / LATEX_FILE, source)
    by_class = class_comparison(summary, matrix)
    if len(by_class):
        write_text(output / CLASSES_FILE, f"{mark}{_markdown(by_class)}\n")
