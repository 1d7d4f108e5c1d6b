"""What ``hicl export --to detectron2`` writes is, for Detectron2 without this project, the model within rounding."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hicl_d2.modeling.models  # noqa: F401 - registers the models
from hicl_d2.config import load_config
from hicl_d2.d2.modeling import build_model
from tests.conformance.runtimes import needs_detectron2
from tests.tools.test_export import DEEPLAB, PARTS, to_detectron2

SIZES = [(64, 96), (128, 96)]
THEIRS = """
import sys, torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
cfg = get_cfg()
add_deeplab_config(cfg)
cfg.merge_from_file("theirs/config.yaml")
model = build_model(cfg).eval()
DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
with torch.no_grad():
    scores = [model([{"image": image}])[0]["sem_seg"] for image in torch.load("images.pth")]
assert not any(name.startswith("hicl_d2") for name in sys.modules)
torch.save(scores, "scores.pth")
"""


@needs_detectron2
@pytest.mark.parametrize(
    "opts",
    [("INPUT.CROP.SIZE", "(64, 96)"), ("INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", "[0.5, 0.5]")],
    ids=["crops of one size", "crops of any size"],
)
def test_detectron2_predicts_what_the_model_does(opts: tuple[str, ...], tmp_path: Path) -> None:
    to_detectron2(tmp_path, *opts)
    model = build_model(load_config(PARTS, [*DEEPLAB, *opts])).eval()
    model.load_state_dict(torch.load(tmp_path / "weights.pth")["model"])
    images = [torch.rand(3, *size) * 255 for size in SIZES]
    torch.save(images, tmp_path / "images.pth")
    subprocess.run([sys.executable, "-c", THEIRS], cwd=tmp_path, check=True)
    with torch.no_grad():
        expected = [model([{"image": image}])[0]["sem_seg"] for image in images]
    found = torch.load(tmp_path / "scores.pth")
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))
