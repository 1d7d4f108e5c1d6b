"""Files that cannot be used are refused in one line that names them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.reading import check_labels, image_size, read_image, read_labels
from tests.support.plain_mapper import read_plainly


def refusal(action: Callable[[], Any]) -> str:
    """Return the message of the InputError that ``action`` raises, which is one line."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def _save(path: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_truncated_image_is_named(tmp_path: Path, name: str) -> None:
    path = _cut(_save(tmp_path / name, _noise(64, 64, 3)))
    assert refusal(lambda: read_image(path, "BGR")).startswith(f"{path}: this image cannot be read")


def test_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 40):
        path.write_bytes(content)
        assert str(path) in refusal(lambda: read_image(path, "BGR"))
        assert str(path) in refusal(lambda: read_labels(path))
        assert str(path) in refusal(lambda: image_size(path))


def test_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "nothing.png"
    assert refusal(lambda: read_image(path, "BGR")) == f"{path}: this image does not exist"
    assert refusal(lambda: read_labels(path)) == f"{path}: this label map does not exist"
    assert refusal(lambda: image_size(path)) == f"{path}: this image does not exist"


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(lambda: read_image(tmp_path, "BGR"))


def test_truncated_label_map_is_named(tmp_path: Path) -> None:
    path = _cut(_save(tmp_path / "a.png", _noise(64, 64)))
    assert refusal(lambda: read_labels(path)).startswith(f"{path}: this label map cannot be read")


def test_label_map_with_colours_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", _noise(8, 8, 3))
    assert refusal(lambda: read_labels(path)).endswith("this one is RGB")


def test_palette_label_map_gives_its_indices(tmp_path: Path) -> None:
    indices = _noise(8, 8) % 5
    image = Image.fromarray(indices).convert("P")
    image.putpalette([200, 10, 10, 0, 90, 0, 7, 7, 7, 1, 2, 3, 255, 255, 0])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), indices)


def test_label_map_of_16_bits_keeps_its_values(tmp_path: Path) -> None:
    labels = np.array([[0, 300], [65535, 7]], dtype=np.uint16)
    np.testing.assert_array_equal(read_labels(_save(tmp_path / "a.png", labels)), labels)


def test_label_value_outside_the_classes_is_named() -> None:
    labels = np.array([[0, 12, 12], [40, 255, 10]], dtype=np.uint8)
    assert refusal(lambda: check_labels(labels, 11, 255, "x/y.png")) == (
        "x/y.png: label value 12 (2 pixels and 1 other value) is outside the 11 classes, 0 to 10, "
        "and is not the ignored value 255"
    )


@given(
    labels=hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.sampled_from([0, 3, 4, 9, 255])
    ),
    num_classes=st.integers(1, 10),
    ignore=st.sampled_from([0, 9, 255]),
)
def test_labels_are_refused_if_and_only_if_one_is_outside(
    labels: np.ndarray, num_classes: int, ignore: int
) -> None:
    good = all(int(value) < num_classes or int(value) == ignore for value in labels.ravel())
    if good:
        check_labels(labels, num_classes, ignore, "labels.png")
    else:
        assert refusal(lambda: check_labels(labels, num_classes, ignore, "labels.png"))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_images_are_those_of_pillow_upright(tmp_path: Path, orientation: int | None, mode: str) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(_noise(10, 14, 3)).convert(mode).save(path, exif=exif)
    for image_format in ("BGR", "RGB"):
        expected = read_plainly(str(path), image_format)
        np.testing.assert_array_equal(read_image(path, image_format), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_from_the_header_is_that_of_the_upright_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png"):
        path = _save(tmp_path / name, _noise(10, 14, 3), exif=exif)
        assert image_size(path) == read_image(path, "RGB").shape[:2]


def test_huge_image_is_refused_with_the_limit_and_how_to_raise_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(tmp_path / "a.png", _noise(60, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for read in (lambda: read_image(path, "BGR"), lambda: read_labels(path), lambda: image_size(path)):
        message = refusal(read)
        assert message.startswith(f"{path}: this ")
        assert "raise HICL_MAX_IMAGE_PIXELS" in message
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1800)
    assert read_labels(path).shape == (60, 60)


def test_broken_link_is_a_file_that_does_not_exist(tmp_path: Path) -> None:
    link = tmp_path / "a.png"
    link.symlink_to(tmp_path / "nowhere.png")
    assert refusal(lambda: read_image(link, "BGR")) == f"{link}: this image does not exist"
