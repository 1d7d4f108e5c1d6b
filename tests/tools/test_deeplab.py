"""The real models under the trainer: DeepLabV3+ with the branch, from config to result and back from its checkpoint."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hicl_d2.config import load_config
from hicl_d2.engine.trainer import Trainer
from hicl_d2.tools import predict
from tests.support import tiny
from tests.support.fixtures import Command

BASE = Path(__file__).resolve().parents[2] / "configs/Base-DeepLabV3Plus.yaml"

SMALL = """
_BASE_: {base}
MODEL:
  META_ARCHITECTURE: HiCL
  DEVICE: cpu
  BACKBONE: {{NAME: build_dilated_resnet_backbone}}
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: FrozenBN, STEM_OUT_CHANNELS: 64, STEM_TYPE: basic}}
  SEM_SEG_HEAD: {{NUM_CLASSES: 3, ASPP_CHANNELS: 32, CONVS_DIM: 32, PROJECT_CHANNELS: [32], NORM: GN}}
  HICL: {{WARMUP_ITERS: 0, WINDOWS: [1, 2], ANCHORS: 32, COMPONENTS: 32}}
DATASETS: {{TRAIN: [tiny_train], TEST: [tiny_val]}}
INPUT:
  MIN_SIZE_TRAIN: [40]
  MIN_SIZE_TEST: 160
  CROP: {{SIZE: [32, 32]}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{MAX_ITER: 2, IMS_PER_BATCH: 2, BASE_LR: 0.01, WARMUP_ITERS: 0, STEPS: [1]}}
TEST: {{PICTURES: 1}}
SEED: 1
"""


def test_deeplab_with_the_branch_trains_and_its_checkpoint_is_the_plain_models(
    command: Command, tmp_path: Path
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SMALL.format(base=BASE))
    assert command(config_file=config).code == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert set(result["class_iou"]) == set(tiny.CLASSES)
    assert result["parameters"]["model"] > 10 * result["parameters"]["branch"] > 0
    logged = json.loads((tmp_path / "run/metrics.json").read_text().splitlines()[0])
    assert {"loss_sem_seg", "loss_hicl", "total_loss", "lr"} <= set(logged)
    plain = ("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "TEST.PICTURES", "0")
    weights = ("MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth"))
    assert (
        command(
            "--eval-only", *plain, *weights, "OUTPUT_DIR", str(tmp_path / "plain"), config_file=config
        ).code
        == 0
    )
    evaluated = json.loads((tmp_path / "plain/evaluation.json").read_text())
    assert evaluated["class_iou"] == result["class_iou"]


def test_weights_of_another_backbone_are_refused(command: Command, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SMALL.format(base=BASE))
    other = load_config(config, ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256"])
    file = tmp_path / "R50.pth"
    torch.save({"model": Trainer.build_model(other).state_dict()}, file)
    line = command("MODEL.WEIGHTS", str(file), config_file=config).line
    assert "tensors fit" in line
    assert "have another shape" in line
    assert not (tmp_path / "run").exists()


def test_photos_of_any_size_are_evaluated_and_predicted_with_the_pooling_of_the_crop(
    command: Command, tmp_path: Path
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SMALL.format(base=BASE))
    assert command("INPUT.MIN_SIZE_TEST", "136", "SOLVER.MAX_ITER", "1", config_file=config).code == 0
    photos = tmp_path / "photos"
    photos.mkdir()
    sizes = {"wide": (40, 333), "small": (9, 11), "odd": (101, 77)}
    for name, size in sizes.items():
        Image.new("RGB", size[::-1], (90, 120, 60)).save(photos / f"{name}.png")
    arguments = Namespace(
        config_file=str(config),
        weights=str(tmp_path / "run/model_final.pth"),
        opts=[],
        input=[str(photos)],
        output=str(tmp_path / "predicted"),
        strength=0.5,
    )
    assert predict.main(arguments)
    for name, size in sizes.items():
        (file,) = (tmp_path / "predicted/labels").glob(f"{name}*.png")
        with Image.open(file) as labels:
            assert labels.size == size[::-1]


@pytest.mark.parametrize("crop", ["INPUT.CROP.ENABLED False", "INPUT.CROP.SIZE [40,56]"])
def test_training_without_crops_and_with_crops_that_no_stride_divides(
    command: Command, tmp_path: Path, crop: str
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SMALL.format(base=BASE))
    overrides = ("INPUT.MIN_SIZE_TRAIN", "[37]", "INPUT.MIN_SIZE_TEST", "45", "SOLVER.MAX_ITER", "1")
    assert command(*overrides, *crop.split(), config_file=config).code == 0
    assert (tmp_path / "run/result.json").is_file()
