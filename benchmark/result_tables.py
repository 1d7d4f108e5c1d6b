"""Write the tables of README, docs and the notes beside results from the result files under benchmark/results.

``python benchmark/result_tables.py`` rewrites what stands between the markers ``<!-- table: NAME -->`` and
``<!-- end: NAME -->``; with ``--check`` it changes nothing and exits 1 if a table is out of date. NAME is a folder of
benchmark/results. If it holds the results.csv of a matrix (benchmark/matrices/NAME.yaml), the table is the matrix's
comparison, and between ``<!-- classes: NAME -->`` and the same end its comparison by class; if the faults.json of
tests/robustness, what was broken and what was seen; if the training*.csv and evaluation*.csv of step_speed.py, their
rows; if the contrasts*.csv of contrast_speed.py, every contrast beside Hi-CL; if a table.md, what a script printed; else it
has a row for each ``*.json``, a ``result.json`` as a training run leaves it, under the name of its config.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hicl_d2.command.files import write_text
from hicl_d2.harness.cells import AXES
from hicl_d2.harness.matrix import read_matrix
from hicl_d2.harness.tables import RESULTS_FILE, class_markdown, markdown

FAULTS_FILE = "faults.json"
PRINTED_FILE = "table.md"
# Of step_speed.py: training first.
SPEED_FILES = ("training*.csv", "evaluation*.csv")
CONTRAST_FILES = "contrasts*.csv"

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmark" / "results"
TABLE = re.compile(
    r"(<!-- (?P<kind>table|classes): (?P<name>[\w-]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL
)

Fault = dict[str, Any]  # "broken", "times" (None: not known), "seen"


def render(folder: Path, kind: str = "table") -> str:
    """Return the markdown table of the result files in ``folder``; of kind "classes", that of a matrix's classes."""
    if kind == "classes":
        return render_matrix(folder, class_markdown)
    if (folder / RESULTS_FILE).is_file():
        return render_matrix(folder)
    if (folder / FAULTS_FILE).is_file():
        return render_faults(json.loads((folder / FAULTS_FILE).read_text()).values())
    speeds = [path for pattern in SPEED_FILES for path in sorted(folder.glob(pattern))]
    if speeds:
        return render_speeds(speeds)
    contrasts = sorted(folder.glob(CONTRAST_FILES))
    if contrasts:
        return render_contrasts(contrasts)
    if (folder / PRINTED_FILE).is_file():
        return (folder / PRINTED_FILE).read_text(encoding="utf-8")
    return render_runs(folder)


def render_matrix(folder: Path, table: Callable[..., str] = markdown) -> str:
    """Return the comparison of a matrix's results, of which ``folder`` holds the CSV."""
    import pandas as pd

    matrix = read_matrix(ROOT / "benchmark" / "matrices" / f"{folder.name}.yaml")
    rows = pd.read_csv(folder / RESULTS_FILE, dtype=dict.fromkeys(AXES, str))
    return f"{table(rows.fillna(dict.fromkeys(AXES, '')), matrix)}\n"


def render_faults(faults: Iterable[Fault]) -> str:
    """Return a row for each kind of fault that runs were put through."""
    header = "| what was broken | times | what was seen |\n|---|---:|---|"
    lines = (
        f"| {fault['broken']} | {'' if fault['times'] is None else format(fault['times'], ',')} | {fault['seen']} |"
        for fault in faults
    )
    return "\n".join([header, *lines]) + "\n"


def render_speeds(files: Iterable[Path]) -> str:
    """Return a row for each trainer and each evaluation that step_speed.py measured."""
    lines = [
        "| config | batch | trainer or evaluation | images / s | x Detectron2 |",
        "|---|---|---|---:|---:|",
    ]
    for file in files:
        with open(file, newline="") as stream:
            lines += [_speed_row(row) for row in csv.DictReader(stream)]
    return "\n".join(lines) + "\n"


def _speed_row(row: dict[str, str]) -> str:
    batch = row["batch"] if "batch" in row else f"{row['images']} images, {row['kind']}"
    what = row["trainer"] if "trainer" in row else row["evaluation"]
    ratio = f"{float(row['to_peer']):.2f}" if row["to_peer"] else ""
    return f"| {row['config']} | {batch} | {what} | {float(row['images_per_second']):.2f} | {ratio} |"


def render_contrasts(files: Iterable[Path]) -> str:
    """Return a row for each contrast: its time at each size that contrast_speed.py measured, with its ratio to Hi-CL's."""
    import pandas as pd

    rows = pd.concat(map(pd.read_csv, files)).query("table == 'methods'")
    times = [f"{ms:,.0f} ({ratio:.2f})" for ms, ratio in zip(rows["ms"], rows["to_hicl"], strict=True)]
    rows = rows.assign(case=rows["case"] + ": ms (to hicl)", time=times)
    table = rows.pivot(index="row", columns="case", values="time")[rows["case"].unique()]
    first = rows.drop_duplicates("row").set_index("row")
    table.insert(0, "GFLOP", first["gflop"].map("{:.1f}".format))
    table["memory of the map"] = first["peak_to_map"].map("{:.1f}".format, na_action="ignore").fillna("")
    align = ("left", *["right"] * len(table.columns))
    text = table.loc[first.index].rename_axis("contrast").to_markdown(disable_numparse=True, colalign=align)
    return f"{text}\n"


def render_runs(folder: Path) -> str:
    """Return a row for each training run, sorted by name."""
    results = sorted((path.stem, json.loads(path.read_text())) for path in folder.glob("*.json"))
    header = "| config | mIoU | mAcc | iterations | minutes | seed | device | runtime | commit |"
    rule = "|---|---|---|---|---|---|---|---|---|"
    return "\n".join([header, rule, *(_row(name, result) for name, result in results)]) + "\n"


def _row(name: str, result: dict[str, Any]) -> str:
    last = result["metrics"]["last"]
    cells = [
        name,
        f"{last['sem_seg/mIoU']:.1f}",
        f"{last['sem_seg/mAcc']:.1f}",
        str(result["iterations"]),
        f"{result['seconds']['total'] / 60:.1f}",
        str(result["seed"]),
        result["device"],
        result["versions"]["runtime"],
        result["git"]["commit"][:7],
    ]
    return f"| {' | '.join(cells)} |"


def update(text: str) -> str:
    """Return ``text`` with every marked table rendered anew."""
    return TABLE.sub(lambda found: found[1] + render(RESULTS / found["name"], found["kind"]) + found[4], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    check = parser.parse_args().check
    stale = False
    for page in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted(RESULTS.glob("*/NOTES.md")),
    ):
        before = page.read_text(encoding="utf-8")
        after = update(before)
        if before == after:
            continue
        if check:
            sys.stderr.write(f"{page.relative_to(ROOT)}: a table is out of date; run: make tables\n")
            stale = True
        else:
            write_text(page, after)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
