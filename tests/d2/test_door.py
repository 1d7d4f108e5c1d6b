"""The one door: one choice of runtime, the same names on both sides, and nothing that goes around it."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from hicl_d2 import d2

ROOT = Path(__file__).parents[2]
MODULES = sorted(file.stem for file in (ROOT / "hicl_d2" / "d2").glob("*.py") if file.stem != "__init__")


def _imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in (ROOT / folder).rglob("*.py")]


def test_only_the_door_imports_detectron2() -> None:
    for file in _sources("hicl_d2", "projects", "benchmark"):
        if file.parent != ROOT / "hicl_d2" / "d2":
            roots = {name.split(".")[0] for name in _imports(ast.parse(file.read_text()))}
            assert "detectron2" not in roots, file


def test_only_the_door_imports_the_built_in_runtime() -> None:
    for file in _sources("hicl_d2", "projects", "benchmark"):
        if not file.is_relative_to(ROOT / "hicl_d2" / "lite") and file.parent != ROOT / "hicl_d2" / "d2":
            names = _imports(ast.parse(file.read_text()))
            assert not any(name.startswith("hicl_d2.lite") for name in names), file


def test_the_built_in_runtime_needs_nothing_else_of_the_project() -> None:
    for file in _sources("hicl_d2/lite"):
        own = {name for name in _imports(ast.parse(file.read_text())) if name.startswith("hicl_d2")}
        assert {name for name in own if not name.startswith("hicl_d2.lite")} <= {
            "hicl_d2.channels_last",
            "hicl_d2.command.address",
            "hicl_d2.command.errors",
            "hicl_d2.hooks",
            "hicl_d2.process_groups",
            "hicl_d2.weights",
        }, file


@pytest.mark.parametrize("name", MODULES)
def test_both_sides_of_the_door_give_the_same_names(name: str) -> None:
    tree = ast.parse((ROOT / "hicl_d2" / "d2" / f"{name}.py").read_text())
    (choice,) = [node for node in tree.body if isinstance(node, ast.If)]
    sides = [
        {
            alias.asname or alias.name
            for node in side
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for side in (choice.body, choice.orelse)
    ]
    (exported,) = [
        set(ast.literal_eval(node.value))
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    ]
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert sides[0] == sides[1] == exported - defined


def _choose(tmp_path: Path, runtime: str | None, package: str | None) -> subprocess.CompletedProcess[str]:
    """Import the door in a fresh interpreter, with a Detectron2 whose source is ``package`` (None: none)."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("HICL_RUNTIME", "PYTHONPATH")
    }
    environment["PYTHONPATH"] = str(tmp_path)
    if runtime is not None:
        environment["HICL_RUNTIME"] = runtime
    if package is not None:
        (tmp_path / "detectron2").mkdir()
        (tmp_path / "detectron2" / "__init__.py").write_text(package)
        (tmp_path / "detectron2" / "modeling.py").write_text("")
    code = "from hicl_d2.d2 import RUNTIME, USES_DETECTRON2; print(RUNTIME, USES_DETECTRON2)"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


def test_an_installed_detectron2_is_used(tmp_path: Path) -> None:
    name, version, *origin, used = _choose(tmp_path, None, "__version__ = '0.6'").stdout.split()
    assert (name, version, used) == ("detectron2", "0.6", "True")
    if (
        importlib.util.find_spec("detectron2") is None
    ):  # else the record of the one that is installed is found
        assert origin == ["(release)"]


def test_lite_can_be_asked_for_beside_it(tmp_path: Path) -> None:
    assert _choose(tmp_path, "lite", "__version__ = '0.6'").stdout.split() == ["lite", "False"]


def test_a_broken_detectron2_is_an_error_that_says_so(tmp_path: Path) -> None:
    shown = _choose(tmp_path, None, "raise OSError('libcudart.so is missing')").stderr
    assert "Detectron2 is installed but cannot be imported (OSError: libcudart.so is missing)" in shown
    assert "HICL_RUNTIME=lite" in shown


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    assert "HICL_RUNTIME is 'light'; it must be lite or detectron2" in _choose(tmp_path, "light", None).stderr


def test_a_detectron2_that_is_not_there_cannot_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HICL_RUNTIME", "detectron2")
    monkeypatch.setattr(d2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"HICL_RUNTIME=detectron2, but Detectron2 is not installed; see https"
    ):
        d2._choose()


# --------------------------------------------------------------------------------------------------
# The commit


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Give a git repository with one commit that tracks package/__init__.py."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "package/__init__.py")
    _git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def _record(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    distribution = SimpleNamespace(read_text=lambda name: text if name == "direct_url.json" else None)
    monkeypatch.setattr(metadata, "distribution", lambda name: distribution)


def test_a_checkout_tells_its_own_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _record(monkeypatch, None)
    head = _git(repository, "rev-parse", "--short=7", "HEAD")
    assert d2._commit(str(repository / "package" / "__init__.py")) == head


def test_a_package_inside_another_repository_does_not_tell_that_one_s(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _record(monkeypatch, None)
    installed = repository / ".venv" / "detectron2"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert d2._commit(str(installed / "__init__.py")) == "release"


def test_a_package_that_pip_built_from_a_repository_tells_the_recorded_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = {"url": "https://host/detectron2", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}
    _record(monkeypatch, json.dumps(recorded))
    assert d2._commit(str(tmp_path / "__init__.py")) == "0123456"


@pytest.mark.parametrize("change", ["", "the checkout", "the copy", "a missing module", "no checkout"])
def test_a_copy_that_pip_installed_from_a_checkout_tells_its_commit_while_both_agree(
    change: str, repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path_factory.mktemp("site packages")
    shutil.copytree(repository / "package", site / "package")
    (site / "other.py").write_text("")
    _record(monkeypatch, json.dumps({"url": repository.as_uri(), "dir_info": {}}))
    head = _git(repository, "rev-parse", "--short=7", "HEAD")
    index = (repository / ".git/index").read_bytes()
    if change == "the checkout":
        (repository / "package/__init__.py").write_text("new = 1")
        _git(repository, "commit", "-q", "-a", "-m", "second")
    elif change == "the copy":
        (site / "package/__init__.py").write_text("new = 1")
    elif change == "a missing module":
        (site / "package/__init__.py").unlink()
    elif change == "no checkout":
        shutil.rmtree(repository / ".git")
    expected = "local copy" if change else head
    assert d2._commit(str(site / "package" / "__init__.py")) == expected
    if not change:
        assert (repository / ".git/index").read_bytes() == index


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{}",
        "not json",
        "[]",
        '{"url": "https://host/a.whl", "archive_info": {}}',
        '{"dir_info": {"editable": true}}',
    ],
)
def test_without_a_record_it_is_a_release(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _record(monkeypatch, text)
    assert d2._commit(str(tmp_path / "__init__.py")) == "release"


def test_without_git_it_is_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _record(monkeypatch, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert d2._commit(str(ROOT / "hicl_d2" / "__init__.py")) == "release"
