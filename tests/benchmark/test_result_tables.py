"""The tables of README and notes come from result files."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmark"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARK))
    spec = importlib.util.spec_from_file_location("result_tables", BENCHMARK / "result_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "result_tables", module)
    spec.loader.exec_module(module)
    return module


def test_a_matrix_s_csv_becomes_its_comparison(tables: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "smoke"
    folder.mkdir()
    header = "matrix,cell,dataset,model,method,ablation,seed,metric,at,value,iteration,status"
    lines = [
        f"smoke,{method},parts,deeplab_v3_plus_R_18,{method},,1,sem_seg/mIoU,last,{value},300,finished"
        for method, value in (("baseline", 50.25), ("hicl", 61.5))
    ]
    (folder / "results.csv").write_text("\n".join([header, *lines]) + "\n")
    head, _, *rows = tables.render(folder).splitlines()
    assert "mIoU" in head
    assert [row.split("|")[1].strip() for row in rows] == ["baseline", "hicl"]
    assert "50.2" in rows[0]
    assert "61.5" in rows[1]
    assert "+11.2" in rows[1]


def test_a_page_may_ask_for_the_classes_of_a_matrix(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "smoke"
    folder.mkdir()
    header = "matrix,cell,dataset,model,method,ablation,seed,metric,at,value,iteration,status"
    lines = [
        f"smoke,{method},parts,deeplab_v3_plus_R_18,{method},,1,{metric},last,{value},300,finished"
        for metric in ("sem_seg/mIoU", "sem_seg/IoU-boat")
        for method, value in (("baseline", 50.25), ("hicl", 61.5))
    ]
    (folder / "results.csv").write_text("\n".join([header, *lines]) + "\n")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    page = "a\n<!-- classes: smoke -->\nold\n<!-- end: smoke -->\n<!-- table: smoke -->\n<!-- end: smoke -->\nb\n"
    classes, comparison = tables.update(page).split("<!-- table: smoke -->")
    assert [cell.strip() for cell in classes.splitlines()[4].split("|")[1:-1]] == ["boat", "50.2", "+11.2"]
    assert "old" not in classes
    assert "mIoU" in comparison


def test_the_rows_of_step_speed_become_one_table(tables: ModuleType, tmp_path: Path) -> None:
    training, evaluation = tmp_path / "training_cpu.csv", tmp_path / "evaluation_cpu.csv"
    training.write_text(
        'config,batch,trainer,images_per_second,to_peer\nr18,8 x 2 x 3,"float32, fast",7.125,1.5\n'
    )
    evaluation.write_text(
        "config,images,kind,evaluation,images_per_second,to_peer\nr18,16,windows,--eval-only,3.5,\n"
    )
    assert tables.render(tmp_path).splitlines()[2:] == [
        "| r18 | 8 x 2 x 3 | float32, fast | 7.12 | 1.50 |",
        "| r18 | 16 images, windows | --eval-only | 3.50 |  |",
    ]


def test_the_methods_of_contrast_speed_become_one_row_each(tables: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "contrasts_cpu.csv").write_text(
        "table,case,row,ms,to_hicl,gflop,peak_to_map\n"
        'methods,"2 x 8, 3 classes",floor,4.25,0.5,12.26,\n'
        'methods,"2 x 8, 3 classes",hicl,1208.5,1.0,12.5,1.75\n'
        'methods,"1 x 9, 3 classes",floor,5,0.25,99,\n'
        'methods,"1 x 9, 3 classes",hicl,20,1.0,99,99\n'
        "cells,64 cells,hicl,1,,,\n"
    )
    head, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in tables.render(tmp_path).splitlines()
    )
    cases = ["2 x 8, 3 classes: ms (to hicl)", "1 x 9, 3 classes: ms (to hicl)"]
    assert head == ["contrast", "GFLOP", *cases, "memory of the map"]
    assert rows == [
        ["floor", "12.3", "4 (0.50)", "5 (0.25)", ""],
        ["hicl", "12.5", "1,208 (1.00)", "20 (1.00)", "1.8"],
    ]


def test_the_rows_of_a_fault_report_become_its_table(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.robustness import fault_report

    results = tmp_path / "results.xml"
    results.write_text(
        "<testsuites><testsuite>"
        "<testcase classname='f' name='a'><properties><property name='broken' value='disk'/>"
        "<property name='times' value='1200'/><property name='seen' value='fine'/></properties></testcase>"
        "<testcase classname='f' name='b'><failure message='no'>no</failure></testcase>"
        "<testcase classname='f' name='c'><skipped message='needs root'/></testcase>"
        "<testcase classname='f' name='d'/>"
        "</testsuite></testsuites>"
    )
    monkeypatch.setattr(fault_report, "RESULTS", tmp_path / "faults" / "faults.json")
    fault_report.save({"f.b": {"broken": "b", "times": 3, "seen": "before"}}, is_all=True)
    fault_report.save(dict(fault_report.rows(results)), is_all=False)
    assert tables.render(tmp_path / "faults").splitlines()[2:] == [
        "| b |  | **not survived** |",
        "| disk | 1,200 | fine |",
        "| c | 0 | not tried: needs root |",
    ]


@pytest.mark.parametrize("page", ["README.md", "benchmark/results/smoke/NOTES.md"])
def test_a_table_that_differs_from_its_file_is_named_and_then_written(
    tables: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    page: str,
) -> None:
    results = tmp_path / "benchmark" / "results"
    (results / "smoke").mkdir(parents=True)
    (results / "smoke" / "table.md").write_text("| a |\n|---|\n| 1 |\n")
    (tmp_path / "README.md").write_text("# A project\n")
    (tmp_path / page).write_text("before\n<!-- table: smoke -->\nold\n<!-- end: smoke -->\nafter\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", results)
    monkeypatch.setattr(sys, "argv", ["result_tables.py", "--check"])
    assert tables.main() == 1
    assert capsys.readouterr().err == f"{page}: a table is out of date; run: make tables\n"
    monkeypatch.setattr(sys, "argv", ["result_tables.py"])
    assert tables.main() == 0
    assert (tmp_path / page).read_text() == (
        "before\n<!-- table: smoke -->\n| a |\n|---|\n| 1 |\n<!-- end: smoke -->\nafter\n"
    )
    monkeypatch.setattr(sys, "argv", ["result_tables.py", "--check"])
    assert tables.main() == 0
