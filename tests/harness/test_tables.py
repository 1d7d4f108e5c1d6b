"""Tables from results that are written down here."""

import dataclasses
import re

import pandas as pd
import pytest
from scipy import stats

from hicl_d2.command.errors import InputError
from hicl_d2.harness import ROOT
from hicl_d2.harness import folder as files
from hicl_d2.harness.failures import Failure
from hicl_d2.harness.folder import State
from hicl_d2.harness.matrix import read_matrix
from hicl_d2.harness.reference import published, read_reference
from hicl_d2.harness.tables import (
    SUMMARY_COLUMNS,
    class_comparison,
    collect,
    comparison,
    latex,
    summarise,
    write_tables,
)

BASE = [50.0, 51.0, 49.5, 50.5, 52.0]
GAINS = {"baseline": [0.0] * 5, "pixel": [0.2, -0.1, 0.3, 0.4, 0.1], "ours": [1.0, 1.5, 0.5, 2.0, 1.2]}


def result(value, best=None):
    best = value if best is None else best
    return {
        "schema": 1,
        "iterations": 9,
        "metrics": {
            "last": {"iteration": 9, "sem_seg/mIoU": value},
            "best": {"iteration": 5, "sem_seg/mIoU": best},
        },
        "class_iou": {"sky": value + 10, "road": None},
        "seconds": {"per_iteration": 0.5},
    }


@pytest.fixture
def matrix(bench):
    methods = {name: {"config": str(bench.folder / "plain.yaml"), "overrides": {"X": name}} for name in GAINS}
    return read_matrix(bench.matrix(methods=methods, seeds=[1, 2, 3, 4, 5]))


def rows(matrix, lost=(), failed=()):
    states = {}
    for cell in matrix.cells:
        value = BASE[cell.seed - 1] + GAINS[cell.method][cell.seed - 1]
        key = (cell.method, cell.seed)
        states[cell.slug] = (
            State(files.WAITING)
            if key in lost
            else State(files.FAILED, failure=Failure("unknown", "x"))
            if key in failed
            else State(files.DONE, result(value, value + 1))
        )
    return collect(matrix, states)


def summary_row(summary, method, metric="sem_seg/mIoU", at="last"):
    found = summary[(summary["method"] == method) & (summary["metric"] == metric) & (summary["at"] == at)]
    assert len(found) == 1
    return found.iloc[0]


def test_a_summary_has_mean_range_difference_interval_and_p(matrix):
    summary = summarise(rows(matrix), matrix)
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    values = pd.Series(BASE) + pd.Series(GAINS["ours"])
    row = summary_row(summary, "ours")
    assert (row["n"], row["mean"], row["std"]) == (
        5,
        pytest.approx(values.mean()),
        pytest.approx(values.std()),
    )
    assert (row["min"], row["max"]) == (values.min(), values.max())
    assert row["diff"] == pytest.approx(1.24)
    assert pd.isna(row["diff_low"])  # five pairs are too few for an interval
    assert pd.isna(row["diff_high"])
    assert row["p_value"] == 2 / 2**5
    assert row["p_holm"] == pytest.approx(2 * 2 / 2**5)  # the smaller of two
    other = summary_row(summary, "pixel")
    assert other["p_value"] == pytest.approx(
        stats.permutation_test(
            (GAINS["pixel"],), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=9999
        ).pvalue
    )
    assert other["p_holm"] == max(other["p_value"], row["p_holm"])
    assert pd.isna(summary_row(summary, "baseline")["diff"])
    assert summary_row(summary, "ours", at="best")["mean"] == pytest.approx(values.mean() + 1)
    assert summary_row(summary, "ours", "sem_seg/IoU-sky")["mean"] == pytest.approx(values.mean() + 10)
    assert "sem_seg/IoU-road" not in set(summary["metric"])


def test_the_difference_is_over_the_seeds_that_both_have(matrix):
    summary = summarise(rows(matrix, lost=[("ours", 4), ("baseline", 1)]), matrix)
    row = summary_row(summary, "ours")
    assert row["n"] == 4
    assert row["diff"] == pytest.approx((1.5 + 0.5 + 1.2) / 3)


def test_p_is_shown_by_the_number_of_pairs_and_not_of_seeds(matrix):
    found = rows(matrix, lost=[("baseline", 1), ("baseline", 2)], failed=[("baseline", 3)])
    row = summary_row(summarise(found, matrix), "ours")
    assert (row["n"], row["pairs"]) == (5, 2)
    table = comparison(found, matrix).set_index("method")
    assert table.loc["ours", "p (Holm)"] == "n too small"
    assert table.loc["ours", "difference"] == "+1.6"
    summary = summarise(rows(matrix), matrix)
    assert summary_row(summary, "ours")["pairs"] == 5
    assert pd.isna(summary_row(summary, "baseline")["pairs"])
    without = rows(matrix, lost=[("baseline", seed) for seed in range(1, 6)])
    assert summary_row(summarise(without, matrix), "ours")["pairs"] == 0


def test_holm_counts_the_rows_with_two_pairs_or_more(matrix):
    few = rows(matrix, lost=[("pixel", seed) for seed in (3, 4, 5)])
    summary = summarise(few, matrix)
    assert summary_row(summary, "ours")["p_holm"] == 2 * summary_row(summary, "ours")["p_value"]
    one = rows(matrix, lost=[("pixel", seed) for seed in (2, 3, 4, 5)])
    summary = summarise(one, matrix)
    assert summary_row(summary, "ours")["p_holm"] == summary_row(summary, "ours")["p_value"]


def test_missing_and_failed_cells_and_small_n_are_shown(matrix):
    lost = [("ours", 4), ("ours", 5), *(("pixel", seed) for seed in range(1, 6))]
    table = comparison(rows(matrix, lost=lost, failed=[("baseline", 5)]), matrix).set_index("method")
    assert table.loc["pixel", "mIoU"] == "missing"
    assert table.loc["pixel", "difference"] == "-"
    assert table.loc["ours", "mIoU"].endswith("(3), 2 of 5 missing")
    assert table.loc["ours", "p (Holm)"] == "n too small"
    assert table.loc["baseline", "mIoU"].endswith("(4), 1 of 5 failed")
    full = comparison(rows(matrix), matrix).set_index("method")
    assert full.loc["ours", "p (Holm)"] == "0.062 (0.125)"
    assert full.loc["ours", "difference"] == "+1.2"
    assert list(full.columns) == [
        "mIoU",
        "mAcc",
        "seconds per iteration",
        "best mIoU",
        "difference",
        "p (Holm)",
    ]


def test_a_matrix_without_any_result_has_a_table_too(matrix):
    everything = [(cell.method, cell.seed) for cell in matrix.cells]
    assert set(comparison(rows(matrix, lost=everything), matrix)["mIoU"]) == {"missing"}


def test_an_ablation_is_compared_with_the_row_that_the_file_names(bench):
    point = {"config": str(bench.folder / "plain.yaml")}
    path = bench.matrix(
        methods={"baseline": point, "ours": {**point, "overrides": {"O": 1}}},
        ablations={"default": None, "t=1": {"overrides": {"T": 1}}, "t=2": {"overrides": {"T": 2}}},
        exclude=[{"method": "baseline", "ablation": "t=*"}],
        baseline={"method": "ours", "ablation": "default"},
        seeds=[1, 2, 3, 4, 5],
    )
    matrix = read_matrix(path)
    extra = {"default": 0, "t=1": 1, "t=2": -2}
    states = {
        cell.slug: State(files.DONE, result(50 + cell.seed * (1 + extra[cell.ablation])))
        for cell in matrix.cells
    }
    summary = summarise(collect(matrix, states), matrix)
    main = summary[(summary["metric"] == "sem_seg/mIoU") & (summary["at"] == "last")]
    differences = {(row.method, row.ablation): row.diff for row in main.itertuples()}
    assert pd.isna(differences.pop(("ours", "default")))
    assert differences == {
        ("baseline", "default"): 0,
        ("ours", "t=1"): pytest.approx(3),
        ("ours", "t=2"): pytest.approx(-6),
    }
    # three rows are compared with one baseline
    smallest = main.set_index(["method", "ablation"]).loc[("ours", "t=1")]
    assert smallest["p_holm"] == pytest.approx(3 * smallest["p_value"])


def test_the_same_results_against_another_method(matrix):
    table = comparison(rows(matrix), matrix.against("pixel")).set_index("method")
    assert table.loc["pixel", "difference"] == "-"
    assert table.loc["ours", "difference"] == "+1.1"  # 1.24 - 0.18
    assert table.loc["baseline", "difference"] == "-0.2"
    assert matrix.baseline == {"method": "baseline"}
    with pytest.raises(InputError, match=r"--against pixle is no method or ablation of .*did you mean pixel"):
        matrix.against("pixle")


def test_another_ablation_to_compare_with_leaves_the_method(bench):
    point = {"config": str(bench.folder / "plain.yaml")}
    methods = {"one": point, "two": {**point, "overrides": {"O": 1}}}
    ablations = {"default": None, "t=1": {"overrides": {"T": 1}}}
    matrix = read_matrix(
        bench.matrix(
            methods=methods, ablations=ablations, baseline={"method": "two", "ablation": "default"}, seeds=[1]
        )
    )
    group = matrix.cells[0].group
    assert matrix.against("t=1").baseline_of(group) == (*group[:2], "two", "t=1")
    assert matrix.against("one").baseline_of(group) == (*group[:2], "one", "default")


def test_an_ablation_that_the_baseline_s_method_lacks_is_refused(bench):
    point = {"config": str(bench.folder / "plain.yaml")}
    matrix = read_matrix(
        bench.matrix(
            methods={"baseline": point, "ours": {**point, "overrides": {"O": 1}}},
            ablations={"default": None, "t=1": {"overrides": {"T": 1}}},
            exclude=[{"method": "baseline", "ablation": "t=1"}],
            baseline="baseline",
            seeds=[1],
        )
    )
    with pytest.raises(InputError, match=r"has no cell of method baseline, ablation t=1 to compare with"):
        matrix.against("t=1")


def test_classes_have_the_baselines_iou_and_the_differences_to_it(bench, tmp_path):
    methods = {name: {"config": str(bench.folder / "plain.yaml"), "overrides": {"X": name}} for name in GAINS}
    six = read_matrix(bench.matrix(methods=methods, seeds=[1, 2, 3, 4, 5, 6]))
    gains = {"baseline": [0.0] * 6, "pixel": [1.0, 2.0, 3.0, 4.0, 5.0, 9.0], "ours": [-1.0] * 6}
    states = {
        cell.slug: State(files.DONE, result(50.0 + gains[cell.method][cell.seed - 1])) for cell in six.cells
    }
    rows = collect(six, states)
    table = class_comparison(summarise(rows, six), six)
    assert list(table.columns) == ["class", "baseline", "pixel", "ours"]
    assert list(table["class"]) == ["sky"]  # nothing was measured of road
    assert table["baseline"][0] == "60.0 ± 0.0 (6)"
    low, high = stats.bootstrap(
        (gains["pixel"],), lambda x, axis: x.mean(axis), method="percentile", n_resamples=20000, rng=0
    ).confidence_interval
    numbers = [float(number) for number in re.findall(r"[+-][\d.]+", table["pixel"][0])]
    assert numbers == pytest.approx([4.0, low, high], abs=0.1)
    assert table["ours"][0] == "-1.0 [-1.0, -1.0]"
    write_tables(rows, six, tmp_path)
    assert (tmp_path / "classes.md").read_text().splitlines()[0].split("|")[1].strip() == "class"


def test_published_figures_stand_apart_with_protocol_and_source(matrix, tmp_path):
    here = dataclasses.replace(
        matrix, cells=tuple(dataclasses.replace(cell, dataset="cityscapes") for cell in matrix.cells)
    )
    states = {cell.slug: State(files.DONE, result(50.0)) for cell in here.cells}
    found = collect(here, states)
    write_tables(found, here, tmp_path)
    text = (tmp_path / "table.md").read_text()
    ours, theirs = text.split("Published elsewhere, under their own protocols:")
    assert "Mask2Former R50" in theirs
    assert "Mask2Former" not in ours
    assert "MODEL_ZOO" in theirs
    frame = published(here)
    assert set(frame["dataset"]) == {"cityscapes"}
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert set(summary["mean"]) <= {50.0, 60.0, 0.5}


def test_every_published_figure_has_a_protocol_and_a_source_and_none_is_there_twice(tmp_path):
    frame = read_reference()
    assert len(frame) > 60
    keys = ["dataset", "model", "method", "metric", "protocol", "source"]
    assert not frame.duplicated(keys).any()
    assert frame["value"].between(30, 90).all()
    text = (ROOT / "benchmark" / "reference.csv").read_text().splitlines()
    bare = tmp_path / "reference.csv"
    bare.write_text("\n".join([text[0], "a,b,c,sem_seg/mIoU,1.0,,"]))
    with pytest.raises(InputError, match=r"reference\.csv:2: every figure needs a protocol and a source"):
        read_reference(bare)


@pytest.mark.parametrize(("count", "has_interval"), [(2, False), (5, False), (6, True), (9, True)])
def test_an_interval_is_given_from_six_pairs_on(bench, count, has_interval):
    matrix = read_matrix(bench.matrix(seeds=list(range(1, count + 1))))
    gain = {"baseline": 0.0, "ours": 1.5}
    states = {
        cell.slug: State(files.DONE, result(40.0 + cell.seed + gain[cell.method] * (1 + cell.seed / 10)))
        for cell in matrix.cells
    }
    found = collect(matrix, states)
    row = summary_row(summarise(found, matrix), "ours")
    assert pd.notna(row["diff_low"]) == pd.notna(row["diff_high"]) == has_interval
    if has_interval:
        gains = [1.5 * (1 + seed / 10) for seed in range(1, count + 1)]
        assert min(gains) <= row["diff_low"] < sum(gains) / count < row["diff_high"] <= max(gains)
    text = comparison(found, matrix).set_index("method").loc["ours", "difference"]
    assert ("[" in text) == has_interval


def test_latex_has_booktabs_rules_and_escapes_what_latex_would_read():
    text = latex(pd.DataFrame({"method": ["a_b & c", "50 %"], "mIoU": ["41.0 ± 0.5 (5)", "-"]}))
    assert r"\toprule" in text
    assert r"a\_b \& c" in text
    assert r"50 \%" in text
    assert r"41.0 $\pm$ 0.5 (5)" in text


def test_names_that_look_like_something_else_stay_as_they_are_written(bench):
    bench.matrix(methods=None, ablations=None)
    text = bench.folder.joinpath("matrix.yaml").read_text()[:-1]
    plain, other = (str(bench.folder / name) for name in ("plain.yaml", "other.yaml"))
    names = ["off", "on", "null", "0100", "1e3", "2024-11-26", "a|b", "~", "x | y | z"]
    methods = ", ".join(
        f"{name if '|' not in name else repr(name)}: {{config: {plain}, overrides: {{X: {number}}}}}"
        for number, name in enumerate(names)
    )
    bench.write(
        "matrix.yaml", f"{text}, methods: {{{methods}}}, ablations: {{no: {{}}, yes: {{config: {other}}}}}}}"
    )
    done = bench.run()
    assert done.returncode == 0, done.stderr
    lines = (bench.output / "table.md").read_text().splitlines()
    cells = [[cell.strip().replace("&#124;", "|") for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in cells} == {len(cells[0])}
    assert [row[:2] for row in cells[2:]] == [
        [name, ablation] for name in names for ablation in ("no", "yes")
    ]


@pytest.mark.parametrize(
    "name", ["[off, on]", "[1, 2]", "[null]", '["a\\nb"]', '["\\e[31mred"]', '[" "]', '{"": {}}']
)
def test_a_name_that_is_no_line_of_text_is_refused(bench, name):
    bench.matrix(methods=None)
    text = bench.folder.joinpath("matrix.yaml").read_text()[:-1]
    bench.write("matrix.yaml", f"{text}, config: plain.yaml, methods: {name}}}")
    done = bench.run(verb="plan")
    assert done.returncode == 2
    assert "quote it" in done.stderr or "no control characters" in done.stderr
    assert done.stderr.count("\n") == 1
