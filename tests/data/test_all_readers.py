"""Mapper, evaluator, audit, sizes before training and pictures see one and the same pair of image and label map."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data.audit import audit_dataset
from hicl_d2.data.datasets.registry import register_semantic
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.data.preflight import check_datasets, unseen_classes
from hicl_d2.data.preflight import test_image_sizes as image_sizes
from hicl_d2.evaluation import SemSegConfusionEvaluator
from hicl_d2.visualization import draw_pictures
from tests.support import encode
from tests.test_reading_kinds import TURN

NAME = "all_readers"
CLASSES = ["a", "b", "c", "d"]
STORED = np.random.default_rng(0).integers(0, 4, (8, 16)).astype(np.uint8)


@pytest.fixture
def cfg(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.INPUT.FORMAT = "RGB"
    return cfg


@pytest.fixture
def record(tmp_path: Path) -> Iterator[dict[str, str]]:
    record = {"file_name": str(tmp_path / "i.png"), "sem_seg_file_name": str(tmp_path / "l.png")}
    register_semantic(NAME, lambda: [dict(record)], classes=CLASSES, colours=[(n, n, n) for n in range(4)])
    yield record
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


class Truth(torch.nn.Module):
    """Know the class of every pixel from its brightness."""

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        classes = inputs[0]["image"][0].long() // 60
        return [{"sem_seg": torch.nn.functional.one_hot(classes, 4).permute(2, 0, 1).float()}]


def save(path: str, array: np.ndarray, tag: int = 1) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(np.ascontiguousarray(array)).save(path, exif=exif)


def check_agree(cfg: CfgNode, record: dict[str, str], shown: np.ndarray, output: Path) -> None:
    check_datasets(cfg)
    assert image_sizes(cfg) == {shown.shape: record["file_name"]}
    assert unseen_classes(cfg) == ""
    mapped = SemanticMapper(cfg, False)(record)
    np.testing.assert_array_equal(mapped["sem_seg"], shown)
    np.testing.assert_array_equal(mapped["image"][0] // 60, shown)
    evaluator = SemSegConfusionEvaluator(NAME)
    evaluator.process([mapped], Truth()([mapped]))
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
    audit = audit_dataset(NAME, windows=(1, 2))
    assert not audit.faults
    assert audit.sizes == {shown.shape: 1}
    draw_pictures(SemanticMapper(cfg, is_train=False), Truth(), NAME, output, 1)
    assert '"i": 100.0' in (output / "pictures/scores.json").read_text()


@pytest.mark.parametrize("tag", range(1, 9))
def test_turned_pairs(cfg: CfgNode, record: dict[str, str], tmp_path: Path, tag: int) -> None:
    shown = TURN[tag](STORED)
    for labels, label_tag in (
        (False, tag),
        (True, 1),
    ):  # turned by its own tag, or drawn on the upright image
        save(record["file_name"], STORED * 60, tag)
        save(record["sem_seg_file_name"], shown if labels else STORED, label_tag)
        check_agree(cfg, record, shown, tmp_path)


@pytest.mark.parametrize("tag", range(5, 9))
def test_pairs_of_which_the_sizes_tell(
    cfg: CfgNode, record: dict[str, str], tmp_path: Path, tag: int
) -> None:
    save(record["file_name"], STORED * 60, tag)
    save(record["sem_seg_file_name"], STORED)
    check_agree(cfg, record, TURN[tag](STORED), tmp_path)
    save(record["file_name"], STORED * 60)
    save(record["sem_seg_file_name"], STORED, tag)
    check_agree(cfg, record, STORED, tmp_path)


def test_deep_images_and_shallow_labels(cfg: CfgNode, record: dict[str, str], tmp_path: Path) -> None:
    encode.png(Path(record["file_name"]), STORED.astype(np.uint16) * 60 * 257, 16)
    for bits in (2, 4, 8, 16):
        encode.png(Path(record["sem_seg_file_name"]), STORED, bits)
        check_agree(cfg, record, STORED, tmp_path)
