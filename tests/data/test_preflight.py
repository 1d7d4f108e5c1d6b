"""What is wrong with a config's data is said before training, in one line."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.d2.projects import panoptic_deeplab_mapper
from hicl_d2.data import check_datasets, preflight
from hicl_d2.data.datasets.registry import load_records, register_semantic
from hicl_d2.data.preflight import check_instance_data, unseen_classes
from hicl_d2.reading import read_labels
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


@pytest.mark.usefixtures("small_root", "nameless")
@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_data_whose_metadata_name_no_classes_are_told_how_to(cfg: CfgNode, split: str) -> None:
    cfg.DATASETS[split] = ("nameless",)
    assert refusal(lambda: check_datasets(cfg)) == (
        "the data set 'nameless' names no classes; where it is registered, set "
        "MetadataCatalog.get('nameless').stuff_classes to a list of their names"
    )


@pytest.mark.usefixtures("small_root")
@pytest.mark.parametrize("architecture", ["PanopticDeepLab", "HiCL"])
def test_what_panoptic_deeplab_lacks_in_a_data_set_is_named(cfg: CfgNode, architecture: str) -> None:
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.HICL.BASE = architecture, "PanopticDeepLab"
    message = refusal(lambda: check_instance_data(cfg))
    assert "'camvid_train' has no pan_seg_file_name, segments_info, thing_dataset_id_to_contig" in message
    assert "semantic half alone" in message
    with_all = [
        {**record, "pan_seg_file_name": "", "segments_info": []} for record in load_records("camvid_train")
    ]
    DatasetCatalog.register("panoptic", lambda: with_all)
    MetadataCatalog.get("panoptic").set(thing_dataset_id_to_contiguous_id={}, ignore_label=255)
    try:
        cfg.DATASETS.TRAIN = ("panoptic",)
        check_instance_data(cfg)
        if USES_DETECTRON2:
            panoptic_deeplab_mapper(cfg)  # which reads the metadata
    finally:
        DatasetCatalog.remove("panoptic")
        MetadataCatalog.remove("panoptic")


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


def _train_labels(root: Path) -> list[Path]:
    return sorted((root / "camvid/annotations/train").glob("*.png"))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_every_test_image_is_known_before_training(small_root: Path, cfg: CfgNode, suffix: str) -> None:
    odd = small_root / f"camvid/images/test/test_02.{suffix}"
    (small_root / "camvid/images/test/test_02.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(odd, exif=exif)
    Image.fromarray(np.zeros((30, 20), dtype=np.uint8)).save(
        small_root / "camvid/annotations/test/test_02.png"
    )
    first = str(small_root / "camvid/images/val/val_00.png")
    assert preflight.test_image_sizes(cfg) == {(36, 48): first, (30, 20): str(odd)}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 3000), "would be left (INPUT.MIN_SIZE_TEST 36, INPUT.MAX_SIZE_TEST 1333)"),
        ((30, 40), "is 30 x 40, but its label map"),
        (None, "this image is in no format that Pillow knows"),
    ],
)
def test_a_test_image_that_cannot_be_used_is_named_before_training(
    small_root: Path, cfg: CfgNode, size: tuple[int, int] | None, message: str
) -> None:
    """One in the middle, which the sample of files that are read whole does not hold."""
    path = small_root / "camvid/images/test/test_02.png"
    if size is None:
        path.write_bytes(b"nothing")
    else:
        Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).save(path)
        if size[0] == 1:
            Image.fromarray(np.zeros(size, dtype=np.uint8)).save(
                small_root / "camvid/annotations/test/test_02.png"
            )
    found = refusal(lambda: preflight.test_image_sizes(cfg))
    assert str(path) in found
    assert message in found


def test_a_test_image_of_which_several_sizes_leave_nothing_is_named_before_training(
    small_root: Path, cfg: CfgNode
) -> None:
    path, labels = (small_root / f"camvid/{kind}/test/test_02.png" for kind in ("images", "annotations"))
    Image.fromarray(np.zeros((2, 3000, 3), dtype=np.uint8)).save(path)
    Image.fromarray(np.zeros((2, 3000), dtype=np.uint8)).save(labels)
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (400, 30), 700
    preflight.test_image_sizes(cfg)
    cfg.TEST.AUG.ENABLED = True
    found = refusal(lambda: preflight.test_image_sizes(cfg))
    assert str(path) in found
    assert "0 x 700 would be left (TEST.AUG.MIN_SIZES 30, TEST.AUG.MAX_SIZE 700)" in found
    assert "raise TEST.AUG.MAX_SIZE" in found


@pytest.mark.usefixtures("small_root")
def test_a_label_map_that_is_turned_by_the_sizes_passes(small_root: Path, cfg: CfgNode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = small_root / "camvid/images/test/test_02.png"
    Image.fromarray(np.zeros((36, 48, 3), dtype=np.uint8)).save(
        path, exif=exif
    )  # its label map is not turned
    assert preflight.test_image_sizes(cfg)[48, 36] == str(path)


@pytest.mark.usefixtures("small_root")
def test_classes_that_training_has_need_no_warning(cfg: CfgNode) -> None:
    assert unseen_classes(cfg) == ""


@pytest.mark.parametrize(
    ("change", "start", "end"),
    [
        (lambda v: np.where(v == 3, 255, v), "class 'road' has no pixel in the training data", "counts all"),
        (
            lambda v: np.where(v > 8, 255, v),
            "2 classes have no pixel in the training data: bicyclist, ped",
            "",
        ),
        (
            lambda v: (v > 3) * 255,
            "10 classes have no pixel",
            "{0: name, 255: name}; check_dataset.py counts all",
        ),
    ],
)
def test_classes_that_training_lacks_are_named(
    small_root: Path, cfg: CfgNode, change: Callable[[np.ndarray], np.ndarray], start: str, end: str
) -> None:
    for path in _train_labels(small_root):
        with Image.open(path) as image:
            labels = np.array(image)
        Image.fromarray(change(labels).astype(np.uint8)).save(path)
    warning = unseen_classes(cfg)
    assert warning.startswith(start)
    assert warning.endswith(end)


def test_a_sample_says_how_many_were_looked_at(
    small_root: Path, cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, path in enumerate(_train_labels(small_root)):
        Image.fromarray(np.full((36, 48), number, dtype=np.uint8)).save(path)
    monkeypatch.setattr(preflight, "LABEL_SAMPLES", 4)
    read: list[str] = []
    monkeypatch.setattr(preflight, "read_labels", lambda path: read.append(path) or read_labels(path))
    warning = unseen_classes(cfg)
    assert "have no pixel in the 4 of 7 training label maps looked at: " in warning
    assert [Path(path).stem for path in read] == ["train_00", "train_02", "train_04", "train_06"]


def test_reading_ends_when_every_class_has_been_seen(
    small_root: Path, cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _train_labels(small_root)[0]
    Image.fromarray((np.arange(36 * 48).reshape(36, 48) % 11).astype(np.uint8)).save(first)
    read: list[str] = []
    monkeypatch.setattr(preflight, "read_labels", lambda path: read.append(path) or read_labels(path))
    assert unseen_classes(cfg) == ""
    assert read == [str(first)]


@pytest.mark.usefixtures("small_root")
def test_images_without_truth_are_said_where_they_would_end_the_run(cfg: CfgNode) -> None:
    for train in (True, False):
        name = "without_truth"
        records = load_records("camvid_train")[:3]
        del records[1]["sem_seg_file_name"]
        register_semantic(name, lambda: records, classes=["a"] * 11, colours=[(0, 0, 0)] * 11)  # noqa: B023
        try:
            setattr(cfg.DATASETS, "TRAIN" if train else "TEST", (name,))
            message = refusal(lambda: check_datasets(cfg, train=train))  # noqa: B023
            assert f"no label map for 1 of 3 images, the first is {records[1]['file_name']}" in message
            assert ("UNLABELLED: skip" if train else "TEST.SUBMISSION True") in message
            cfg.TEST.SUBMISSION = True
            if not train:
                check_datasets(cfg, train=False)
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        cfg.TEST.SUBMISSION = False
        cfg.DATASETS.TRAIN = ("camvid_train",)
