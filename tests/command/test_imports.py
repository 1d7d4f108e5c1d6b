"""Modules of the user's own are known by the content of their files, without running them."""

import sys
from pathlib import Path

import pytest

from hicl_d2.command.imports import content_of


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "strange_package"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('was run')\n")
    (folder / "inner/__init__.py").write_text("")
    (folder / "inner/things.py").write_text("x = 1\n")
    (tmp_path / "strange_module.py").write_text("y = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_the_content_changes_with_any_file_of_the_package(package: Path) -> None:
    before = content_of(["strange_package.inner.things"])
    assert before == content_of(["strange_package.inner.things"])
    assert "strange_package" not in sys.modules
    (package / "other.py").write_text("z = 1\n")
    assert content_of(["strange_package.inner.things"]) != before


def test_the_content_of_a_single_module_is_that_of_its_file(package: Path) -> None:
    before = content_of(["strange_module"])
    (package / "inner/things.py").write_text("x = 2\n")
    assert content_of(["strange_module"]) == before
    (package.parent / "strange_module.py").write_text("y = 2\n")
    assert content_of(["strange_module"]) != before
