"""Data sets are registered under their names, list their files, and say what is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data import register_all
from hicl_d2.data.datasets.registry import data_root, load_records, register_semantic
from hicl_d2.reading import check_labels, read_image, read_labels
from tests.data.conftest import write_pair
from tests.test_reading import refusal

NAMES = {
    **dict.fromkeys(["camvid_train", "camvid_val", "camvid_test"], 11),
    **dict.fromkeys(["parts_train", "parts_val"], 7),
    **dict.fromkeys(["cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val"], 19),
}
needs_lite = pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2 registers Cityscapes itself")


@pytest.mark.parametrize(("name", "count"), NAMES.items())
def test_metadata_are_complete(name: str, count: int) -> None:
    metadata = MetadataCatalog.get(name)
    assert name in DatasetCatalog.list()
    assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == count
    assert len({tuple(colour) for colour in metadata.stuff_colors}) == count
    assert metadata.ignore_label == 255
    is_cityscapes = name.startswith("cityscapes")
    assert metadata.evaluator_type == ("cityscapes_sem_seg" if is_cityscapes else "sem_seg")


def test_registering_again_changes_nothing() -> None:
    before = {name: (DatasetCatalog[name], MetadataCatalog.get(name).as_dict()) for name in NAMES}
    register_all()
    assert before == {name: (DatasetCatalog[name], MetadataCatalog.get(name).as_dict()) for name in NAMES}


def test_root_is_read_from_the_environment_at_every_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/pictures")
    assert data_root() == Path.home() / "pictures"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert data_root() == Path("datasets")


def test_records_of_camvid(small_root: Path) -> None:
    records = load_records("camvid_val")
    folder = small_root / "camvid"
    assert records[1] == {
        "file_name": f"{folder}/images/val/val_01.png",
        "sem_seg_file_name": f"{folder}/annotations/val/val_01.png",
        "height": 36,
        "width": 48,
        "image_id": "val_01",
    }
    assert [record["image_id"] for record in records] == ["val_00", "val_01", "val_02"]


def test_names_with_spaces_and_unicode_are_files_like_others(small_root: Path) -> None:
    write_pair(small_root / "camvid", "val", "straße 1", 4)
    assert load_records("camvid_val")[0]["image_id"] == "straße 1"


def test_missing_root_shows_the_expected_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    assert refusal(lambda: load_records("camvid_train")) == (
        f"the data set 'camvid_train': {tmp_path}/nowhere/camvid/images/train: no such file or directory; expected "
        "camvid/images/{train,val,test}/NAME.jpg (or .png) and camvid/annotations/{train,val,test}/NAME.png "
        "(8-bit classes, 255 void) below $DETECTRON2_DATASETS"
    )


def test_empty_root_shows_the_expected_files(small_root: Path) -> None:
    for path in (small_root / "camvid" / "images" / "val").iterdir():
        path.unlink()
    message = refusal(lambda: load_records("camvid_val"))
    assert (
        "images/val holds no .jpeg or .jpg or .png file; expected camvid/images/{train,val,test}" in message
    )


def test_images_without_labels_are_counted(small_root: Path) -> None:
    for number in (1, 4):
        (small_root / "camvid" / "annotations" / "train" / f"train_{number:02d}.png").unlink()
    message = refusal(lambda: load_records("camvid_train"))
    assert "no label map for 2 of 7 files, the first is" in message
    assert f"{small_root}/camvid/images/train/train_01.png" in message


def test_labels_without_an_image_are_counted(small_root: Path) -> None:
    (small_root / "camvid" / "images" / "test" / "test_02.png").unlink()
    message = refusal(lambda: load_records("camvid_test"))
    assert "no image for 1 of 5 files, the first is" in message


def test_unknown_name_is_answered_with_the_nearest() -> None:
    expected = "the data set 'camvid_trian' is not registered; did you mean camvid_train?"
    assert refusal(lambda: load_records("camvid_trian")) == expected
    assert "registered are" in refusal(lambda: load_records("zzz"))


def test_loader_that_fails_says_what_was_expected() -> None:
    def load() -> list[dict[str, object]]:
        raise FileNotFoundError(2, "No such file or directory", "/data/x")

    register_semantic("broken_data", load, classes=["a"], colours=[(0, 0, 0)], expected="x/*.png")
    try:
        message = refusal(lambda: load_records("broken_data"))
    finally:
        DatasetCatalog.remove("broken_data")
        MetadataCatalog.remove("broken_data")
    assert message.startswith("the data set 'broken_data' cannot be loaded: ")
    assert message.endswith("expected x/*.png")


def write_cityscapes(root: Path, labels: str = "labelTrainIds") -> None:
    """Write two images of each split in the official layout, with one kind of labels."""
    for split, city in (("train", "ulm"), ("train", "bonn"), ("val", "bern")):
        for number in range(2):
            stem = f"{city}_00000{number}_000019"
            image = root / "cityscapes" / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
            truth = root / "cityscapes" / "gtFine" / split / city / f"{stem}_gtFine_{labels}.png"
            for path, shape in ((image, (16, 32, 3)), (truth, (16, 32))):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full(shape, number, dtype=np.uint8)).save(path)


@needs_lite
def test_records_of_cityscapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_cityscapes(tmp_path)
    records = load_records("cityscapes_fine_sem_seg_train")
    root = tmp_path / "cityscapes"
    assert len(records) == 4
    assert records[0] == {
        "file_name": f"{root}/leftImg8bit/train/bonn/bonn_000000_000019_leftImg8bit.png",
        "sem_seg_file_name": f"{root}/gtFine/train/bonn/bonn_000000_000019_gtFine_labelTrainIds.png",
        "height": 16,
        "width": 32,
        "image_id": "bonn_000000_000019",
    }
    assert len(load_records("cityscapes_fine_sem_seg_val")) == 2


@needs_lite
def test_cityscapes_without_train_ids_says_how_to_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_cityscapes(tmp_path, "labelIds")
    assert "hicl_d2.data.prepare cityscapes" in refusal(lambda: load_records("cityscapes_fine_sem_seg_val"))


def test_missing_cityscapes_shows_the_expected_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    message = refusal(lambda: load_records("cityscapes_fine_sem_seg_train"))
    assert "expected cityscapes/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png" in message


@pytest.mark.usefixtures("camvid_root")
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
def test_camvid_is_read_whole(split: str, count: int) -> None:
    records = load_records(f"camvid_{split}")
    assert len(records) == count
    assert {(record["height"], record["width"]) for record in records} == {(360, 480)}
    for record in records[::50]:
        assert read_image(record["file_name"], "RGB").shape == (360, 480, 3)
        labels = read_labels(record["sem_seg_file_name"])
        assert labels.shape == (360, 480)
        check_labels(labels, 11, 255, record["sem_seg_file_name"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda: None, "its function must return a list of records, not NoneType"),
        (
            lambda: iter([{"file_name": "a.png"}]),
            "its function must return a list of records, not list_iterator",
        ),
        (lambda: {"file_name": "a.png"}, "its function must return a list of records, not dict"),
        (lambda: "a.png", "its function must return a list of records, not str"),
        (lambda: [], "is empty"),
        (lambda: [{"file_name": "a.png"}, "b.png"], "record 1 must be a dictionary, not str"),
        (lambda: [{"sem_seg_file_name": "a.png"}], "file_name of record 0 must be a path, not None"),
        (
            lambda: [{"file_name": Path("a.png"), "sem_seg_file_name": None}],
            "sem_seg_file_name of record 0 must be a path, not None",
        ),
    ],
)
def test_a_function_that_returns_no_records_is_one_line(returned: Callable[[], Any], message: str) -> None:
    name = "of_a_function"
    register_semantic(name, returned, classes=["a"], colours=[(0, 0, 0)])
    try:
        assert message in refusal(lambda: load_records(name))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
