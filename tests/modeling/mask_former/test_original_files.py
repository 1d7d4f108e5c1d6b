"""Config files as the original Mask2Former's: semantic ones load and pass, others get one line. All of them, where they are at
hand: MASK2FORMER_CONFIGS names the folder."""

import os
from pathlib import Path

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.modeling.check import check_model_config

FILES = sorted(Path(os.environ.get("MASK2FORMER_CONFIGS", "/nowhere")).rglob("*.yaml"))
needs_files = pytest.mark.skipif(not FILES, reason="MASK2FORMER_CONFIGS does not name the original's configs")

SEMANTIC = """
MODEL:
  META_ARCHITECTURE: "MaskFormer"
  BACKBONE: {NAME: "D2SwinTransformer"}
  SWIN: {EMBED_DIM: 96, DEPTHS: [2, 2, 6, 2], NUM_HEADS: [3, 6, 12, 24], DROP_PATH_RATE: 0.3}
  SEM_SEG_HEAD:
    NAME: "MaskFormerHead"
    NUM_CLASSES: 150
    NORM: "GN"
    PIXEL_DECODER_NAME: "MSDeformAttnPixelDecoder"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    TRANSFORMER_ENC_LAYERS: 6
  MASK_FORMER:
    TRANSFORMER_IN_FEATURE: "multi_scale_pixel_decoder"
    DEC_LAYERS: 10
    TEST: {SEMANTIC_ON: True, INSTANCE_ON: False, PANOPTIC_ON: False}
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]"]
  MIN_SIZE_TRAIN_SAMPLING: "choice"
  IMAGE_SIZE: 1024
  MIN_SCALE: 0.5
  MAX_SCALE: 1.5
  AUGMENTATIONS: ["brightness"]
  DATASET_MAPPER_NAME: "mask_former_semantic"
"""


def load(tmp_path, *overrides):
    path = tmp_path / "semantic.yaml"
    path.write_text(SEMANTIC)
    return load_config(path, ["MODEL.DEVICE", "cpu", *overrides])


def test_a_semantic_file_loads_and_passes(tmp_path):
    cfg = load(tmp_path)
    check_model_config(cfg)
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == [int(x * 0.1 * 640) for x in range(5, 21)]
    assert (cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.AUGMENTATIONS) == (1024, 0.5, ["brightness"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("MODEL.META_ARCHITECTURE", "VideoMaskFormer"),
            "'VideoMaskFormer', for instances in videos: .*only",
        ),
        (
            ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True"),
            "PANOPTIC_ON is True; .* semantic segmentation only",
        ),
        (
            ("MODEL.MASK_FORMER.TEST.INSTANCE_ON", "True"),
            "INSTANCE_ON is True; .* semantic segmentation only",
        ),
        (
            ("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "False"),
            "SEMANTIC_ON is False; .* semantic segmentation only",
        ),
        (("INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj"), "DATASET_MAPPER_NAME is 'coco_instance_lsj'"),
    ],
)
def test_other_tasks_get_one_line(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message) as error:
        check_model_config(load(tmp_path, *overrides))
    assert "\n" not in str(error.value)


@needs_files
@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: f"{path.parents[1].name}-{path.parent.name}-{path.stem}"
)
def test_each_semantic_file_of_the_original_passes_and_each_other_gets_one_line(path):
    if "semantic-segmentation" in path.parts or path.name.startswith("Base-"):
        cfg = load_config(path, ["MODEL.DEVICE", "cpu"])
        if not path.name.startswith("Base-"):
            check_model_config(cfg)
        return
    # The panoptic files for COCO give a key twice.
    with pytest.raises(
        InputError, match=r"semantic segmentation only|the key IN_FEATURES is given twice"
    ) as error:
        check_model_config(load_config(path, ["MODEL.DEVICE", "cpu"]))
    assert "\n" not in str(error.value)
