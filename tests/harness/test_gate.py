"""The gate: results against what is expected of them."""

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
    ("changes", "hint"),
    [
        ({"metric": "sem_seg/mIuO"}, "no finished cell has sem_seg/mIuO at last; did you mean sem_seg/mIoU?"),
        ({"metric": "x"}, "no finished cell has x at last; known: parameters/branch, "),
        ({"at": "lst"}, "no finished cell has figures at lst; did you mean last?"),
        ({"at": "end of it"}, "no finished cell has figures at end of it; known: best, last"),
    ],
)
def test_a_slip_in_metric_or_time_is_told_once_with_what_there_is(bench, changes, hint):
    bench.run("--only", "*ours*")
    done = bench.run(*expected(bench, entry(**changes), entry(**changes)), verb="gate")
    assert done.returncode == 1
    assert done.stdout.count("MISSING") == 4
    assert done.stdout.splitlines()[-1].startswith(hint)
    assert done.stdout.count("no finished cell") == 1


def test_before_there_are_results_no_slip_is_suspected(bench):
    done = bench.run(*expected(bench, entry(metric="sem_seg/mIuO")), verb="gate")
    assert done.returncode == 1
    assert "no finished cell" not in done.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"celll": 1}, "entry 1: unknown key celll; did you mean cell?"),
        ({"value": "x"}, "entry 1: value must be a number, not 'x'"),
        ({"value": float("nan")}, "entry 1: value must be a number, not nan"),
        ({"tolerance": float("inf")}, "entry 1: tolerance must be a number, not inf"),
        ({"value": 10**400}, "entry 1: value must be a number, not 1000"),
        ({"tolerance": -1}, "entry 1: tolerance must not be negative"),
        ({"cell": 5}, "expected.yaml: test: entry 1: cell must be text, not 5"),
        ({"cell": None}, "expected.yaml: test: entry 1: cell must be text, not None"),
        ({"metric": ["a"]}, "expected.yaml: test: entry 1: metric must be text, not ['a']"),
        ({"at": ["a"]}, "expected.yaml: test: entry 1: at must be text, not ['a']"),
    ],
)
def test_nonsense_in_the_file_is_one_line(bench, changes, message):
    path = bench.write("expected.yaml", yaml.safe_dump({"test": [entry(**changes)]}))
    with pytest.raises(InputError) as error:
        read_expected(path, "test")
    assert message in str(error.value)
    with pytest.raises(InputError, match="expects nothing of the matrix other"):
        read_expected(path, "other")


def test_a_matrix_whose_name_yaml_reads_as_a_number_is_found(bench):
    path = bench.write("expected.yaml", f"0100: [{entry()}]\n")
    assert len(read_expected(path, "0100")) == 1


def test_a_glob_that_matches_nothing_is_bad_input(bench):
    assert "xyz matches no cell" in one_line_error(
        bench.run(*expected(bench, entry(cell="xyz")), verb="gate")
    )


def test_what_is_expected_of_the_smoke_matrix_is_about_its_cells():
    matrix = read_matrix(ROOT / "benchmark" / "matrices" / "smoke.yaml")
    entries = read_expected(ROOT / "benchmark" / "expected.yaml", "smoke")
    for cell in matrix.cells:
        assert any(matches(cell, found.cell) for found in entries)
