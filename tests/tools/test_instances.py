"""Detectron2's models of instances train, are scored and are refused through train_net.py, with and without the branch."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hicl_d2.d2 import USES_DETECTRON2
from tests.support.fixtures import Command

door_to_detectron2 = pytest.mark.skipif(
    not USES_DETECTRON2, reason="the door does not lead to Detectron2 here"
)
SHAPES = {"boxes": (8, 8, 40, 30), "more": (20, 26, 30, 24)}
# A module for IMPORTS, as a user of Detectron2 writes it.
MODULE = """
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

for name in ("{name}_train", "{name}_val"):
    def load(name=name):
        records = load_coco_json("{folder}/instances.json", "{folder}/images", name)
        for record in records:
            if {with_labels}:
                record["sem_seg_file_name"] = record["file_name"].replace("images", "labels")
        return records
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file="{folder}/instances.json", image_root="{folder}/images", evaluator_type="{kind}",
        stuff_classes=["things", "ground", "sky"], ignore_label=255, thing_classes=["box", "ball"],
    )
"""
CONFIG = """
IMPORTS: [{module}]
MODEL:
  META_ARCHITECTURE: {architecture}
  DEVICE: cpu
  MASK_ON: True
  BACKBONE: {{NAME: build_resnet_fpn_backbone, FREEZE_AT: 0}}
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: BN, OUT_FEATURES: [res2, res3, res4, res5]}}
  FPN: {{IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 32}}
  ANCHOR_GENERATOR: {{SIZES: [[16], [32], [64], [128], [256]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}}
  RPN: {{IN_FEATURES: [p2, p3, p4, p5, p6], PRE_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TRAIN: 20, POST_NMS_TOPK_TEST: 20}}
  ROI_HEADS: {{NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 2, BATCH_SIZE_PER_IMAGE: 16}}
  ROI_BOX_HEAD: {{NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 32, POOLER_RESOLUTION: 3}}
  ROI_MASK_HEAD: {{NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16, POOLER_RESOLUTION: 4}}
  SEM_SEG_HEAD: {{NAME: SemSegFPNHead, NUM_CLASSES: 3, CONVS_DIM: 32}}
  HICL: {{BASE: {base}, FEATURE: {feature}, FEATURE_SIDE: {side}, LOGITS: "{logits}", WARMUP_ITERS: 0, WINDOWS: [1, 2]}}
DATASETS: {{TRAIN: [{name}_train], TEST: [{name}_val]}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, MAX_SIZE_TRAIN: 128, MAX_SIZE_TEST: 128}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{MAX_ITER: 2, IMS_PER_BATCH: 2, BASE_LR: 0.001, WARMUP_ITERS: 0, STEPS: [1]}}
SEED: 1
"""
PLACES = {
    "PanopticFPN": ("sem_seg_head.predictor", "input", "sem_seg_head.predictor"),
    "GeneralizedRCNN": ("backbone.fpn_output2", "output", ""),
}


def make_data(folder: Path) -> None:
    """Write four images with a box and a ball each as COCO, and label maps in which things are class 0."""
    images, annotations = [], []
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for index in range(4):
        pixels = np.full((64, 80, 3), 40 * index, np.uint8)
        labels = np.full((64, 80), 1, np.uint8)
        labels[:16] = 2
        for number, (x, y, width, height) in enumerate(SHAPES.values()):
            pixels[y : y + height, x : x + width] = (200, 90 * number, 30)
            labels[y : y + height, x : x + width] = 0
            outline = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": number + 1,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [outline],
                }
            )
        Image.fromarray(pixels).save(folder / f"images/{index}.png")
        Image.fromarray(labels).save(folder / f"labels/{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": 64, "width": 80})
    categories = [{"id": 1, "name": "box"}, {"id": 2, "name": "ball"}]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


@pytest.fixture
def write_config(tmp_path, monkeypatch, request):
    make_data(tmp_path / "coco")
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(base, with_branch, with_labels=True, kind="coco"):
        name = f"instances_{abs(hash(request.node.name))}"
        (tmp_path / f"{name}.py").write_text(
            MODULE.format(name=name, folder=tmp_path / "coco", with_labels=with_labels, kind=kind)
        )
        feature, side, logits = PLACES[base]
        path = tmp_path / "config.yaml"
        path.write_text(
            CONFIG.format(
                module=name,
                name=name,
                architecture="HiCL" if with_branch else base,
                base=base,
                feature=feature,
                side=side,
                logits=logits,
            )
        )
        return path

    return write


@door_to_detectron2
@pytest.mark.parametrize("base", PLACES)
@pytest.mark.parametrize("with_branch", [False, True])
def test_it_trains_with_detectron2s_mapper_and_is_scored_by_its_evaluators(
    base: str,
    with_branch: bool,
    write_config,
    command: Command,
    tmp_path: Path,
) -> None:
    kind = "coco_panoptic_seg" if base == "PanopticFPN" else "coco"
    ended = command(config_file=write_config(base, with_branch, kind=kind))
    assert ended.code == 0, ended.err
    metrics = json.loads((tmp_path / "run/result.json").read_text())["metrics"]["last"]
    assert {"bbox/AP", "segm/AP"} <= set(metrics)
    assert ("sem_seg/mIoU" in metrics) is (base == "PanopticFPN")
    logged = json.loads((tmp_path / "run/metrics.json").read_text().splitlines()[0])
    assert {"loss_mask", "loss_box_reg", "loss_rpn_cls"} <= set(logged)
    assert ("loss_hicl" in logged) is with_branch
    assert "bbox/AP" in ended.out


@door_to_detectron2
@pytest.mark.parametrize(
    ("base", "with_branch", "message"),
    [
        ("PanopticFPN", False, "for 4 of 4 images, and PanopticFPN trains with them; the first is"),
        ("GeneralizedRCNN", True, "for 4 of 4 images, and Hi-CL trains with them; the first is"),
    ],
)
def test_data_without_label_maps_are_refused_where_they_are_read(
    base: str,
    with_branch: bool,
    message: str,
    write_config,
    command: Command,
) -> None:
    assert message in command(config_file=write_config(base, with_branch, with_labels=False)).line


@door_to_detectron2
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("MODEL.ROI_HEADS.NUM_CLASSES", "5"),
            "has 2 classes of things, but MODEL.ROI_HEADS.NUM_CLASSES is 5",
        ),
        (
            ("DATASETS.TRAIN", "['tiny_train']"),
            "has no instances (annotations), which GeneralizedRCNN trains with",
        ),
    ],
)
def test_data_that_do_not_fit_are_one_line(overrides, message, write_config, command: Command) -> None:
    path = write_config("GeneralizedRCNN", False)
    assert message in command(*overrides, config_file=path).line


@door_to_detectron2
def test_a_data_set_without_an_evaluator_of_instances_is_one_line(write_config, command: Command) -> None:
    line = command(config_file=write_config("GeneralizedRCNN", False, kind="sem_seg")).line
    assert "evaluator_type 'sem_seg'" in line
    assert "instances are scored for: coco" in line


@pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2 has the models")
@pytest.mark.parametrize("base", PLACES)
def test_without_detectron2_one_line_says_so_before_anything_starts(
    base: str,
    command: Command,
    tmp_path: Path,
) -> None:
    line = command("MODEL.META_ARCHITECTURE", base).line
    assert f"'{base}' is not registered" in line
    assert "Detectron2 has others" in line
    assert not (tmp_path / "run").exists()
