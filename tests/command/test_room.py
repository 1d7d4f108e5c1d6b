"""The room needs no torch and nothing of the project above it; nor does the harness, which lives on it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "benchmark"


def _modules(folder: Path, top: Path) -> list[str]:
    files = (file.relative_to(top).with_suffix("") for file in sorted(folder.rglob("*.py")))
    return [".".join(part for part in file.parts if part != "__init__") for file in files]


def _loaded(code: str, cwd: Path) -> set[str]:
    """Run ``code`` without site-packages' hooks of the tests, and return the modules that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_no_module_loads_torch(tmp_path: Path) -> None:
    room = _modules(ROOT / "hicl_d2" / "command", ROOT)
    harness = _modules(ROOT / "hicl_d2" / "harness", ROOT)
    assert {"hicl_d2.command.files", "hicl_d2.command.console"} <= set(room)
    assert {"hicl_d2.harness.command", "hicl_d2.harness.report.page", "hicl_d2.harness.job"} <= set(harness)
    loaded = _loaded(f"import {', '.join(room + harness)}", tmp_path)
    assert set(room + harness) <= loaded
    assert not {"torch", "detectron2", "torchvision"} & loaded


def test_the_harness_starts_without_what_it_may_not_need(tmp_path: Path) -> None:
    loaded = _loaded("import hicl_d2.harness.command", tmp_path)
    assert not {"torch", "pandas", "numpy", "matplotlib"} & loaded


def test_arguments_are_read_without_yaml_and_numpy(tmp_path: Path) -> None:
    loaded = _loaded("import hicl_d2.tools.arguments", tmp_path)
    assert not {"torch", "yaml", "numpy"} & loaded


def test_nothing_above_is_imported_in_any_function() -> None:
    for file in (ROOT / "hicl_d2" / "command").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith("hicl_d2") or name.startswith("hicl_d2.command"), (file.name, name)
                assert name.split(".")[0] not in ("torch", "detectron2"), (file.name, name)


@pytest.mark.parametrize("module", ["os.replace", "Path.replace", "mkstemp", "NamedTemporaryFile"])
def test_whole_files_are_written_in_one_place(module: str) -> None:
    """No renaming of a file that was just written, but for the function that does it."""
    name = module.rsplit(".", 1)[-1]
    for file in [*(ROOT / "hicl_d2").rglob("*.py"), *BENCHMARK.rglob("*.py")]:
        if file == ROOT / "hicl_d2" / "command" / "files.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
                renames = name != "replace" or (len(node.args) == 1 and not node.keywords)
                assert not renames, f"{file.relative_to(ROOT)}:{node.lineno}"


def test_run_matrix_finds_its_own_package_from_any_folder(tmp_path: Path) -> None:
    """Another one of its name, which came first, would not do: the harness and what it uses are one version."""
    other = tmp_path / "installed" / "hicl_d2"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('another version')")
    matrix = BENCHMARK / "matrices" / "smoke.yaml"
    done = subprocess.run(
        [sys.executable, str(BENCHMARK / "run_matrix.py"), "--matrix", str(matrix)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(other.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert "2 cells: 2 to run" in done.stdout
