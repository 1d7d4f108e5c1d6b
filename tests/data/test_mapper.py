"""The semantic mapper gives what Detectron2's mapper gives, and batches of one size."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.projects import original
from hicl_d2.data.datasets.registry import load_records
from hicl_d2.data.mapper import SemanticMapper, build_augmentations
from tests.support.plain_mapper import PlainMapper, read_plainly


def _seed(seed: int) -> None:
    np.random.seed(seed)
    random.seed(seed)


def _assert_equal(mapped: dict[str, Any], expected: dict[str, Any]) -> None:
    assert mapped.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert mapped[key].dtype == value.dtype
            assert torch.equal(mapped[key], value)
        else:
            assert mapped[key] == value


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.usefixtures("small_root")
def test_result_is_that_of_detectron2s_mapper_or_a_plain_one(cfg: CfgNode, is_train: bool) -> None:
    cfg.INPUT.CROP.SIZE = (20, 24)
    augmentations = build_augmentations(cfg, is_train)
    mapper_class = original("data", "DatasetMapper") or PlainMapper
    theirs = mapper_class(is_train, augmentations=augmentations, image_format="BGR")
    ours = SemanticMapper(cfg, is_train)
    for seed, record in enumerate(load_records("camvid_train")):
        _seed(seed)
        expected = theirs(record)
        _seed(seed)
        _assert_equal(ours(record), expected)


def test_augmentations_of_training_follow_the_config(cfg: CfgNode) -> None:
    def names() -> list[str]:
        return [type(item).__name__ for item in build_augmentations(cfg, True)]

    crop = "RandomCrop_CategoryAreaConstraint"
    assert names() == ["ResizeShortestEdge", crop, "ColorAugSSDTransform", "RandomFlip"]
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.COLOR_AUG_SSD = False
    assert names() == ["ResizeShortestEdge", crop]
    cfg.INPUT.CROP.ENABLED = False
    assert names() == ["ResizeShortestEdge"]


def test_augmentations_of_the_test_are_the_resize_alone(cfg: CfgNode) -> None:
    assert [type(item).__name__ for item in build_augmentations(cfg, False)] == ["ResizeShortestEdge"]


@pytest.mark.usefixtures("small_root")
def test_what_is_smaller_than_the_crop_is_padded(cfg: CfgNode) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN = (36,)
    cfg.INPUT.CROP.SIZE = (40, 30)
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    for record in load_records("camvid_train"):
        mapped = SemanticMapper(cfg, True)(record)
        assert mapped["image"].shape == (3, 40, 30)
        assert mapped["sem_seg"].shape == (40, 30)
        assert (mapped["image"][:, 36:] == 128).all()
        assert (mapped["sem_seg"][36:] == 255).all()
        assert (mapped["sem_seg"][:36] != 255).any()


@pytest.mark.parametrize("size", [(1, 1), (20, 1), (1, 20)])
@pytest.mark.usefixtures("small_root")
def test_crops_of_one_column_or_row_are_flipped_too(size: tuple[int, int], cfg: CfgNode) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.SIZE, cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = (36,), size, 1.0
    record, mapped = load_records("camvid_train")[0], {}
    for way in ("none", "horizontal"):
        cfg.INPUT.RANDOM_FLIP = way
        mapper = SemanticMapper(cfg, True)
        for seed in range(8):
            _seed(seed)
            found = mapper(record)
            assert found["image"].shape == (3, *size)
            assert found["sem_seg"].shape == size
            mapped[way, seed] = found
    if size[1] == 1:  # the flip is drawn last, and of one column it changes nothing
        for seed in range(8):
            assert torch.equal(mapped["none", seed]["image"], mapped["horizontal", seed]["image"])


@pytest.mark.usefixtures("small_root")
def test_a_side_to_pad_to_comes_before_the_crop_s(cfg: CfgNode) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.SIZE, cfg.INPUT.SIZE_DIVISIBILITY = (36,), (40, 30), 64
    mapped = SemanticMapper(cfg, True)(load_records("camvid_train")[0])
    assert mapped["image"].shape == (3, 64, 64)
    assert (mapped["sem_seg"][40:] == 255).all()


@pytest.mark.usefixtures("small_root")
def test_relative_crops_and_test_images_are_not_padded(cfg: CfgNode) -> None:
    record = load_records("camvid_train")[0]
    cfg.INPUT.CROP.SIZE = (100, 100)
    assert SemanticMapper(cfg, False)(record)["image"].shape == (3, 36, 48)
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "relative", (0.5, 0.5)
    cfg.INPUT.MIN_SIZE_TRAIN = (36,)
    assert SemanticMapper(cfg, True)(record)["image"].shape == (3, 18, 24)


@pytest.mark.usefixtures("small_root")
def test_record_is_left_as_it_is(cfg: CfgNode) -> None:
    record = {
        key: value for key, value in load_records("camvid_train")[0].items() if key.endswith("file_name")
    }
    before = dict(record)
    mapped = SemanticMapper(cfg, True)(record)
    assert record == before
    assert (mapped["height"], mapped["width"]) == (36, 48)


@pytest.mark.usefixtures("small_root")
def test_image_without_labels_is_mapped(cfg: CfgNode) -> None:
    record = load_records("camvid_test")[0]
    del record["sem_seg_file_name"]
    mapped = SemanticMapper(cfg, False)(record)
    assert "sem_seg" not in mapped
    assert mapped["image"].dtype == torch.uint8


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.usefixtures("small_root")
def test_channels_follow_the_config(cfg: CfgNode, image_format: str) -> None:
    cfg.INPUT.FORMAT = image_format
    record = load_records("camvid_test")[0]
    expected = read_plainly(record["file_name"], image_format).transpose(2, 0, 1)
    np.testing.assert_array_equal(SemanticMapper(cfg, False)(record)["image"].numpy(), expected)


def test_labels_of_more_than_8_bits_keep_their_values(tmp_path: Path, cfg: CfgNode) -> None:
    labels = (np.arange(36 * 48).reshape(36, 48) % 600).astype(np.uint16)
    labels[0] = 1000
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray(np.zeros((36, 48, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    record = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 600
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 1000
    mapped = SemanticMapper(cfg, False)(record)["sem_seg"]
    np.testing.assert_array_equal(mapped.numpy(), labels.astype(np.int64))


@pytest.mark.usefixtures("small_root")
def test_decoded_files_are_kept_when_asked_and_change_nothing(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = load_records("camvid_train")
    plain = SemanticMapper(cfg, True)
    cfg.DATALOADER.KEEP_DECODED = True
    keeping = SemanticMapper(cfg, True)
    decoded = []
    decode = keeping.decode
    monkeypatch.setattr(
        keeping, "decode", lambda record: decoded.append(record["file_name"]) or decode(record)
    )
    for turn in range(2):
        for seed, record in enumerate(records):
            _seed(10 * turn + seed)
            expected = plain(record)
            _seed(10 * turn + seed)
            without_size = {key: value for key, value in record.items() if key not in ("height", "width")}
            _assert_equal(keeping(without_size), expected)
    assert decoded == [record["file_name"] for record in records]
    cfg.DATALOADER.KEEP_DECODED = True
    assert SemanticMapper(cfg, False)._decoded is None  # test images are read once


def test_an_image_with_several_label_maps_is_kept_with_each_of_them(tmp_path: Path, cfg: CfgNode) -> None:
    image = str(tmp_path / "image.png")
    Image.fromarray(np.zeros((6, 8, 3), dtype=np.uint8)).save(image)
    records: list[dict[str, Any]] = [{"file_name": image}]
    for value in (3, 5):
        path = str(tmp_path / f"{value}.png")
        Image.fromarray(np.full((6, 8), value, dtype=np.uint8)).save(path)
        records.append({"file_name": image, "sem_seg_file_name": path})
    cfg.DATALOADER.KEEP_DECODED, cfg.INPUT.CROP.ENABLED = True, False
    keeping = SemanticMapper(cfg, True)
    for _ in range(2):
        without, *mapped = [keeping(record) for record in records]
        assert "sem_seg" not in without
        assert [each["sem_seg"].unique().tolist() for each in mapped] == [[3], [5]]


def test_image_and_label_map_of_different_sizes_are_named_with_both_sizes(
    tmp_path: Path, cfg: CfgNode
) -> None:
    Image.fromarray(np.zeros((6, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((8, 6), dtype=np.uint8)).save(tmp_path / "b.png")
    record = {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "b.png")}
    with pytest.raises(InputError) as caught:
        SemanticMapper(cfg, False)(record)
    assert f"{tmp_path}/a.png is 6 x 8, but its label map {tmp_path}/b.png is 8 x 6" in str(caught.value)


def test_image_of_another_size_than_its_record_is_named(tmp_path: Path, cfg: CfgNode) -> None:
    Image.fromarray(np.zeros((6, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError) as caught:
        SemanticMapper(cfg, False)({"file_name": str(tmp_path / "a.png"), "height": 6, "width": 9})
    for part in (str(tmp_path / "a.png"), "8", "9"):
        assert part in str(caught.value)
