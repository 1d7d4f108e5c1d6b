"""Results of all cells as one long CSV, and the table that compares methods."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cells import AXES, Cell, measures, read_result
from harness.files import write_text
from harness.matrix import Matrix

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("matrix", "cell", *AXES, "seed", "metric", "at", "value", "iteration", "status")
RESULTS_FILE = "results.csv"
TABLE_FILE = "table.md"
MAIN_METRIC = "sem_seg/mIoU"
# Metric, heading, format. The last two are of a training, the others of a model.
SHOWN = (
    (MAIN_METRIC, "mIoU", "{:.1f}"),
    ("sem_seg/mAcc", "mAcc", "{:.1f}"),
    ("seconds/per_iteration", "seconds per iteration", "{:.3f}"),
)
NOTHING = "-"


def collect(matrix: Matrix, output: Path, failed: Mapping[str, str]) -> "pd.DataFrame":
    """Return a row per cell and metric; a cell without a result has one row, without a metric.

    ``failed`` holds the slugs of the cells that failed. Read by pandas as it is written: results.csv.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for cell in matrix.cells:
        about = {"matrix": matrix.name, "cell": cell.slug, "seed": cell.seed}
        about |= {axis: getattr(cell, axis) for axis in AXES}
        result = read_result(cell.folder(output))
        if result is None:
            rows.append({**about, "status": "failed" if cell.slug in failed else "missing"})
            continue
        for metric, at, value, iteration in measures(result):
            numbers = {"metric": metric, "at": at, "value": value, "iteration": iteration}
            rows.append({**about, **numbers, "status": "finished"})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"iteration": "Int64"})


def write_results(rows: "pd.DataFrame", output: Path) -> Path:
    """Write ``results.csv`` and return its path."""
    path = output / RESULTS_FILE
    write_text(path, rows.to_csv(index=False, lineterminator="\n"))
    return path


def write_table(table: str, output: Path) -> Path:
    """Write ``table.md`` and return its path."""
    path = output / TABLE_FILE
    write_text(path, f"{table}\n")
    return path


def compare(rows: "pd.DataFrame", matrix: Matrix) -> str:
    """Return a markdown table with a row per method (and data set, model, ablation, where there are several).

    Figures are of the last iteration: the mean over the seeds, with the standard deviation where there are
    several. The difference is to the baseline's mIoU over the seeds that both have.
    """
    import pandas as pd

    labels = [axis for axis in AXES if axis == "method" or len({getattr(c, axis) for c in matrix.cells}) > 1]
    last = rows[rows["at"] == "last"]
    values = last.pivot_table(index=[*AXES, "seed"], columns="metric", values="value", dropna=True)
    lines = []
    for key, cells in _groups(matrix).items():
        names = dict(zip(AXES, key, strict=True))
        line = {label: names[label] for label in labels}
        states = rows[rows["cell"].isin([cell.slug for cell in cells])].drop_duplicates("cell")["status"]
        for metric, heading, form in SHOWN:
            found = _values(values, key, metric)
            line[heading] = (
                _mean(found, form) if len(found) else "/".join(sorted(set(states) - {"finished"})) or NOTHING
            )
        base = (names["dataset"], names["model"], matrix.baseline, names["ablation"])
        line["difference"] = NOTHING if key == base else _difference(values, key, base)
        if (states != "finished").any() and (states == "finished").any():
            line[SHOWN[0][1]] += f", {(states != 'finished').sum()} of {len(states)} missing"
        lines.append(line)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def _groups(matrix: Matrix) -> dict[tuple[str, ...], list[Cell]]:
    """Return the cells that differ in their seed alone, in the order of the matrix."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in matrix.cells:
        groups.setdefault(tuple(getattr(cell, axis) for axis in AXES), []).append(cell)
    return groups


def _values(values: "pd.DataFrame", key: tuple[str, ...], metric: str) -> "pd.Series":
    """Return a metric's values by seed."""
    import pandas as pd

    if metric not in values.columns or key not in values.index.droplevel("seed"):
        return pd.Series(dtype=float)
    return values.loc[key, metric].dropna()


def _mean(values: "pd.Series", form: str) -> str:
    if len(values) == 1:
        return form.format(values.iloc[0])
    return f"{form.format(values.mean())} ± {form.format(values.std())} ({len(values)})"


def _difference(values: "pd.DataFrame", key: tuple[str, ...], base: tuple[str, ...]) -> str:
    """Return the mean difference of mIoU over the seeds that both have."""
    paired = (_values(values, key, MAIN_METRIC) - _values(values, base, MAIN_METRIC)).dropna()
    if paired.empty:
        return NOTHING
    return _mean(paired, "{:+.1f}").replace("± +", "± ")
