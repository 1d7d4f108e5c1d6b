"""Every official format goes through prepare, audit, training, evaluation and submission."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hicl_d2.d2 import USES_DETECTRON2
from tests.data.test_prepare import DATA_SETS
from tests.support import tiny

LABELS = {
    "cityscapes": [7, 8, 11, 12, 13, *range(19, 29), 17, 31, 32, 33],
    "ade20k": range(1, 151),
    "coco_stuff_10k": range(1, 183),
    "coco_stuff_164k": range(182),
}


@pytest.mark.slow
@pytest.mark.skipif(USES_DETECTRON2, reason="the tiny model's command line is that of the built-in runtime")
@pytest.mark.parametrize("case", DATA_SETS)
def test_a_download_becomes_a_trained_and_scored_model(tmp_path: Path, case: str) -> None:
    name, write, (names,) = DATA_SETS[case]
    stem, splits = names.rstrip("}").split("{")
    train, test = (f"{stem}{split}" for split in splits.split(","))
    root = tmp_path / "data"
    intended = write(root)
    classes = {"cityscapes": 19, "ade20k": 150}.get(name, 171)
    config = tmp_path / "config.yaml"
    config.write_text(
        tiny.CONFIG.replace("NUM_CLASSES: 3", f"NUM_CLASSES: {classes}").replace(
            "TRAIN: [tiny_train], TEST: [tiny_val]", f"TRAIN: [{train}], TEST: [{test}]"
        )
        + f"OUTPUT_DIR: {tmp_path / 'run'}\n"
    )
    project = Path(__file__).parents[2]

    def call(*command: str) -> str:
        environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            env=environment,
            cwd=project,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("-m", "hicl_d2.data.prepare", name, "--root", str(root), "--partial")
    audit = call(
        "projects/HiCL/check_dataset.py",
        "--output",
        str(tmp_path / "audit"),
        "--dataset",
        train,
        "--dataset",
        test,
    )
    assert "no faults" in audit
    options = ["TEST.SUBMISSION", "True", "TEST.BOUNDARY_DISTANCE", "0.02"]
    if name == "cityscapes" and "polygons" not in case:
        options += ["TEST.CITYSCAPES_SCORER", "True"]
    call("-m", "tests.support.tiny", "--config-file", str(config), *options)
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["last"]
    assert 0 <= metrics["sem_seg/mIoU"] <= 100
    assert "sem_seg/mBoundaryF" in metrics
    if "TEST.CITYSCAPES_SCORER" in options:
        per_class = {key: value for key, value in metrics.items() if key.startswith("official/IoU-")}
        assert all(
            metrics[key.replace("official", "sem_seg")] == pytest.approx(value, abs=1e-6)
            for key, value in per_class.items()
            if metrics[key.replace("official", "sem_seg")] is not None
        )
    written = sorted((tmp_path / "run" / "inference" / "submission").glob("*.png"))
    assert len(written) == len(intended) // 2
    for path in written:
        with Image.open(path) as image:
            assert set(np.unique(np.array(image)).tolist()) <= set(LABELS[name])
