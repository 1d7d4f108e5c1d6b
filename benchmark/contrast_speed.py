"""Measure time and memory of the contrasts: forward and backward, each on the same made-up batch with a fixed seed.

Every row of a table runs twice per round, round after round, and the second time counts: a step comes after one like
itself, and a busy machine slows all rows alike. Times are medians over rounds, ratios are medians of the ratios within
a round. With one CPU thread time is CPU time; with more it is wall time; on a GPU it is between two CUDA events. Peak
memory is what a step allocates above what was there before (the batch and the parameters), with the gradient at the
feature map: `torch.profiler`'s allocation records on a CPU, the allocator's peak on a GPU. On a CPU freed memory is
kept for the next step (`restart_keeping_memory`), for all rows alike.

The floor is the matrix products alone that Hi-CL's loss cannot do without, of the same run and the same
sizes: the two layers of the embedding forward and both their gradients, for every anchor and component, and
the similarities forward and both their gradients. Peers run with their own default budgets: the products'
GFLOP say how much each does. Operators are what a step asks of a GPU, call by call, and are counted on any machine.
"""

import csv
import statistics
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from speed.arguments import csv_file, device_name
from speed.cases import Case, Step, hicl_step, make_batch, make_contrast, make_floor, make_step
from speed.follow import operators
from speed.meter import gigaflops, measure, median_ratio, peak_bytes, processor, restart_keeping_memory
from speed.targets import verdict

from hicl_d2.command.cli import Parser, run, whole
from hicl_d2.command.files import atomic_open
from hicl_d2.contrast import CONTRASTS

PEERS = tuple(name for name in CONTRASTS if name != "hicl")
FLOOR, FUSED, FUSED_LAST, TEXTBOOK = "matrix products", "hicl", "hicl, channels_last", "hicl textbook"
EQUAL = "pixel, as many pairs as hicl"
COLUMNS = (
    "table",
    "case",
    "row",
    "ms",
    "to_floor",
    "to_hicl",
    "to_first",
    "gflop",
    "operators",
    "peak_mb",
    "peak_to_map",
)


@dataclass(frozen=True)
class Plan:
    """Hold what is measured: the sizes of the reference, or tiny ones for a test of this script."""

    small: Case = field(default_factory=lambda: Case(2, 512, 512, 19))
    sizes: tuple[tuple[int, int, int], ...] = ((2, 512, 512), (2, 512, 1024), (1, 1024, 2048))
    classes: tuple[int, ...] = (19, 150, 171)
    anchors: tuple[int, ...] = (432, 864, 1728, 3456)
    components: tuple[int, ...] = (785, 1570, 3141, 6282)
    banks: tuple[int, ...] = (0, 16, 32, 64)
    peers: dict[str, Any] = field(default_factory=dict)
    rounds: int = 9


QUICK = Plan(
    small=Case(2, 64, 64, 3, channels=16, anchors=24, components=40),
    sizes=((2, 64, 64), (1, 128, 128)),
    classes=(3, 7),
    anchors=(12, 24, 48),
    components=(20, 40, 80),
    banks=(0, 2, 4),
    peers={"anchors": 16, "negatives": 16, "bank_size": 2},
    rounds=1,
)


@dataclass
class Report:
    """Collect rows by table, and write them as markdown and CSV."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, table: str, case: object, row: str, **figures: float | None) -> None:
        self.rows.append({"table": table, "case": str(case), "row": row, **figures})

    def find(self, table: str, case: object, row: str, column: str) -> float:
        found = next(
            each
            for each in self.rows
            if (each["table"], each["case"], each["row"]) == (table, str(case), row)
        )
        return float(found[column])

    def markdown(self, table: str, case: object = None) -> str:
        rows = [row for row in self.rows if row["table"] == table and case in (None, row["case"])]
        columns = [name for name in COLUMNS[1:] if any(row.get(name) is not None for row in rows)]
        lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]
        return "\n".join([f"\n## {table}\n", *lines]) + "\n"

    def write_csv(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(path) as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------- tables

METHODS = "methods"


def compare_methods(case: Case, plan: Plan, device: torch.device, report: Report) -> None:
    """Measure every contrast on one case."""
    batch = make_batch(case, device)
    plain, last = torch.contiguous_format, torch.channels_last
    equal = round((case.anchors * case.components) ** 0.5)
    steps = {
        FLOOR: make_floor(case, device),
        FUSED: make_step(make_contrast("hicl", case), batch, plain),
        FUSED_LAST: make_step(make_contrast("hicl", case), batch, last),
        TEXTBOOK: make_step(make_contrast("hicl", case, implementation="textbook"), batch, plain),
        **{name: make_step(make_contrast(name, case, **plan.peers), batch, plain) for name in PEERS},
        EQUAL: make_step(make_contrast("pixel", case, anchors=equal), batch, plain),
    }
    times = measure(steps, plan.rounds, device)
    for name, step in steps.items():
        peak = None if name == FLOOR else peak_bytes(step, device)
        report.add(
            METHODS,
            case,
            name,
            ms=statistics.median(times[name]),
            to_floor=median_ratio(times[name], times[FLOOR]),
            to_hicl=median_ratio(times[name], times[FUSED]),
            gflop=gigaflops(step),
            operators=operators(step),
            peak_mb=None if peak is None else peak / 1e6,
            peak_to_map=None if peak is None else peak / case.map_bytes,
        )


def compare_sizes(
    table: str, cases: dict[str, Case], plan: Plan, device: torch.device, report: Report
) -> None:
    """Measure fused Hi-CL (channels_last) on several cases, each beside its own floor; the first is the unit."""
    steps: dict[str, Step] = {}
    for name, case in cases.items():
        steps[name] = hicl_step(case, device)
        steps[f"{FLOOR} of {name}"] = make_floor(case, device)
    times = measure(steps, plan.rounds, device)
    first = next(iter(cases))
    for name in cases:
        report.add(
            table,
            name,
            FUSED_LAST,
            ms=statistics.median(times[name]),
            to_floor=median_ratio(times[name], times[f"{FLOOR} of {name}"]),
            to_first=median_ratio(times[name], times[first]),
        )


def all_cases(plan: Plan) -> list[Case]:
    """Return every size with every number of classes."""
    sizes = [replace(plan.small, batch=b, height=h, width=w) for b, h, w in plan.sizes]
    return [replace(size, classes=classes) for size in sizes for classes in plan.classes]


def asked_cases(plan: Plan) -> tuple[Case, Case, Case]:
    """Return the cases that the targets name: the smallest with few and with many classes, and the largest."""
    b, h, w = plan.sizes[-1]
    many = replace(plan.small, classes=plan.classes[-1])
    return plan.small, many, replace(plan.small, batch=b, height=h, width=w)


def scaling_tables(plan: Plan) -> dict[str, dict[str, Case]]:
    """Return the cases of every scaling table, by what varies."""
    small = plan.small
    sizes = [replace(small, batch=b, height=h, width=w) for b, h, w in plan.sizes]
    return {
        "cells": {f"{case.cells} cells": case for case in sizes},
        "classes": {f"{k} classes": replace(small, classes=k) for k in plan.classes},
        "anchors": {f"{n} anchors": replace(small, anchors=n) for n in plan.anchors},
        "components": {f"{n} components": replace(small, components=n) for n in plan.components},
        "bank": {f"{n} per class and level": replace(small, bank=n) for n in plan.banks},
    }


def linearity(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Compare the slope of the upper sizes with that of the lower: 1 if linear, over 2 if quadratic (for doublings)."""
    middle = len(sizes) // 2
    first = (times[middle] - times[0]) / (sizes[middle] - sizes[0])
    last = (times[-1] - times[middle]) / (sizes[-1] - sizes[middle])
    return last / first if first > 0 and last > 0 else float("inf")


def judge(plan: Plan, report: Report) -> list[str]:
    """Return a line for every target: what it asks, what was measured, whether it is met."""
    small, many, large = asked_cases(plan)
    cases = scaling_tables(plan)
    lines = []

    def ask(what: str, measured: float, limit: float, at_most: bool = True) -> None:
        met = measured <= limit if at_most else measured >= limit
        wanted = f"at {'most' if at_most else 'least'} {limit:g} x"
        lines.append(verdict(what, wanted, f"{measured:.2f} x", met))

    for row in (FUSED_LAST, FUSED):
        ask(f"{row} to the floor at {small}", report.find(METHODS, small, row, "to_floor"), 1.25)
    for row in (FUSED_LAST, FUSED):
        ask(f"{row} to the floor at {large}", report.find(METHODS, large, row, "to_floor"), 2.0)
    for case, least in ((small, 4.0), (many, 5.0)):
        ask(
            f"textbook to hicl at {case}",
            report.find(METHODS, case, TEXTBOOK, "to_hicl"),
            least,
            at_most=False,
        )
    classes = list(cases["classes"])
    ask(
        f"time at {classes[-1]} to {classes[0]}",
        report.find("classes", classes[-1], FUSED_LAST, "to_first"),
        1.15,
    )
    for row in (FUSED_LAST, FUSED):
        ask(
            f"peak memory of {row} to the feature map at {small}",
            report.find(METHODS, small, row, "peak_to_map"),
            3.5,
        )
    cells = list(cases["cells"])
    ask(f"time at {cells[-1]} to {cells[0]}", report.find("cells", cells[-1], FUSED_LAST, "to_first"), 1.5)
    for table, sizes in (("anchors", plan.anchors), ("components", plan.components), ("bank", plan.banks)):
        times = [report.find(table, name, FUSED_LAST, "ms") for name in cases[table]]
        ask(
            f"growth with {table}, upper slope to lower (linear 1, quadratic over 2)",
            linearity(sizes, times),
            1.3,
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, and return the exit status, which the targets do not touch."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=whole(1), default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--device", type=device_name, choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    parser.add_argument("--rounds", type=whole(1), help="rounds that are counted")
    parser.add_argument("--output", type=csv_file, help="CSV file to write")
    parser.add_argument("--targets", action="store_true", help="only the cases that the targets are about")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test this script")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    plan = QUICK if args.quick else Plan()
    plan = replace(plan, rounds=args.rounds or plan.rounds)

    report = Report()
    _show(f"{processor(device)}, {args.threads} threads, torch {torch.__version__}, {plan.rounds} rounds\n")
    for case in asked_cases(plan) if args.targets else all_cases(plan):
        compare_methods(case, plan, device, report)
        _show(report.markdown(METHODS, str(case)))
    for table, cases in scaling_tables(plan).items():
        compare_sizes(table, cases, plan, device, report)
        _show(report.markdown(table))
    _show("\n" + "\n".join(judge(plan, report)) + "\n")
    if args.output:
        report.write_csv(args.output)
    return 0


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    restart_keeping_memory()
    run("contrast_speed", main)
