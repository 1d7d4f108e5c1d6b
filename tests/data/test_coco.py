"""COCO's annotation files of every exporter are read right or refused in one line, and nothing of the user's is written to."""

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data import register_semantic_dataset
from hicl_d2.data.coco import _lengths, draw_coco
from hicl_d2.data.datasets.registry import load_records
from hicl_d2.reading import read_labels
from tests.test_reading import refusal

NAME, H, W = "coco_test", 24, 32
LEFT = [[0, 0, 16, 0, 16, H, 0, H]]
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 11, "name": "other"}]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def image(path: Path, size: tuple[int, int] = (H, W)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def entry(number: Any, name: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": H, "width": W, **more}


def annotation(image_id: Any, category: Any, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": image_id, "category_id": category, "segmentation": segmentation, **more}


def content(**changes: Any) -> dict[str, Any]:
    """One image, whose left half is a cat."""
    found = {"images": [entry(1, "x.png")], "annotations": [annotation(1, 7, LEFT)], "categories": CATEGORIES}
    return {**copy.deepcopy(found), **changes}


def load(
    root: Path, written: Any, classes: tuple[str, ...] = ("cat", "dog"), **options: Any
) -> dict[str, np.ndarray]:
    """Return the label maps by the images' paths."""
    (root / "a.json").write_text(written if isinstance(written, str) else json.dumps(written))
    register_semantic_dataset(NAME, root / "images", root / "a.json", classes, **options)
    return {
        os.path.relpath(r["file_name"], root): read_labels(r["sem_seg_file_name"]) for r in load_records(NAME)
    }


def counts(labels: np.ndarray) -> dict[int, int]:
    values, found = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), found.tolist(), strict=True))


HALF = {0: H * W // 2, 255: H * W // 2}


# ----------------------------------------------------------------------------------------------------------------------
# What is read right


def test_two_files_of_one_stem_have_their_own_labels(tmp_path: Path) -> None:
    images = [entry(1, "x.png"), entry(2, "x.jpg"), entry(3, "s/x.png")]
    for each in images:
        image(tmp_path / "images" / each["file_name"])
    annotations = [
        annotation(1, 7, LEFT),
        annotation(2, 9, LEFT),
        annotation(3, 9, [[0, 0, W, 0, W, H, 0, H]]),
    ]
    found = load(tmp_path, content(images=images, annotations=annotations))
    assert counts(found["images/x.png"]) == HALF
    assert counts(found["images/x.jpg"]) == {1: HALF[0], 255: HALF[0]}
    assert counts(found["images/s/x.png"]) == {1: H * W}
    assert len({record["image_id"] for record in load_records(NAME)}) == 3


def test_two_categories_of_one_name_are_one_class(tmp_path: Path) -> None:
    image(tmp_path / "images/x.png")
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}]
    annotations = [annotation(1, 1, LEFT), annotation(1, 2, [[16, 0, 24, 0, 24, H, 16, H]])]
    found = load(tmp_path, content(categories=categories, annotations=annotations))
    assert counts(found["images/x.png"]) == {0: 24 * H, 255: 8 * H}


@pytest.mark.parametrize(
    ("image_ids", "category_ids"),
    [
        ((1, "1"), (7, "7")),
        (("1", 1), ("7", 7)),
        (("a-1", "a-1"), ("k", "k")),
        ((1.0, 1), (7, 7.0)),
        ((0, "00"), (-1, "-1")),
    ],
)
def test_ids_may_be_text_or_numbers(
    tmp_path: Path, image_ids: tuple[Any, Any], category_ids: tuple[Any, Any]
) -> None:
    image(tmp_path / "images/x.png")
    categories = [{"id": category_ids[0], "name": "cat"}, {"id": "z", "name": "dog"}]
    written = content(
        images=[entry(image_ids[0], "x.png")],
        annotations=[annotation(image_ids[1], category_ids[1], LEFT)],
        categories=categories,
    )
    assert counts(load(tmp_path, written)["images/x.png"]) == HALF


def test_a_category_that_is_no_class_is_left_out_whatever_its_annotation(tmp_path: Path) -> None:
    image(tmp_path / "images/x.png")
    annotations = [annotation(1, 7, LEFT), annotation(1, 11, None, bbox=[0, 0, 4, 4])]
    assert counts(load(tmp_path, content(annotations=annotations))["images/x.png"]) == HALF


def test_the_background_need_be_no_category(tmp_path: Path) -> None:
    image(tmp_path / "images/x.png")
    categories = [{"id": 7, "name": "cat"}]
    found = load(tmp_path, content(categories=categories), ("floor", "cat"), background="floor")
    assert counts(found["images/x.png"]) == {0: H * W // 2, 1: H * W // 2}


@pytest.mark.parametrize(("background", "pixels"), [("", "ignored"), ("dog", "dog")])
def test_objects_of_no_class_are_told_once(
    tmp_path: Path, background: str, pixels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image(tmp_path / "images/x.png")
    annotations = [annotation(1, 7, LEFT), annotation(1, 11, LEFT), annotation(1, 11, LEFT)]
    load(tmp_path, content(annotations=annotations), background=background)
    load_records(NAME)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"2 annotations of 1 category that is no class (other): these pixels are {pixels}" in line


def test_names_of_categories_may_be_numbers_and_classes_text(tmp_path: Path) -> None:
    image(tmp_path / "images/x.png")
    written = content(categories=[{"id": 7, "name": 0}, {"id": 9, "name": "1"}])
    found = load(tmp_path, written, ("0", "1"), background="1")
    assert counts(found["images/x.png"]) == {0: HALF[0], 1: HALF[0]}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.ravel()
    ends = [*np.flatnonzero(np.diff(flat)) + 1, len(flat)]
    lengths = np.diff([0, *ends]).tolist()
    return {"size": list(mask.shape), "counts": [0, *lengths] if flat[0] else lengths}


def masks() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    shapes = [(1, 1), (1, 9), (9, 1), (24, 32), (57, 43), (300, 200)]
    random = [generator.random(shape) < share for shape in shapes for share in (0, 0.1, 0.5, 1)]
    return [*random, np.kron(generator.random((30, 4)) < 0.5, np.ones((30, 500))).astype(bool)]


def test_run_lengths_are_the_library_s_in_every_form() -> None:
    for mask in masks():
        code = compressed(mask)
        assert _lengths(code["counts"]) == coco_lengths(code)
        for segmentation in (code, uncompressed(mask), {**uncompressed(mask), "counts": coco_lengths(code)}):
            found = draw_coco(mask.shape, [(5, segmentation)], 9, "x")
            np.testing.assert_array_equal(found, np.where(mask, 5, 9))


def coco_lengths(code: dict[str, Any]) -> list[int]:
    """Return the runs of a mask that the library decoded, counted one pixel after another."""
    lengths, last = [0], 0
    for pixel in coco_mask.decode(code).T.ravel().tolist():
        if pixel != last:
            lengths.append(0)
            last = pixel
        lengths[-1] += 1
    return lengths


def inside_and_distance(corners: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each pixel's centre whether it lies in the outline (even-odd rule), and how far it is from the outline."""
    y, x = np.mgrid[:height, :width] + 0.5
    is_inside, distance = np.zeros(x.shape, bool), np.full(x.shape, np.inf)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        crosses = (y0 > y) != (y1 > y)
        is_inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1)
        distance = np.minimum(distance, np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)))
    return is_inside, distance


@pytest.mark.parametrize("beyond", [0, 1, 10, 60, 120])
def test_polygons_cover_what_lies_inside_whatever_sticks_out(beyond: float) -> None:
    """On the outline itself rasterisers may differ by a pixel."""
    generator = np.random.default_rng(1)
    for _ in range(100):
        corners = generator.uniform(-beyond, 40 + beyond, (generator.integers(3, 7), 2))
        segmentation: Any = corners.ravel().tolist()
        found = draw_coco((40, 50), [(1, [segmentation])], 0, "x").astype(bool)
        is_inside, distance = inside_and_distance(corners, 40, 50)
        np.testing.assert_array_equal(found[distance > 1.5], is_inside[distance > 1.5])


@pytest.mark.parametrize(
    "segmentation",
    [
        LEFT,
        LEFT[0],
        [*LEFT, []],
        [[str(v) for v in LEFT[0]]],
        [[0, 0, 8, 0, 8, H, 0, H], [8, 0, 16, 0, 16, H, 8, H]],
    ],
)
@pytest.mark.parametrize("is_crowd", [0, 1])
def test_polygons_in_every_form(tmp_path: Path, segmentation: Any, is_crowd: int) -> None:
    image(tmp_path / "images/x.png")
    written = content(annotations=[annotation(1, 7, segmentation, iscrowd=is_crowd)])
    assert counts(load(tmp_path, written)["images/x.png"]) == HALF


def test_an_object_without_extent_covers_nothing(tmp_path: Path) -> None:
    image(tmp_path / "images/x.png")
    annotations = [annotation(1, 7, LEFT), annotation(1, 9, [], bbox=[3, 3, 0, 0])]
    assert counts(load(tmp_path, content(annotations=annotations))["images/x.png"]) == HALF


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    image(tmp_path / "images/x.png")
    assert counts(load(tmp_path, "\ufeff" + json.dumps(content()))["images/x.png"]) == HALF


# ----------------------------------------------------------------------------------------------------------------------
# What is refused


WRONG: dict[str, tuple[dict[str, Any] | Any, str]] = {
    "one id for two images": (
        content(images=[entry(1, "x.png"), entry(1, "y.png")]),
        r"images\[1\] \(id 1\) has the id of .*x.png",
    ),
    "one id, as number and text": (
        content(images=[entry(1, "x.png"), entry("01", "y.png")]),
        "has the id of",
    ),
    "one file for two ids": (
        content(images=[entry(1, "x.png"), entry(2, "x.png")]),
        "as the image with the id 1 is",
    ),
    "one file, spelled otherwise": (
        content(images=[entry(1, "x.png"), entry(2, "./s/../x.png")]),
        "as the image with the id 1 is",
    ),
    "one id for two categories": (
        content(categories=[{"id": 7, "name": "cat"}, {"id": "7", "name": "dog"}]),
        r"categories\[1\] \(id '7'\) is called dog, but cat has this id too",
    ),
    "no id": (content(images=[{"file_name": "x.png", "height": H, "width": W}]), r"images\[0\] has no id"),
    "an id that is nothing": (content(images=[entry(None, "x.png")]), "has the id None"),
    "an id that is a list": (content(annotations=[annotation([1], 7, LEFT)]), r"has the image_id \[1\]"),
    "an id that is a boolean": (content(annotations=[annotation(True, 7, LEFT)]), "has the image_id True"),
    "an id that is no number": (
        content(annotations=[annotation(float("nan"), 7, LEFT)]),
        "has the image_id nan",
    ),
    "no file name": (content(images=[{"id": 1, "height": H, "width": W}]), "has the file_name None"),
    "a file name that is no text": (content(images=[entry(1, 5)]), "has the file_name 5"),  # type: ignore[arg-type]
    "a file name with a zero": (content(images=[entry(1, "x\0.png")]), "has the file_name"),
    "no height": (
        content(images=[{"id": 1, "file_name": "x.png", "width": W}]),
        "has the height None and the width 32",
    ),
    "sizes of VIA": (
        content(images=[entry(1, "x.png", height=-1, width=-1)]),
        "has the height -1 and the width -1",
    ),
    "a size of text": (content(images=[entry(1, "x.png", height="24")]), "has the height '24'"),
    "a size that is a share": (content(images=[entry(1, "x.png", height=24.5)]), "has the height 24.5"),
    "a size that is infinite": (
        content(images=[entry(1, "x.png", height=float("inf"))]),
        "has the height inf",
    ),
    "another size": (
        content(images=[entry(1, "x.png", height=W, width=H)]),
        r"x.png is 24 x 32, but .*a.json says 32 x 24",
    ),
    "a huge size": (
        content(images=[entry(1, "x.png", height=10**9, width=10**9)]),
        r"x.png is 24 x 32, but .* says 1000000000",
    ),
    "no image": (
        content(images=[entry(1, "y.png"), entry(2, "z.png")]),
        r"no file for 2 of 2 images, the first is .*y.png",
    ),
    "an image that is elsewhere": (
        content(annotations=[annotation(5, 7, LEFT)]),
        r"annotations\[0\] \(id 1\) names image 5",
    ),
    "no category_id": (
        content(annotations=[{"image_id": 1, "segmentation": LEFT}]),
        r"annotations\[0\] has no category_id",
    ),
    "an unknown category_id": (
        content(annotations=[annotation(1, 8, LEFT)]),
        "has the category_id 8, but there are the categories 11, 7, 9",
    ),
    "a class that is no category": (
        content(categories=[{"id": 7, "name": "cats"}]),
        "has no category 'cat'; did you mean cats",
    ),
    "a category without a name": (
        content(categories=[{"id": 7}]),
        r"categories\[0\] \(id 7\) has the name None",
    ),
    "a box alone": (
        content(annotations=[annotation(1, 7, [], bbox=[0, 0, 4, 4])]),
        "has no segmentation, and a box",
    ),
    "a box alone, in another form": (
        content(annotations=[annotation(1, 7, [[]], bbox=[0, 0, 4, 4])]),
        "has no segmentation",
    ),
    "no segmentation": (content(annotations=[annotation(1, 7, None)]), "has no segmentation"),
    "a segmentation of text": (content(annotations=[annotation(1, 7, "x")]), "a segmentation cannot be read"),
    "an odd polygon": (
        content(annotations=[annotation(1, 7, [[0, 0, 4, 0, 4, 4, 0]])]),
        "three corners or more",
    ),
    "a box as polygon": (content(annotations=[annotation(1, 7, [[0, 0, 4, 4]])]), "three corners or more"),
    "a polygon with nothing in it": (
        content(annotations=[annotation(1, 7, [[0, 0, 4, None, 4, 4]])]),
        "far outside, or none",
    ),
    "a polygon of points": (
        content(annotations=[annotation(1, 7, [[[0, 0], [4, 0], [4, 4]]])]),
        "three corners or more",
    ),
    "a polygon of sections": (
        content(annotations=[annotation(1, 7, [[{"x": 1}] * 6])]),
        "three corners or more",
    ),
    "a polygon without end": (
        content(annotations=[annotation(1, 7, [[0, 0, float("inf"), 0, 4, 4]])]),
        "far outside",
    ),
    "a polygon far away": (content(annotations=[annotation(1, 7, [[0, 0, 1e9, 0, 4, 4]])]), "far outside"),
    "shares": (
        content(annotations=[annotation(1, 7, [[0.1, 0.1, 0.5, 0.1, 0.5, 0.9]])]),
        "lie between 0 and 1",
    ),
    "another image's code": (
        content(annotations=[annotation(1, 7, {"size": [64, 64], "counts": "0"})]),
        r"x.png is \(24, 32\), but a segmentation of it \[64, 64\]",
    ),
    "a code without size": (
        content(annotations=[annotation(1, 7, {"counts": [H * W]})]),
        "but a segmentation of it None",
    ),
    "a code that is too short": (
        content(annotations=[annotation(1, 7, {"size": [H, W], "counts": [5, 5]})]),
        "its run lengths are 10 pixels, the image has 768",
    ),
    "a code that is too long": (
        content(annotations=[annotation(1, 7, {"size": [H, W], "counts": [0, 10**12]})]),
        "its run lengths are 1000000000000 pixels",
    ),
    "a code below zero": (
        content(annotations=[annotation(1, 7, {"size": [H, W], "counts": [H * W + 5, -5]})]),
        "no run lengths",
    ),
    "a code of shares": (
        content(annotations=[annotation(1, 7, {"size": [H, W], "counts": [H * W / 1]})]),
        "no run lengths",
    ),
    "a code without counts": (content(annotations=[annotation(1, 7, {"size": [H, W]})]), "no run lengths"),
    "a compressed code of other letters": (
        content(annotations=[annotation(1, 7, {"size": [H, W], "counts": "é~"})]),
        "no run lengths",
    ),
    "a compressed code that is cut off": (
        content(annotations=[annotation(1, 7, {"size": [H, W], "counts": "o"})]),
        "no run lengths",
    ),
    "a compressed code that is too long": (
        content(annotations=[annotation(1, 7, {"size": [H, W], "counts": "oooooooooooooo0"})]),
        "run lengths",
    ),
    "images that are no list": (content(images={"1": "x.png"}), "images must be a list, not a dict"),
    "annotations that are nothing": (content(annotations=None), "annotations must be a list, not a NoneType"),
    "an entry that is a number": (content(annotations=[3]), r"annotations\[0\] must be an object, not 3"),
    "a list": ([1, 2], "has no annotations, categories, images; is it a COCO annotation file"),
    "nothing": ("", "no COCO annotations can be read"),
    "text": ("{", "no COCO annotations can be read"),
    "depth": ("[" * 100_000, "no COCO annotations can be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_right_is_one_line(tmp_path: Path, case: str) -> None:
    image(tmp_path / "images/x.png")
    before = files(tmp_path)
    written, message = WRONG[case]
    said = refusal(lambda: load(tmp_path, written))
    assert re.search(message, said), said
    assert "\n" not in said
    assert len(said) < 700
    assert files(tmp_path, but="a.json") == before


def files(root: Path, but: str = "") -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != but
    }


# ----------------------------------------------------------------------------------------------------------------------
# Nothing but our own folder is written to


def _absolute(root: Path) -> str:
    return str(root / "photos/x.png")


OUTSIDE: dict[str, Callable[[Path], str]] = {
    "absolute": _absolute,
    "upward": lambda root: "../photos/x.png",
    "upward through the cache": lambda root: "../../photos/x.png",
    "upward from a folder": lambda root: "s/../../photos/x.png",
    "doubled": lambda root: "..//photos/./x.png",
    "through a link": lambda root: "link/x.png",
}


@pytest.mark.parametrize("way", OUTSIDE)
@pytest.mark.parametrize("is_older", [False, True])
def test_an_image_outside_is_read_and_never_written(tmp_path: Path, way: str, is_older: bool) -> None:
    root = tmp_path / "data"
    (root / "images/s").mkdir(parents=True)
    photos = [
        image(tmp_path / "photos/x.png"),
        image(root / "photos/x.png"),
        image(root / "a.json.classes/photos/x.png"),
    ]
    (root / "images/link").symlink_to(root / "photos")
    for photo in photos:
        os.utime(photo, (0, 0) if is_older else None)
    before = {photo: (photo.read_bytes(), photo.stat().st_mtime_ns) for photo in photos}
    found = load(root, content(images=[entry(1, OUTSIDE[way](root))]))
    (labels,) = found.values()
    assert counts(labels) == HALF
    assert {photo: (photo.read_bytes(), photo.stat().st_mtime_ns) for photo in photos} == before
    (record,) = load_records(NAME)
    target = Path(record["sem_seg_file_name"])
    assert target.is_relative_to(root / "a.json.classes")
    assert ".." not in target.parts
    assert ".." not in Path(record["image_id"]).parts
    assert not Path(record["image_id"]).is_absolute()
    written = {p for p in tmp_path.rglob("*") if p.is_file()} - set(photos) - {root / "a.json"}
    assert written == {target}


@pytest.mark.parametrize("place", ["cache", "folder", "file"])
def test_links_in_the_place_of_ours_are_not_followed(tmp_path: Path, place: str) -> None:
    image(tmp_path / "images/x.png")
    load(tmp_path, content())
    target = Path(load_records(NAME)[0]["sem_seg_file_name"])
    photo = image(tmp_path / "photos" / target.name)
    before = photo.read_bytes()
    cache = tmp_path / "a.json.classes"
    target.unlink()
    if place == "file":
        target.symlink_to(photo)
    elif place == "folder":
        target.parent.rmdir()
        target.parent.symlink_to(photo.parent)
    else:
        target.parent.rmdir()
        cache.rmdir()
        cache.symlink_to(photo.parent)
    if place == "file":
        assert counts(load(tmp_path, content())["images/x.png"]) == HALF
        assert not target.is_symlink()
    else:
        assert "symbolic link" in refusal(lambda: load(tmp_path, content()))
    assert photo.read_bytes() == before
    assert sorted(p.name for p in photo.parent.iterdir()) == [photo.name]


@pytest.mark.parametrize(
    "name",
    [
        "x" * 250 + ".png",
        "日" * 80 + ".png",
        "a b.c.d.png",
        ".hidden.png",
        "x.jpg.png",
        "-rf.png",
        "a\nb.png",
    ],
)
def test_names_of_images_may_be_anything_that_the_disk_takes(tmp_path: Path, name: str) -> None:
    image(tmp_path / "images" / name)
    assert counts(load(tmp_path, content(images=[entry(1, name)]))[f"images/{name}"]) == HALF


# ----------------------------------------------------------------------------------------------------------------------
# The cache


def test_folders_whose_names_differ_after_a_dot_have_their_own_cache(tmp_path: Path) -> None:
    for version, colours in (("v1.0", (0, 1)), ("v1.1", (1, 0))):
        image(tmp_path / "images/x.png")
        pixels = np.zeros((H, W, 3), np.uint8)
        pixels[:, :8] = 9
        path = tmp_path / version / "x.png"
        path.parent.mkdir()
        Image.fromarray(pixels if colours[0] else 9 - pixels).save(path)
    for cache in ("", "cache"):
        found = {}
        for version in ("v1.0", "v1.1", "v1.0"):
            register_semantic_dataset(
                NAME, tmp_path / "images", tmp_path / version, ["a", "b"], colours=[(0, 0, 0), (9, 9, 9)],
                cache_dir=tmp_path / cache if cache else "",
            )  # fmt: skip
            found[version] = counts(read_labels(load_records(NAME)[0]["sem_seg_file_name"]))
        assert found == {"v1.0": {0: 8 * H, 1: 24 * H}, "v1.1": {0: 24 * H, 1: 8 * H}}


def test_annotations_beside_a_folder_of_the_same_stem_have_their_own_cache(tmp_path: Path) -> None:
    image(tmp_path / "images/x.png")
    load(tmp_path, content())
    first = load_records(NAME)[0]["sem_seg_file_name"]
    (tmp_path / "a").mkdir()
    pixels = np.zeros((H, W, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a/x.png")
    register_semantic_dataset(
        NAME, tmp_path / "images", tmp_path / "a", ["a", "b"], colours=[(0, 0, 0), (9, 9, 9)]
    )
    second = load_records(NAME)[0]["sem_seg_file_name"]
    assert Path(first).parents[1] != Path(second).parents[1]
    assert (counts(read_labels(first)), counts(read_labels(second))) == (HALF, {0: H * W})


@pytest.mark.parametrize("age", [-1000, 0.000001, 1000])
def test_annotations_that_take_the_place_of_others_are_read_also_if_they_are_older(
    tmp_path: Path, age: float
) -> None:
    image(tmp_path / "images/x.png")
    assert counts(load(tmp_path, content())["images/x.png"]) == HALF
    stamp = (tmp_path / "a.json").stat().st_mtime_ns
    kept = load_records(NAME)[0]["sem_seg_file_name"]
    inode = os.stat(kept).st_ino
    load_records(NAME)
    assert os.stat(kept).st_ino == inode  # nothing changed: nothing is made again
    (tmp_path / "a.json").write_text(json.dumps(content(annotations=[annotation(1, 9, LEFT)])))
    os.utime(tmp_path / "a.json", ns=(stamp + int(age * 1e9),) * 2)
    assert counts(read_labels(load_records(NAME)[0]["sem_seg_file_name"])) == {1: HALF[0], 255: HALF[0]}
