"""Things of one's own from outside the tree: a contrast, an evaluator and a data set in a package that IMPORTS names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.command.safe_yaml import flatten
from hicl_d2.config import load_config
from hicl_d2.contrast import build
from hicl_d2.evaluation import registry
from tests.support.fixtures import Command

PACKAGE = '''
"""A contrast, an evaluator and a data set."""
from pathlib import Path

import torch
from hicl_d2.contrast import Contrast, register_contrast
from hicl_d2.d2.evaluation import DatasetEvaluator
from hicl_d2.data import register_semantic_dataset
from hicl_d2.evaluation import register_evaluator


@register_contrast("class_means")
class ClassMeans(Contrast):
    """Push the mean embeddings of classes apart."""

    def __init__(self, in_channels, num_classes, *, least_cells=1, margins=(0.5, 1.0), **shared):
        super().__init__(in_channels, num_classes, **shared)
        self.least_cells, self.margins = least_cells, margins

    def contrast(self, features, grid, logits, generator):
        rows = self.embedding(features.permute(0, 2, 3, 1).flatten(0, 2).to(self.compute_dtype))
        classes = grid.planes[0].flatten()
        means = [rows[classes == k].mean(0) for k in range(self.num_classes) if (classes == k).sum() >= self.least_cells]
        loss = sum((1 + a @ b for a in means for b in means if a is not b), rows.sum() * 0)
        return self.margins[0] * loss, {"class_means/count": torch.tensor(float(len(means)))}


@register_evaluator("count_images")
class CountImages(DatasetEvaluator):
    def __init__(self, cfg, dataset_name, output_dir):
        self.count = 0

    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += len(inputs)

    def evaluate(self):
        return {"images": {"count": self.count}}
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The package my_extensions on the Python path, imported by nobody yet."""
    (tmp_path / "my_extensions").mkdir()
    (tmp_path / "my_extensions/__init__.py").write_text("")
    (tmp_path / "my_extensions/things.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(build, "_CLASSES", dict(build._CLASSES))
    monkeypatch.setattr(registry, "_BUILDERS", {})
    for name in [name for name in sys.modules if name.startswith("my_extensions")]:
        monkeypatch.delitem(sys.modules, name)
    return "my_extensions.things"


def test_a_contrast_and_an_evaluator_of_ones_own_train_and_score(
    package: str, command: Command, tmp_path: Path
) -> None:
    done = command(
        "IMPORTS", f"['{package}']",
        "MODEL.META_ARCHITECTURE", "HiCL",
        "MODEL.HICL.CONTRAST", "class_means",
        "MODEL.HICL.LEAST_CELLS", "2",
        "MODEL.HICL.MARGINS", "[0.25, 1.0]",
        "TEST.EVALUATORS", "['count_images']",
    )  # fmt: skip
    assert done.code == 0, done
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["metrics"]["last"]["images/count"] == 3
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert any(entry.get("loss_hicl", 0) > 0 for entry in losses)


@pytest.mark.parametrize(
    ("returned", "scores"),
    [
        ("{'images': {'count': numpy.float32(2.5)}}", {"images/count": 2.5}),
        ("{'images': {'count': torch.tensor(3)}}", {"images/count": 3.0}),
        ("{'images': {'by': {'day': {'count': 4}}}}", {"images/by/day/count": 4.0}),
        ("{'images': {'count': None, 'more': float('nan')}}", {"images/count": None, "images/more": None}),
        ("None", {}),
        ("{'images': 3}", "'int' object has no attribute 'items'"),
        ("[1, 2]", "'list' object has no attribute 'items'"),
        ("{'images': {'count': 'many'}}", "could not convert string to float: 'many'"),
        ("{'images': {'count': numpy.ones(3)}}", ""),
        ("{'images': {'count': torch.ones(3)}}", ""),
    ],
)
def test_what_an_evaluator_returns_is_numbers_or_one_line(
    package: str, command: Command, tmp_path: Path, returned: str, scores: dict[str, float | None] | str
) -> None:
    file = tmp_path / "my_extensions/things.py"
    text = PACKAGE.replace('return {"images": {"count": self.count}}', f"return {returned}")
    file.write_text(text.replace("import torch", "import numpy, torch"))
    words = ("IMPORTS", f"['{package}']", "SOLVER.MAX_ITER", "1", "TEST.EVALUATORS", "['count_images']")
    done = command(*words)
    if isinstance(scores, str):
        said = "TEST.EVALUATORS: evaluate of 'count_images' must return {task: {metric: number}}"
        assert (done.code, "Traceback" in done.err) == (2, False), done
        assert f"{said} ({scores}" in done.err.splitlines()[-1]
        assert (tmp_path / "run/model_final.pth").exists()
        return
    assert done.code == 0, done
    last = json.loads((tmp_path / "run/result.json").read_text())["metrics"]["last"]
    assert {name: value for name, value in last.items() if name.startswith("images")} == scores


def test_its_keywords_are_keys_with_its_defaults(package: str, config: Path) -> None:
    cfg = load_config(config, ["IMPORTS", f"['{package}']", "MODEL.HICL.LEAST_CELLS", "3"])
    assert cfg.MODEL.HICL.LEAST_CELLS == 3
    assert cfg.MODEL.HICL.MARGINS == [0.5, 1.0]
    with pytest.raises(InputError, match=r"MODEL\.HICL\.LEAST_CELLS must be a whole number, not 'many'"):
        load_config(config, ["IMPORTS", f"['{package}']", "MODEL.HICL.LEAST_CELLS", "many"])


def test_a_config_file_names_its_imports(package: str, config: Path) -> None:
    base = config.with_name("base.yaml")
    base.write_text(config.read_text() + f"IMPORTS: [{package}]\n")
    config.write_text("_BASE_: base.yaml\nMODEL: {HICL: {LEAST_CELLS: 4}}\n")
    assert load_config(config).MODEL.HICL.LEAST_CELLS == 4


def test_two_processes_know_it(
    package: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).resolve().parents[2]}")
    done = command(
        "--num-gpus", "2",
        "IMPORTS", f"['tests.support.tiny', '{package}']",
        "MODEL.META_ARCHITECTURE", "HiCL",
        "MODEL.HICL.CONTRAST", "class_means",
        "SOLVER.MAX_ITER", "2",
        "TEST.EVALUATORS", "['count_images']",
    )  # fmt: skip
    assert done.code == 0, done
    assert (tmp_path / "run/result.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("IMPORTS", "['my_extensoins.things']"), "there is no module my_extensoins on the Python path"),
        (("IMPORTS", "['my_extensions.thing']"), "there is no module my_extensions.thing on"),
        (("IMPORTS", "['../things.py']"), "is no name of a module"),
        (("IMPORTS", "my_extensions"), "IMPORTS must be a list"),
        (("IMPORTS", "[3]"), "IMPORTS must be a list of str"),
        (("IMPORTS", "['my_extensions.broken']"), "ZeroDivisionError: division by zero (*broken.py:2)"),
        (("TEST.EVALUATORS", "['count_images']", "IMPORTS", "[]"), "TEST.EVALUATORS names 'count_image"),
        (("TEST.EVALUATORS", "['cuont_images']"), "TEST.EVALUATORS names 'cuont_images'"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    package: str, command: Command, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "my_extensions/broken.py").write_text("x = 1\nx / 0\n")
    line = command(*words).line
    head, _, tail = message.partition("*")
    assert head in line
    assert tail in line
    assert not (tmp_path / "run").exists()


def test_the_whole_config_is_printed(command: Command, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    config = root / "configs/parts/deeplab_v3_plus_R_18_hicl.yaml"
    script = root / "projects/HiCL/train_net.py"
    done = subprocess.run(
        [sys.executable, str(script), "--config-file", str(config), "--print-config", "SOLVER.MAX_ITER", "7"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (tmp_path / "whole.yaml").write_text(done.stdout)
    printed, expected = load_config(tmp_path / "whole.yaml"), load_config(config, ["SOLVER.MAX_ITER", "7"])
    assert json.dumps(flatten(printed)) == json.dumps(flatten(expected))
