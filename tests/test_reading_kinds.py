"""Every kind of pixel in every format is read as what it means, or refused in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from hicl_d2.d2.projects import original
from hicl_d2.reading import file_mode, image_size, label_size, read_image, read_label_colours, read_labels
from tests.support import encode
from tests.test_reading import refusal

SIZE = (5, 7)
GREY = np.random.default_rng(1).integers(0, 256, SIZE).astype(np.uint8)
COLOUR = np.random.default_rng(2).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
LOW_BYTE = np.random.default_rng(3).integers(0, 256, SIZE).astype(np.uint16)
SIXTEEN = GREY.astype(np.uint16) * 256 + LOW_BYTE
# Class numbers of 0 to 3, which every number of bits can hold but one.
FEW = (GREY % 4).astype(np.uint8)
TABLE = np.random.default_rng(4).integers(0, 256, (4, 3)).astype(np.uint8)


def runtime_image(path: str, image_format: str) -> np.ndarray:
    """Return what Detectron2's reader gives: where it is not installed, Pillow's pixels, turned as Pillow turns them."""
    read = original("data.detection_utils", "read_image")
    if read is not None:
        return read(path, image_format)
    with Image.open(path) as image:
        turned = np.asarray(ImageOps.exif_transpose(image).convert("L" if image_format == "L" else "RGB"))
    return (
        turned[..., None] if image_format == "L" else turned[..., ::-1] if image_format == "BGR" else turned
    )


def stacked(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def pillow(array: np.ndarray, mode: str = "", **options: object) -> Callable[[Path], object]:
    """Return what saves ``array`` with Pillow."""

    def save(path: Path) -> None:
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path, **options)

    return save


def paletted(path: Path) -> None:
    image = Image.fromarray(FEW).convert("P")
    image.putpalette(TABLE.ravel().tolist())
    image.save(path)


IMAGES = {
    "1.png": (lambda p: encode.png(p, GREY % 2, 1), stacked(GREY % 2 * 255)),
    "2.png": (lambda p: encode.png(p, FEW, 2), stacked(FEW * 85)),
    "4.png": (lambda p: encode.png(p, GREY % 16, 4), stacked(GREY % 16 * 17)),
    "8.png": (pillow(GREY), stacked(GREY)),
    "16.png": (lambda p: encode.png(p, SIXTEEN, 16), stacked(GREY)),
    "16x257.png": (lambda p: encode.png(p, GREY.astype(np.uint16) * 257, 16), stacked(GREY)),
    "rgb16.png": (
        lambda p: encode.png(p, COLOUR.astype(np.uint16) * 257, 16, encode.COLOUR),
        COLOUR,
    ),
    "la16.png": (
        lambda p: encode.png(p, np.dstack([SIXTEEN, 65535 - SIXTEEN]), 16, encode.GREY_ALPHA),
        stacked(GREY),
    ),
    "palette2.png": (lambda p: encode.png(p, FEW, 2, encode.PALETTE, TABLE), TABLE[FEW]),
    "palette4.png": (lambda p: encode.png(p, FEW, 4, encode.PALETTE, TABLE), TABLE[FEW]),
    "palette8.png": (paletted, TABLE[FEW]),
    "transparent palette.png": (
        lambda p: encode.png(p, FEW, 4, encode.PALETTE, TABLE, before=encode.chunk(b"tRNS", b"\x00\x80\xff")),
        TABLE[FEW],
    ),
    "la.png": (pillow(np.dstack([GREY, GREY[::-1]])), stacked(GREY)),
    "rgba.png": (pillow(np.dstack([COLOUR, GREY])), COLOUR),
    "4.tif": (lambda p: encode.tiff(p, GREY % 16, 4), stacked(GREY % 16 * 17)),
    "8.tif": (pillow(GREY, compression="tiff_lzw"), stacked(GREY)),
    "8white.tif": (lambda p: encode.tiff(p, GREY, 8, white_is_zero=True), stacked(255 - GREY)),
    "12.tif": (lambda p: encode.tiff(p, GREY.astype(np.uint16) * 16 + 7, 12), stacked(GREY)),
    "16.tif": (pillow(SIXTEEN), stacked(GREY)),
    "16deflate.tiff": (pillow(SIXTEEN, compression="tiff_adobe_deflate"), stacked(GREY)),
    "16big.tif": (lambda p: encode.tiff(p, SIXTEEN, 16, order=">"), stacked(GREY)),
    "16white.tif": (lambda p: encode.tiff(p, 65535 - SIXTEEN, 16, white_is_zero=True), stacked(GREY)),
    "rgb16.tif": (lambda p: encode.tiff(p, COLOUR.astype(np.uint16) * 257, 16), COLOUR),
    "rgb16big.tif": (lambda p: encode.tiff(p, COLOUR.astype(np.uint16) * 257, 16, order=">"), COLOUR),
    "1.tif": (pillow(GREY % 2 * 255, "1", compression="group4"), stacked(GREY % 2 * 255)),
    "cmyk.tif": (pillow(COLOUR, "CMYK"), COLOUR),
    "palette.tif": (paletted, TABLE[FEW]),
    "8.bmp": (pillow(GREY), stacked(GREY)),
    "1.bmp": (pillow(GREY % 2 * 255, "1"), stacked(GREY % 2 * 255)),
    "palette.bmp": (paletted, TABLE[FEW]),
    "rgb.bmp": (pillow(COLOUR), COLOUR),
    "rgb.webp": (pillow(COLOUR, lossless=True), COLOUR),
    "grey.webp": (pillow(GREY, lossless=True), stacked(GREY)),
    "frames.webp": (
        pillow(COLOUR, lossless=True, save_all=True, append_images=[Image.new("RGB", SIZE[::-1])]),
        COLOUR,
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_becomes_8_bit_rgb(tmp_path: Path, name: str) -> None:
    write, expected = IMAGES[name]
    write(tmp_path / name)
    read = read_image(tmp_path / name, "RGB")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(read_image(tmp_path / name, "BGR"), expected[..., ::-1])
    assert image_size(tmp_path / name) == SIZE


@pytest.mark.parametrize("name", [name for name in IMAGES if "16" not in name and "12" not in name])
def test_images_of_8_bits_are_those_of_the_runtimes_reader(tmp_path: Path, name: str) -> None:
    IMAGES[name][0](tmp_path / name)
    expected = runtime_image(str(tmp_path / name), "BGR")
    np.testing.assert_array_equal(read_image(tmp_path / name, "BGR"), expected)


@pytest.mark.parametrize("name", ["jpg", "webp"])
def test_lossy_images_are_those_of_the_runtimes_reader(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    Image.fromarray(COLOUR).resize((64, 48)).save(path)
    np.testing.assert_array_equal(read_image(path, "BGR"), runtime_image(str(path), "BGR"))


WITHOUT_SCALE = {
    "float.tif": (pillow(GREY.astype(np.float32) / 255), "floating-point"),
    "float64.tif": (
        lambda p: encode.tiff(p, GREY.astype(np.float64), 64, sample_format=3),
        "cannot be read|no format",
    ),
    "int32.tif": (pillow(GREY.astype(np.int32) * 257), "32-bit or signed"),
    "uint32.tif": (lambda p: encode.tiff(p, GREY.astype(np.uint32), 32), "32-bit or signed"),
    "int16.tif": (lambda p: encode.tiff(p, GREY.astype(np.int16), 16, sample_format=2), "32-bit or signed"),
    "lab.tif": (pillow(COLOUR, "LAB"), "LAB"),
}


@pytest.mark.parametrize("name", WITHOUT_SCALE)
def test_images_without_a_scale_are_refused_by_name(tmp_path: Path, name: str) -> None:
    import re

    write, reason = WITHOUT_SCALE[name]
    write(tmp_path / name)
    for read in (lambda: read_image(tmp_path / name, "RGB"), lambda: image_size(tmp_path / name)):
        message = refusal(read)
        assert message.startswith(f"{tmp_path / name}: ")
        assert re.search(reason, message)


LABELS = {
    "1.png": (lambda p: encode.png(p, GREY % 2, 1), GREY % 2),
    "2.png": (lambda p: encode.png(p, FEW, 2), FEW),
    "4.png": (lambda p: encode.png(p, GREY % 16, 4), GREY % 16),
    "8.png": (pillow(GREY), GREY),
    "16.png": (lambda p: encode.png(p, SIXTEEN, 16), SIXTEEN),
    "palette1.png": (lambda p: encode.png(p, GREY % 2, 1, encode.PALETTE, TABLE[:2]), GREY % 2),
    "palette2.png": (lambda p: encode.png(p, FEW, 2, encode.PALETTE, TABLE), FEW),
    "palette4.png": (
        lambda p: encode.png(p, GREY % 16, 4, encode.PALETTE, np.tile(TABLE, (4, 1))),
        GREY % 16,
    ),
    "palette8.png": (paletted, FEW),
    "8.tif": (pillow(GREY), GREY),
    "4.tif": (lambda p: encode.tiff(p, GREY % 16, 4), GREY % 16),
    "12.tif": (lambda p: encode.tiff(p, SIXTEEN % 4096, 12), SIXTEEN % 4096),
    "16.tif": (pillow(SIXTEEN), SIXTEEN),
    "16big.tiff": (lambda p: encode.tiff(p, SIXTEEN, 16, order=">"), SIXTEEN),
    "int32.tif": (pillow(SIXTEEN.astype(np.int32)), SIXTEEN),
    "1.tif": (pillow(GREY % 2 * 255, "1", compression="group4"), GREY % 2),
    "palette.tif": (paletted, FEW),
    "8.bmp": (pillow(GREY), GREY),
    "1.bmp": (pillow(GREY % 2 * 255, "1"), GREY % 2),
    "palette.bmp": (paletted, FEW),
    "grey.webp": (pillow(GREY, lossless=True), GREY),
}


@pytest.mark.parametrize("name", LABELS)
def test_every_kind_of_label_map_keeps_its_numbers(tmp_path: Path, name: str) -> None:
    write, expected = LABELS[name]
    write(tmp_path / name)
    labels = read_labels(tmp_path / name)
    assert labels.dtype in (np.uint8, np.uint16)
    np.testing.assert_array_equal(labels, expected)
    assert label_size(tmp_path / name) == SIZE


REFUSED_LABELS = {
    "a.jpg": (pillow(FEW), "compressed with loss (JPEG)"),
    "jpeg inside.tif": (pillow(FEW, compression="jpeg"), "compressed with loss"),
    "lossy.webp": (pillow(FEW, quality=80), "compressed with loss"),
    "frames.webp": (
        pillow(FEW, quality=80, save_all=True, append_images=[Image.new("L", SIZE[::-1])]),
        "compressed with loss",
    ),
    "float.tif": (pillow(FEW.astype(np.float32)), "floating-point"),
    "negative.tif": (pillow(FEW.astype(np.int32) - 1), "label value -1 is no class number"),
    "colours.png": (pillow(COLOUR), "this one is RGB"),
    "colours.webp": (pillow(COLOUR, lossless=True), "this one is RGB"),
    "equal channels.png": (pillow(stacked(FEW)), "this one is RGB"),
    "alpha.png": (pillow(np.dstack([FEW, GREY])), "this one is LA"),
    "white.tif": (lambda p: encode.tiff(p, FEW, 8, white_is_zero=True), "counts from white down"),
}


@pytest.mark.parametrize("name", REFUSED_LABELS)
def test_label_maps_without_sure_numbers_are_refused_by_name(tmp_path: Path, name: str) -> None:
    write, reason = REFUSED_LABELS[name]
    write(tmp_path / name)
    message = refusal(lambda: read_labels(tmp_path / name))
    assert message.startswith(f"{tmp_path / name}: ")
    assert reason in message


def test_jpeg_is_known_by_its_content(tmp_path: Path) -> None:
    Image.fromarray(FEW).save(tmp_path / "a.png", format="JPEG")
    assert "compressed with loss (JPEG)" in refusal(lambda: read_labels(tmp_path / "a.png"))
    assert "compressed with loss (JPEG)" in refusal(lambda: read_label_colours(tmp_path / "a.png"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_equal_channels_count_as_grey_where_that_is_asked_for(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(GREY).convert(mode).save(path)
    np.testing.assert_array_equal(read_labels(path, equal_channels=True), GREY)
    image = Image.fromarray(GREY).convert("RGBA")
    image.putpixel((0, 0), (1, 1, 1, 254))
    image.save(path)
    assert "this one is RGBA" in refusal(lambda: read_labels(path, equal_channels=True))


def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.png")
    for read in (read_labels, image_size, file_mode, lambda path: read_image(path, "RGB")):
        assert "no regular file" in refusal(lambda read=read: read(tmp_path / "a.png"))


# -- Orientation: by NumPy, as the EXIF standard words it (where row 0 and column 0 of the stored image are shown)

TURN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}


def write_tagged(path: Path, array: np.ndarray, tag: int) -> Path:
    if path.suffix == ".tif":
        return encode.tiff(path, array, 8, orientation=tag)
    exif = Image.Exif()
    if tag > 1:
        exif[0x0112] = tag
    options = {"lossless": True} if path.suffix == ".webp" else {"quality": 100, "subsampling": 0}
    Image.fromarray(array).save(path, exif=exif, **({} if path.suffix == ".png" else options))
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("size", [(5, 7), (6, 6)])
@pytest.mark.parametrize("label_tag", range(1, 9))
@pytest.mark.parametrize("image_tag", range(1, 9))
def test_pairs_with_their_own_tags_are_turned_by_them(
    tmp_path: Path, image_tag: int, label_tag: int, size: tuple[int, int], suffix: str
) -> None:
    """What is seen upright is one and the same scene; each file is stored as its own tag says."""
    scene = np.random.default_rng(0).integers(0, 4, size).astype(np.uint8)
    stored = {}
    for tag in (image_tag, label_tag):
        undo = {6: 8, 8: 6}.get(tag, tag)
        stored[tag] = np.ascontiguousarray(TURN[undo](scene))
        np.testing.assert_array_equal(TURN[tag](stored[tag]), scene)
    image = write_tagged(tmp_path / f"i.{suffix}", stored[image_tag] * 60, image_tag)
    label = write_tagged(tmp_path / f"l.{suffix}", stored[label_tag], label_tag)
    shown = read_image(image, "RGB")
    np.testing.assert_array_equal(shown[..., 0], scene * 60)
    assert image_size(image) == size
    assert label_size(label) == size
    np.testing.assert_array_equal(read_labels(label), scene)
    np.testing.assert_array_equal(read_labels(label, image, size), scene)
    np.testing.assert_array_equal(read_labels(label, image), scene)
    np.testing.assert_array_equal(read_label_colours(label, image)[..., 0], scene)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_label_without_a_tag_is_turned_where_the_sizes_say_so(tmp_path: Path, tag: int, suffix: str) -> None:
    stored = np.random.default_rng(0).integers(0, 4, (8, 16)).astype(np.uint8)
    image = write_tagged(tmp_path / f"i.{suffix}", stored * 60, tag)
    size = TURN[tag](stored).shape
    # Drawn on the upright image: as it is. Drawn on the stored one: turned with it, if the size shows it.
    Image.fromarray(np.ascontiguousarray(TURN[tag](stored))).save(tmp_path / "upright.png")
    Image.fromarray(stored).save(tmp_path / "stored.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "upright.png", image, size), TURN[tag](stored))
    expected = TURN[tag](stored) if tag >= 5 else stored
    np.testing.assert_array_equal(read_labels(tmp_path / "stored.png", image, size), expected)
    np.testing.assert_array_equal(read_labels(tmp_path / "stored.png", image), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("tag", range(5, 9))
def test_tag_of_a_label_that_its_image_lacks_is_passed_over_where_the_sizes_say_so(
    tmp_path: Path, tag: int, suffix: str
) -> None:
    stored = np.random.default_rng(0).integers(0, 4, (5, 7)).astype(np.uint8)
    image = write_tagged(tmp_path / "i.png", stored * 60, 1)
    label = write_tagged(tmp_path / f"l.{suffix}", stored, tag)
    np.testing.assert_array_equal(read_labels(label, image, stored.shape), stored)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("tag", [1, 3, 6])
def test_exif_data_count_wherever_a_png_has_them(tmp_path: Path, tag: int, place: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    part = {place: encode.chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))}
    path = encode.png(tmp_path / "a.png", GREY, 8, **part)
    shown = TURN[tag](GREY)
    np.testing.assert_array_equal(read_image(path, "RGB")[..., 0], shown)
    np.testing.assert_array_equal(runtime_image(str(path), "L")[..., 0], shown)
    assert image_size(path) == shown.shape


def test_orientation_of_xmp_data_counts_as_for_the_runtime(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    path = tmp_path / "a.jpg"
    Image.fromarray(COLOUR).save(path, xmp=xmp)
    np.testing.assert_array_equal(read_image(path, "RGB"), runtime_image(str(path), "RGB"))
    assert image_size(path) == read_image(path, "RGB").shape[:2] == SIZE[::-1]


def test_broken_exif_data_do_not_spoil_an_image(tmp_path: Path) -> None:
    path = encode.png(tmp_path / "a.png", GREY, 8, before=encode.chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"))
    np.testing.assert_array_equal(read_image(path, "RGB")[..., 0], GREY)
    assert image_size(path) == SIZE
