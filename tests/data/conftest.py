"""A small data set in CamVid's layout, a config that trains on it, and CamVid itself where it is."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data.datasets.registry import load_records

HEIGHT, WIDTH = 36, 48
COUNTS = {"train": 7, "val": 3, "test": 5}


def write_pair(root: Path, split: str, name: str, number: int) -> tuple[Path, Path]:
    """Write an image (36, 48) and its label map of CamVid's 11 classes with some void."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([(7 * x + number) % 256, (5 * y + 30 * number) % 256, (x * y) % 256], axis=-1)
    labels = (x // 8 + 2 * (y // 9) + number) % 11
    labels[:2, :5] = 255
    paths = root / "images" / split / f"{name}.png", root / "annotations" / split / f"{name}.png"
    for path, array in zip(paths, (image, labels), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(path)
    return paths


@pytest.fixture
def small_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data root whose camvid has 7, 3 and 5 small images, and make it $DETECTRON2_DATASETS."""
    for split, count in COUNTS.items():
        for number in range(count):
            write_pair(tmp_path / "camvid", split, f"{split}_{number:02d}", number)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def nameless() -> Iterator[None]:
    """Register the small camvid as a user of Detectron2 may: records, and no metadata."""
    DatasetCatalog.register("nameless", lambda: load_records("camvid_val"))
    yield
    DatasetCatalog.remove("nameless")
    MetadataCatalog.remove("nameless")


@pytest.fixture
def cfg() -> CfgNode:
    """Return a config that trains on the small camvid with every augmentation, at a fixed size."""
    cfg = get_hicl_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 11
    cfg.DATASETS.TRAIN = ("camvid_train",)
    cfg.DATASETS.TEST = ("camvid_val", "camvid_test")
    cfg.INPUT.MIN_SIZE_TRAIN = (24, 36, 54)
    cfg.INPUT.MIN_SIZE_TEST = 36
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = (32, 40)
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 5
    return cfg


@pytest.fixture
def camvid_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the data root that holds the real CamVid, from $DETECTRON2_DATASETS or beside the project."""
    beside = Path(__file__).parents[2].parent / "shared" / "datasets"
    for root in (Path(os.environ.get("DETECTRON2_DATASETS", "datasets")), beside):
        if (root / "camvid" / "images").is_dir():
            monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
            return root
    pytest.skip(f"CamVid is neither in $DETECTRON2_DATASETS nor in {beside}")
