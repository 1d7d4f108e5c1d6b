"""The package as a stranger gets it: built from the source distribution, installed into a fresh environment, used without
the checkout.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from hicl_d2.command.downloads import DOWNLOADS

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("hicl_d2", "configs", "benchmark", "projects", "examples")
BUILD = """
import os, sys, tarfile
from setuptools import build_meta
output = sys.argv[1]  # which setuptools changes
name = build_meta.build_sdist(output)
with tarfile.open(os.path.join(output, name)) as archive:
    archive.extractall(output, filter="data")
os.chdir(os.path.join(output, name.removesuffix(".tar.gz")))
build_meta.build_wheel(output)
"""
PARTS = "parts/deeplab_v3_plus_R_18.yaml"
FEW = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "TEST.PICTURES", "1"]

pytestmark = pytest.mark.slow


class Installed:
    """An environment with the wheel in it, and with or without the packages of the environment of the tests."""

    def __init__(self, folder: Path, wheel: Path, *, with_packages: bool) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        self.site = next(folder.glob("lib/python*/site-packages"))
        install = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "-q",
            "--no-deps",
            "--no-index",
        ]
        subprocess.run([*install, "--disable-pip-version-check", str(wheel)], check=True, env=_environment())
        if with_packages:  # after the installation, so that it sees no other hicl-d2
            places = [place for place in sys.path if place.endswith(("site-packages", "dist-packages"))]
            (self.site / "packages.pth").write_text("\n".join(places) + "\n")

    def hicl(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [str(self.python.parent / "hicl"), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=cwd, env=_environment()
        )

    def files(self) -> set[Path]:
        return {path for path in (self.site / "hicl_d2").rglob("*") if "__pycache__" not in path.parts}


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    for name in COPIED:  # not what an earlier build left in the checkout, nor data and outputs
        shutil.copytree(
            ROOT / name, folder / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder / "checkout")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=folder / "checkout",
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def whole(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("whole"), wheel, with_packages=True)


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("bare"), wheel, with_packages=False)


def test_it_carries_what_the_checkout_has(whole: Installed) -> None:
    package = whole.site / "hicl_d2"
    for pattern in (
        "configs/**/*.yaml",
        "benchmark/matrices/*.yaml",
        "benchmark/*.csv",
        "projects/HiCL/*.py",
    ):
        there = sorted(path.relative_to(ROOT) for path in ROOT.glob(pattern))
        assert there
        assert sorted(path.relative_to(package) for path in package.glob(pattern)) == there
        for path in there:
            assert (package / path).read_bytes() == (ROOT / path).read_bytes()
    modules = {path.relative_to(ROOT / "hicl_d2") for path in (ROOT / "hicl_d2").rglob("*.py")}
    assert {path.relative_to(package) for path in package.rglob("*.py")} >= modules
    assert (package / "py.typed").is_file()


def test_the_smallest_config_trains_and_its_model_is_used(whole: Installed, tmp_path: Path) -> None:
    before = whole.files()
    run = tmp_path / "run"
    done = whole.hicl("train", "--config-file", PARTS, *FEW, "OUTPUT_DIR", str(run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "result.json").read_text())["iterations"] == 2
    weights = ["--weights", str(run / "model_final.pth")]
    evaluated = whole.hicl(
        "evaluate",
        "--config-file",
        PARTS,
        *weights,
        "OUTPUT_DIR",
        "again",
        "TEST.PICTURES",
        "0",
        cwd=tmp_path,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    last = json.loads((run / "result.json").read_text())["metrics"]["last"]
    assert again["metrics"]["sem_seg/mIoU"] == last["sem_seg/mIoU"]
    picture = next((run / "pictures").rglob("*.png"))
    predicted = whole.hicl(
        "predict", "--config-file", PARTS, *weights, "--input", str(picture), "--output", "seen", cwd=tmp_path
    )
    assert predicted.returncode == 0, predicted.stderr
    assert (tmp_path / "seen" / "legend.png").is_file()
    assert whole.files() == before


def test_a_matrix_is_planned_and_its_cells_are_started(whole: Installed, tmp_path: Path) -> None:
    planned = whole.hicl("matrix", "plan", "--matrix", "smoke", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "2 cells: 2 to run" in planned.stdout
    paper = whole.hicl("matrix", "plan", cwd=tmp_path)
    assert "no config" not in paper.stdout
    own = {"name": "own", "config": PARTS, "methods": ["baseline"], "seeds": [1]}
    own["overrides"] = {"SOLVER.MAX_ITER": 1, "SOLVER.IMS_PER_BATCH": 2, "TEST.PICTURES": 0}
    (tmp_path / "own.yaml").write_text(json.dumps(own))  # JSON is YAML
    run = whole.hicl("matrix", "run", "--matrix", "own.yaml", "--gpus", "", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (result,) = (tmp_path / "output/own/cells").glob("*/result.json")
    assert json.loads(result.read_text())["iterations"] == 1


def test_a_copied_config_and_a_matrix_beside_it_are_found(whole: Installed, tmp_path: Path) -> None:
    copied = whole.hicl("configs", PARTS, "--output", "below/mine.yaml", cwd=tmp_path)
    assert copied.returncode == 0, copied.stderr
    printed = whole.hicl("train", "--config-file", "below/mine.yaml", "--print-config", cwd=tmp_path)
    theirs = whole.hicl("train", "--config-file", PARTS, "--print-config", cwd=tmp_path)
    assert printed.stdout == theirs.stdout != ""
    matrix = "name: own\nmethods: {baseline: {config: mine.yaml}}\nseeds: [1, 2]\n"
    (tmp_path / "below" / "matrix.yaml").write_text(matrix)
    copied = whole.hicl("configs", "matrices/camvid_cpu_further", "--output", "further.yaml", cwd=tmp_path)
    assert copied.returncode == 0, copied.stderr
    further = whole.hicl("matrix", "plan", "--matrix", "further.yaml", cwd=tmp_path)
    assert "24 cells: 24 to run" in further.stdout, further.stderr
    planned = whole.hicl("matrix", "plan", "--matrix", "below/matrix.yaml", cwd=tmp_path)
    assert "2 cells: 2 to run" in planned.stdout, planned.stderr


def test_without_the_extra_a_command_names_it_in_one_line(bare: Installed, tmp_path: Path) -> None:
    for command in ("train", "evaluate", "predict --input x --output y", "inspect --output y"):
        words = [*command.split(), "--config-file", PARTS]
        done = bare.hicl(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"hicl {words[0]}: ")
        assert "pip install 'hicl-d2[train]'" in line
    for words in (["configs"], ["configs", PARTS], ["--help"], ["train", "--help"]):
        assert bare.hicl(*words, cwd=tmp_path).returncode == 0
    for folder in DOWNLOADS["ade20k"].folders:  # a wrong root is answered first
        (tmp_path / "datasets" / folder).mkdir(parents=True)
    for words in (["matrix", "plan"], ["prepare", "ade20k"], ["check", "--dataset", "parts_train"]):
        done = bare.hicl(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert "pip install 'hicl-d2[train]'" in done.stderr
