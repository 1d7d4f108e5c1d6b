"""Plots of a matrix. Each function returns a matplotlib figure, or None where there is nothing to show."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hicl_d2.command.errors import counted
from hicl_d2.harness.cells import AXES
from hicl_d2.harness.matrix import MAIN_METRIC, Matrix
from hicl_d2.harness.report.curves import LOSS, band, read_curve
from hicl_d2.harness.results import CLASS_PREFIX
from hicl_d2.harness.statistics import ENOUGH_FOR_INTERVAL, bootstrap_interval
from hicl_d2.harness.tables import heading
from hicl_d2.harness.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Place = tuple[str, str]  # data set and model

# Paul Tol's bright scheme: apart from each other also for the colour-blind.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#777777", "#222222")
GAIN, LOSS_COLOUR, BASE = "#228833", "#CC3344", "#8A94A6"
MOST_CURVES = len(COLOURS)
MOST_CLASSES = 40
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9AA3B2",
    "axes.labelcolor": "#333A45",
    "xtick.color": "#5A6372",
    "ytick.color": "#5A6372",
    "axes.grid": True,
    "grid.color": "#E6E9EE",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "run_matrix",
    # Names are text: a dollar sign begins no formula, which might be broken.
    "text.parse_math": False,
    "text.usetex": False,
}


def learning_curves(workspace: Workspace, place: Place) -> "Figure | None":
    """Draw loss and main metric over the iterations: a thin line per seed, their mean, and a band of ± std.

    There are as many colours as curves that an eye can tell apart: the baseline and the methods that the file compares
    have one before the others. What is left out is counted in the legend.
    """
    groups = {
        group: [cell.folder(workspace.output) for cell in cells]
        for group, cells in workspace.matrix.groups().items()
        if group[:2] == place
    }
    panels = []
    for name, label in ((LOSS, "loss without the contrast's"), (MAIN_METRIC, heading(MAIN_METRIC))):
        curves = {
            group: [read_curve(folder, name) for folder in folders] for group, folders in groups.items()
        }
        curves = {group: [c for c in found if len(c) > 1] for group, found in curves.items()}
        curves = {group: found for group, found in curves.items() if found}
        if curves:
            panels.append((label, curves))
    if not panels:
        return None
    figure, axes = _figure(5.2 * len(panels), 3.4, len(panels))
    for axis, (label, curves) in zip(axes, panels, strict=True):
        for colour, group in zip(COLOURS, _chosen(list(curves), workspace.matrix), strict=False):
            found = curves[group]
            for curve in found:
                axis.plot(curve.index, curve, color=colour, alpha=0.3, linewidth=0.7)
            mean = band(found)
            axis.plot(mean.index, mean["mean"], color=colour, linewidth=1.8, label=_short(group))
            low, high = mean["mean"] - mean["std"], mean["mean"] + mean["std"]
            axis.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_xlabel("iteration")
        axis.set_ylabel(label)
        left = len(curves) - MOST_CURVES
        axis.legend(fontsize=8, title=f"{left} more not drawn" if left > 0 else None)
    return figure


def _chosen(groups: list[tuple[str, ...]], matrix: Matrix) -> list[tuple[str, ...]]:
    """Return the groups that get a curve, in the order of the file."""
    ranked = sorted(groups, key=lambda g: g != matrix.baseline_of(g) and g[2] not in (matrix.compare or ()))
    return [group for group in groups if group in ranked[:MOST_CURVES]]


def differences(summary: "pd.DataFrame", matrix: Matrix, place: Place) -> "Figure | None":
    """Draw every row's difference to its baseline with the interval: methods and ablations below each other."""
    main = matrix.metrics[0]
    rows = _at(summary, place)
    rows = rows[(rows["metric"] == main) & (rows["at"] == "last") & rows["diff"].notna()]
    if rows.empty:
        return None
    figure, (axis,) = _figure(7.2, 0.9 + 0.27 * len(rows), 1)
    for position, row in enumerate(rows.itertuples()):
        has_interval = row.diff_low == row.diff_low
        colour = BASE  # but for a difference whose interval leaves out zero
        if has_interval:
            if row.diff_low > 0 or row.diff_high < 0:
                colour = GAIN if row.diff > 0 else LOSS_COLOUR
            axis.plot([row.diff_low, row.diff_high], [position] * 2, color=colour, linewidth=2)
        axis.plot(
            row.diff,
            position,
            "o",
            color=colour,
            markersize=5,
            markerfacecolor=colour if has_interval else "w",
        )
    axis.axvline(0, color="#333A45", linewidth=0.8)
    names = [_short((row.dataset, row.model, row.method, row.ablation)) for row in rows.itertuples()]
    axis.set_yticks(range(len(rows)), names)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    base = {_short(matrix.baseline_of(tuple(row))) for row in rows[list(AXES)].itertuples(index=False)}
    axis.set_xlabel(f"difference in {heading(main)} to {' / '.join(sorted(base))}, with 95 % interval")
    return figure


def class_differences(rows: "pd.DataFrame", matrix: Matrix, place: Place) -> "Figure | None":
    """Draw the difference per class between the two methods of the report, over the seeds that both have."""
    import pandas as pd

    if matrix.compare is None:
        return None
    first, second = matrix.compare
    found = _at(rows, place)
    found = found[found["metric"].astype(str).str.startswith(CLASS_PREFIX) & (found["at"] == "last")]
    ablation = next((a for a in found["ablation"] if a in _ablations(found, first, second)), None)
    if ablation is None:
        return None
    wide = found[found["ablation"] == ablation].pivot_table(
        index=["metric", "seed"], columns="method", values="value"
    )
    if first not in wide or second not in wide:
        return None
    gaps = (wide[second] - wide[first]).dropna()
    if gaps.empty:
        return None
    mean = gaps.groupby("metric").mean()
    chosen = mean.loc[mean.abs().sort_values(ascending=False).index[:MOST_CLASSES]].sort_values(
        ascending=False
    )
    figure, (axis,) = _figure(7.2, 0.9 + 0.24 * len(chosen), 1)
    pairs = gaps.groupby("metric").size()
    enough = pairs >= ENOUGH_FOR_INTERVAL
    colours = [
        (GAIN if value > 0 else LOSS_COLOUR) if enough[metric] else BASE for metric, value in chosen.items()
    ]
    axis.barh(range(len(chosen)), chosen, color=colours, alpha=0.85, height=0.7)
    for position, metric in enumerate(chosen.index):
        values = tuple(gaps.xs(metric, level="metric"))
        if enough[metric]:
            low, high = bootstrap_interval(values)
            axis.plot([low, high], [position] * 2, color="#222222", linewidth=1)
    axis.axvline(0, color="#333A45", linewidth=0.8)
    axis.set_yticks(range(len(chosen)), [metric.removeprefix(CLASS_PREFIX) for metric in chosen.index])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    seeds = pd.unique(gaps.index.get_level_values("seed"))
    what = f"IoU of {second} minus {first}{f' ({ablation})' if ablation else ''}"
    axis.set_xlabel(f"{what}, mean of {counted(len(seeds), 'seed')}")
    return figure


def _ablations(rows: "pd.DataFrame", first: str, second: str) -> set[str]:
    """Return the ablations that both methods have."""
    by_method = rows.groupby("method")["ablation"].unique()
    return set(by_method.get(first, [])) & set(by_method.get(second, []))


def cost(summary: "pd.DataFrame", matrix: Matrix, place: Place) -> "Figure | None":
    """Draw the main metric over the seconds an iteration takes, with ± std both ways."""
    rows = _at(summary, place)
    rows = rows[rows["at"] == "last"]
    scores = rows[rows["metric"] == matrix.metrics[0]].set_index(["method", "ablation"])
    times = rows[rows["metric"] == "seconds/per_iteration"].set_index(["method", "ablation"])
    both = scores.join(times.add_suffix("_time"), how="inner")
    if len(both) < 2:
        return None
    figure, (axis,) = _figure(7.2, 3.8, 1)
    for number, (name, row) in enumerate(both.iterrows()):
        colour = COLOURS[number % len(COLOURS)]
        axis.errorbar(
            row["mean_time"],
            row["mean"],
            xerr=_known(row["std_time"]),
            yerr=_known(row["std"]),
            fmt="o",
            color=colour,
            elinewidth=0.8,
        )
        label = _short(("", "", *name))
        axis.annotate(
            label, (row["mean_time"], row["mean"]), xytext=(6, 5), textcoords="offset points", fontsize=8
        )
    axis.margins(0.15)
    axis.set_xlabel("seconds per iteration")
    axis.set_ylabel(heading(matrix.metrics[0]))
    return figure


def _known(value: float) -> float:
    return value if value == value else 0.0


def _at(frame: "pd.DataFrame", place: Place) -> "pd.DataFrame":
    return frame[(frame["dataset"] == place[0]) & (frame["model"] == place[1])]


def _short(group: Sequence[str]) -> str:
    """Return the method and the ablation of a group."""
    return " · ".join(name for name in group[2:] if name)


def _figure(width: float, height: float, columns: int) -> "tuple[Figure, Sequence[Any]]":
    """Return a figure with its axes; without pyplot nothing global is left behind."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, axes
