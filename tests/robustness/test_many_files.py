"""A hundred thousand files in one folder: as data, and files of others beside a run's and a matrix's own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.robustness import BENCHMARK
from tests.robustness.conftest import Runs
from tests.support.forks import ROOT

Report = Callable[[str, int, str], None]
pytestmark = pytest.mark.slow
MANY = 100_000
# Links to one file, of which file systems allow some ten thousand.
LINKS = 30_000

CUSTOM = """
_BASE_: "tiny.yaml"
DATASETS:
  CUSTOM:
    many_train: {{IMAGES: "{root}/images", LABELS: "{root}/annotations", CLASSES: ["one", "two", "three"]}}
  TRAIN: ["many_train"]
"""


def _link_many(source: Path, folder: Path) -> None:
    """Give ``source`` as many names in ``folder``, with a copy for every LINKS of them."""
    folder.mkdir(parents=True)
    for number in range(MANY):
        path = folder / f"{number:06d}{source.suffix}"
        if number % LINKS == 0:
            path.write_bytes(source.read_bytes())
            source = path
        else:
            os.link(source, path)


@pytest.fixture
def many(tiny_root: Path, tmp_path: Path) -> Path:
    """A data set of a hundred thousand pairs."""
    for kind in ("images", "annotations"):
        _link_many(tiny_root / "tiny" / kind / "train" / "0.png", tmp_path / "many" / kind)
    return tmp_path / "many"


def test_a_data_set_of_so_many_images_is_trained_on_and_checked(
    many: Path, runs: Runs, tmp_path: Path, report: Report
) -> None:
    config = tmp_path / "many.yaml"
    config.write_text(CUSTOM.format(root=many))
    done = runs._replace(config=config).start(tmp_path / "run", **{"DATASETS.TEST": "()"}).wait()
    assert done.code == 0, done.err[-2000:]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["images"] == MANY
    (many / "annotations" / "099999.png").unlink()
    again = runs._replace(config=config).start(tmp_path / "again", **{"DATASETS.TEST": "()"}).wait()
    assert again.code == 2
    assert len(again.err.splitlines()) == 1
    assert "099999" in again.err
    report(
        f"{MANY:,} images in a folder, one label map removed",
        1,
        "trained; one line with the name, exit code 2",
    )


def test_files_of_others_beside_a_run_stay(runs: Runs, tmp_path: Path, report: Report) -> None:
    folder = tmp_path / "run"
    source = tmp_path / "other.tmp"
    source.write_text("of somebody else")
    _link_many(source, folder)
    assert runs.start(folder).wait().code == 0
    assert runs.start(folder, "--resume").wait().code == 0
    assert len(list(folder.glob("[0-9]*.tmp"))) == MANY
    report(f"{MANY:,} files of others in OUTPUT_DIR", 1, "trained, all of them left")


def test_folders_of_others_beside_the_cells_of_a_matrix_stay(tmp_path: Path, report: Report) -> None:
    output, matrix = tmp_path / "output", BENCHMARK / "matrices" / "smoke.yaml"
    (output / "cells").mkdir(parents=True)
    for number in range(MANY):
        (output / "cells" / f"of-others-{number:06d}").mkdir()
    note = {"schema": 1, "matrix": "smoke", "data": {}}
    (output / "matrix.json").write_text(json.dumps(note))
    for verb in (["plan"], ["status"], ["table"], ["clean", "--orphans", "--yes"]):
        words = [
            str(BENCHMARK / "run_matrix.py"),
            verb[0],
            "--matrix",
            str(matrix),
            "--output",
            str(output),
            *verb[1:],
        ]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode in (0, 1), (verb, done.stderr[-2000:])
        assert "Traceback" not in done.stderr
    assert len(list((output / "cells").iterdir())) == MANY
    report(
        f"{MANY:,} folders of others beside the cells of a matrix",
        1,
        "plan, status, table and clean end, all are left",
    )
