"""JPEGs that are decoded at a part of their size where they are resized to less."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.data.preflight import check_inputs
from hicl_d2.reading import open_image

HEIGHT, WIDTH = 240, 320
QUARTER_TURN = 6
EXIF_ORIENTATION = 0x0112


def _photo(path: Path, orientation: int = 1) -> dict[str, Any]:
    """Write a smooth picture, as photographs of many pixels are, with a label map; return their record."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([rows, columns * 0.7, 128 + 100 * np.sin((rows + columns) / 40)], axis=2)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(picture.astype(np.uint8)).save(path, quality=95, exif=exif)
    upright = (WIDTH, HEIGHT) if orientation == QUARTER_TURN else (HEIGHT, WIDTH)
    labels = path.with_suffix(".labels.png")
    Image.fromarray((np.arange(upright[0] * upright[1]).reshape(upright) % 3).astype(np.uint8)).save(labels)
    return {"file_name": str(path), "sem_seg_file_name": str(labels)}


def _mapped(cfg: CfgNode, record: dict[str, Any]) -> dict[str, Any]:
    np.random.seed(0)
    random.seed(0)
    return SemanticMapper(cfg, True)(record)


@pytest.fixture
def sized(cfg: CfgNode) -> CfgNode:
    """Return a config that resizes the short side of 240 to 70, without a crop."""
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.ENABLED, cfg.INPUT.COLOR_AUG_SSD = (70,), False, False
    return cfg


@pytest.mark.parametrize(
    ("at_least", "size"),
    [((30, 40), (30, 40)), ((31, 40), (60, 80)), ((70, 93), (120, 160)), ((121, 1), (240, 320)), ((999, 999), (240, 320))],
)  # fmt: skip
def test_the_least_part_that_is_not_smaller_is_decoded(
    tmp_path: Path, at_least: tuple[int, int], size: tuple[int, int]
) -> None:
    _photo(tmp_path / "a.jpg")
    _photo(tmp_path / "turned.jpg", QUARTER_TURN)
    image = open_image(tmp_path / "a.jpg", at_least)
    turned = open_image(tmp_path / "turned.jpg", at_least[::-1])
    assert (image.height, image.width) == (turned.width, turned.height) == size
    assert open_image(tmp_path / "a.jpg").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["progressive", "CMYK", "L", "MPO"])
def test_every_kind_of_jpeg_is_decoded_so(tmp_path: Path, kind: str) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    grey = Image.fromarray(((rows + columns) / 3).astype(np.uint8))
    mode = kind if kind in ("CMYK", "L") else "RGB"
    # Telephones write MPO: a JPEG with further ones behind it.
    form = {"format": "MPO", "save_all": True, "append_images": [grey.convert(mode)]} if kind == "MPO" else {}
    path = tmp_path / "a.jpg"
    grey.convert(mode).save(path, quality=95, progressive=kind == "progressive", **form)
    reduced, whole = open_image(path, (60, 80)), open_image(path)
    assert (reduced.size, reduced.mode, whole.size) == ((80, 60), "RGB", (WIDTH, HEIGHT))
    means = np.asarray(whole).reshape(60, 4, 80, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(np.asarray(reduced), means, atol=2)


@pytest.mark.parametrize("orientation", [1, QUARTER_TURN])
def test_pixels_differ_a_little_and_labels_not_at_all(
    tmp_path: Path, sized: CfgNode, orientation: int
) -> None:
    record = _photo(tmp_path / "a.jpg", orientation)
    whole = _mapped(sized, record)
    sized.INPUT.REDUCED_DECODING = True
    reduced = _mapped(sized, record)
    assert reduced["image"].shape == whole["image"].shape
    assert (reduced["height"], reduced["width"]) == (whole["height"], whole["width"])
    difference = (reduced["image"].int() - whole["image"].int()).abs()
    assert 0 < difference.max() <= 8
    assert difference.float().mean() < 1
    assert torch.equal(reduced["sem_seg"], whole["sem_seg"])


@pytest.mark.parametrize(("suffix", "side"), [(".png", 70), (".jpg", 121), (".jpg", 240), (".jpg", 300)])
def test_other_formats_and_larger_sizes_are_read_as_they_are(
    tmp_path: Path, sized: CfgNode, suffix: str, side: int
) -> None:
    record = _photo(tmp_path / f"a{suffix}")
    sized.INPUT.MIN_SIZE_TRAIN = (side,)
    whole = _mapped(sized, record)
    sized.INPUT.REDUCED_DECODING = True
    assert torch.equal(_mapped(sized, record)["image"], whole["image"])


def test_test_images_are_read_whole(tmp_path: Path, sized: CfgNode) -> None:
    record = _photo(tmp_path / "a.jpg")
    sized.INPUT.MIN_SIZE_TEST = 60
    whole = SemanticMapper(sized, False)(record)
    sized.INPUT.REDUCED_DECODING = True
    assert torch.equal(SemanticMapper(sized, False)(record)["image"], whole["image"])


def test_a_file_that_is_cut_off_is_named(tmp_path: Path, sized: CfgNode) -> None:
    record = _photo(tmp_path / "a.jpg")
    sized.INPUT.REDUCED_DECODING = True
    content = (tmp_path / "a.jpg").read_bytes()
    for share in (2, 100):
        (tmp_path / "a.jpg").write_bytes(content[: len(content) // share])
        with pytest.raises(InputError) as caught:
            _mapped(sized, record)
        assert str(tmp_path / "a.jpg") in str(caught.value)
        assert "cannot be read" in str(caught.value)


def test_images_are_not_kept_and_decoded_for_their_size_at_once(cfg: CfgNode) -> None:
    cfg.INPUT.REDUCED_DECODING = cfg.DATALOADER.KEEP_DECODED = True
    with pytest.raises(InputError, match=r"KEEP_DECODED.*; set one of the two"):
        check_inputs(cfg)
