"""What is wrong with a config's data is said before training, in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data import check_datasets
from hicl_d2.data.datasets.registry import register_semantic
from tests.test_reading import refusal


@pytest.mark.usefixtures("small_root")
def test_good_data_pass(cfg: CfgNode) -> None:
    check_datasets(cfg)


@pytest.mark.usefixtures("small_root")
def test_names_are_checked_where_they_are_used(cfg: CfgNode) -> None:
    cfg.DATASETS.TRAIN = ("camvid_trai",)
    assert "'camvid_trai' is not registered; did you mean camvid_train?" in refusal(
        lambda: check_datasets(cfg)
    )
    check_datasets(cfg, train=False)
    cfg.DATASETS.TRAIN = ()
    assert "DATASETS.TRAIN names no data set" in refusal(lambda: check_datasets(cfg))
    check_datasets(cfg, train=False)


def test_missing_root_is_said(cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert "expected camvid/images/" in refusal(lambda: check_datasets(cfg))


@pytest.mark.usefixtures("small_root")
def test_both_numbers_of_classes_are_named(cfg: CfgNode) -> None:
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    assert refusal(lambda: check_datasets(cfg)) == (
        "the data set 'camvid_train' has 11 classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 19; "
        "set MODEL.SEM_SEG_HEAD.NUM_CLASSES to 11"
    )


@pytest.mark.usefixtures("small_root")
def test_both_ignored_values_are_named(cfg: CfgNode) -> None:
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 0
    message = refusal(lambda: check_datasets(cfg))
    assert "255 as the ignored label, but MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 0" in message


@pytest.mark.parametrize("number", [0, 6])
def test_first_and_last_files_are_read(small_root: Path, cfg: CfgNode, number: int) -> None:
    path = small_root / "camvid" / "annotations" / "train" / f"train_{number:02d}.png"
    Image.fromarray(np.full((36, 48), 17, dtype=np.uint8)).save(path)
    assert refusal(lambda: check_datasets(cfg)).startswith(f"{path}: label value 17 (1728 pixels)")


def test_data_sets_of_the_test_are_read(small_root: Path, cfg: CfgNode) -> None:
    path = small_root / "camvid" / "images" / "test" / "test_00.png"
    path.write_bytes(path.read_bytes()[:300])
    assert re.search(r"test_00\.png: this image cannot be read", refusal(lambda: check_datasets(cfg)))


def test_data_set_without_records_is_named(cfg: CfgNode) -> None:
    register_semantic("empty_data", list, classes=["a"] * 11, colours=[(0, 0, 0)] * 11)
    cfg.DATASETS.TEST = ("empty_data",)
    try:
        message = refusal(lambda: check_datasets(cfg, train=False))
    finally:
        DatasetCatalog.remove("empty_data")
        MetadataCatalog.remove("empty_data")
    assert message == "the data set 'empty_data' is empty"


BAD_INPUTS = {
    "FORMAT": ["HSV", "INPUT.FORMAT is 'HSV'; it is one of BGR, RGB"],
    "RANDOM_FLIP": ["both", "one of horizontal, vertical, none"],
    "MIN_SIZE_TRAIN_SAMPLING": ["any", "one of choice, range"],
    "MIN_SIZE_TRAIN": [(), "give the lengths of the short side in pixels"],
    "CROP.TYPE": ["square", "one of absolute, absolute_range, relative, relative_range"],
    "CROP.SIZE": [(0.5, 0.5), "absolute crops take two numbers, whole pixels, at least 1"],
}


@pytest.mark.usefixtures("small_root")
@pytest.mark.parametrize("key", BAD_INPUTS)
def test_input_without_meaning_is_refused(cfg: CfgNode, key: str) -> None:
    value, message = BAD_INPUTS[key]
    *section, last = key.split(".")
    (cfg.INPUT[section[0]] if section else cfg.INPUT)[last] = value
    assert message in refusal(lambda: check_datasets(cfg))


@pytest.mark.usefixtures("small_root")
def test_ranges_and_shares_have_their_own_rules(cfg: CfgNode) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    assert "the least and the greatest length" in refusal(lambda: check_datasets(cfg))
    cfg.INPUT.MIN_SIZE_TRAIN = (20, 40)
    cfg.INPUT.CROP.TYPE = "relative_range"
    assert "shares of the image above 0 and up to 1" in refusal(lambda: check_datasets(cfg))
    cfg.INPUT.CROP.SIZE = [0.5, 1.0]
    check_datasets(cfg)
