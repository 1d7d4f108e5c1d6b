"""The gate: results against what is expected of them."""

import json

import pytest
import yaml

from hicl_d2.command.errors import InputError
from hicl_d2.harness import ROOT
from hicl_d2.harness.gate import read_expected
from hicl_d2.harness.matrix import read_matrix
from hicl_d2.harness.workspace import matches
from tests.harness.test_run_matrix import one_line_error


def expected(bench, *entries):
    path = bench.write("expected.yaml", yaml.safe_dump({"test": list(entries)}))
    return ["--expected", str(path)]


def entry(**changes):
    return {"cell": "*/ours/*", "metric": "sem_seg/mIoU", "value": 42.5, "tolerance": 0.6, **changes}


def test_the_gate_passes_within_tolerance_and_fails_beyond_or_without_a_result(bench):
    bench.matrix(seeds=[1])
    assert bench.run("--only", "*ours*").returncode == 0
    done = bench.run(*expected(bench, entry(), entry(value=45, at="best", tolerance=0)), verb="gate")
    assert done.returncode == 0, done.stdout
    done = bench.run(*expected(bench, entry(), entry(value=43.2), entry(cell="*baseline*")), verb="gate")
    assert done.returncode == 1
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [line[-2:] for line in lines] == [["42.5", "ok"], ["42.5", "OFF"], ["waiting", "MISSING"]]
    assert lines[0][:4] == ["parts/small/ours/seed 1", "sem_seg/mIoU", "last", "42.5 ± 0.6"]


def test_a_metric_that_a_result_lacks_fails_the_gate(bench):
    bench.matrix(seeds=[1])
    bench.run("--only", "*ours*")
    assert bench.run(*expected(bench, entry(metric="sem_seg/none")), verb="gate").returncode == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"celll": 1}, "entry 1: unknown key celll; did you mean cell?"),
        ({"value": "x"}, "entry 1: value must be a number, not 'x'"),
        ({"tolerance": -1}, "entry 1: tolerance must not be negative"),
    ],
)
def test_nonsense_in_the_file_is_one_line(bench, changes, message):
    path = bench.write("expected.yaml", json.dumps({"test": [entry(**changes)]}))
    with pytest.raises(InputError) as error:
        read_expected(path, "test")
    assert message in str(error.value)
    with pytest.raises(InputError, match="expects nothing of the matrix other"):
        read_expected(path, "other")


def test_a_glob_that_matches_nothing_is_bad_input(bench):
    assert "xyz matches no cell" in one_line_error(
        bench.run(*expected(bench, entry(cell="xyz")), verb="gate")
    )


def test_what_is_expected_of_the_smoke_matrix_is_about_its_cells():
    matrix = read_matrix(ROOT / "benchmark" / "matrices" / "smoke.yaml")
    entries = read_expected(ROOT / "benchmark" / "expected.yaml", "smoke")
    for cell in matrix.cells:
        assert any(matches(cell, found.cell) for found in entries)
