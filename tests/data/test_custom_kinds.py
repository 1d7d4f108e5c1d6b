"""Folders, names, values and palettes as people have them: each is read as it is meant, or refused in one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data import register_semantic_dataset
from hicl_d2.data.datasets.registry import load_records
from hicl_d2.reading import read_labels
from tests.support import encode
from tests.test_reading import refusal

NAME = "kinds_test"
SIZE = (8, 12)
CLASSES = ["road", "building", "tree"]
COLOURS = [(128, 64, 128), (70, 70, 70), (107, 142, 35)]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    yield tmp_path
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def scene(number: int, classes: int = 3) -> np.ndarray:
    generator = np.random.default_rng(number)
    return np.kron(generator.integers(0, classes, (2, 3)), np.ones((4, 4), dtype=int)).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".webp":
        options["lossless"] = True
    Image.fromarray(array).save(path, **options)
    return path


def save_image(path: Path) -> Path:
    return save(path, np.zeros((*SIZE, 3), dtype=np.uint8))


def register(images: str = "images", masks: str = "masks", **arguments: Any) -> None:
    register_semantic_dataset(NAME, images, masks, arguments.pop("classes", CLASSES), **arguments)


def loaded() -> dict[str, np.ndarray]:
    records = load_records(NAME)
    labelled = [record for record in records if "sem_seg_file_name" in record]
    return {r["image_id"]: read_labels(r["sem_seg_file_name"], r["file_name"]) for r in labelled}


def check_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(expected)
    for name, labels in expected.items():
        np.testing.assert_array_equal(found[name], labels, err_msg=name)


# -- Files


@pytest.mark.parametrize("mask", [".png", ".tif", ".tiff", ".bmp", ".webp", ".PNG", ".TIF"])
@pytest.mark.parametrize(
    "image", [".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".JPG", ".Tiff"]
)
def test_every_suffix_is_paired(root: Path, image: str, mask: str) -> None:
    for stem in ("a", "sub/b"):
        save_image(root / f"images/{stem}{image}")
        save(root / f"masks/{stem}{mask}", scene(len(stem)))
    register()
    check_equal(loaded(), {"a": scene(1), "sub/b": scene(5)})


@pytest.mark.parametrize("label_ending", ["_mask", "-label", ".seg"])
def test_masks_lie_beside_images(root: Path, label_ending: str) -> None:
    for number, stem in enumerate(("x", "sub/y", "z_mask_2")):
        save_image(root / f"all/{stem}.{'png' if number else 'jpg'}")
        save(root / f"all/{stem}{label_ending}.png", scene(number))
    register("all", "all", label_ending=label_ending)
    check_equal(loaded(), {"x": scene(0), "sub/y": scene(1), "z_mask_2": scene(2)})


def test_masks_lie_beside_images_with_an_ending(root: Path) -> None:
    for number, stem in enumerate(("x", "y")):
        save_image(root / f"all/{stem}_image.png")
        save(root / f"all/{stem}.png", scene(number))
    register("all", "all", image_ending="_image")
    check_equal(loaded(), {"x": scene(0), "y": scene(1)})


def test_jpegs_and_masks_of_one_name_lie_in_one_folder(root: Path) -> None:
    for number, stem in enumerate(("x", "y")):
        save_image(root / f"all/{stem}.jpg")
        save(root / f"all/{stem}.png", scene(number))
    register("all", "all")
    check_equal(loaded(), {"x": scene(0), "y": scene(1)})


def test_an_ending_that_was_not_given_is_pointed_out(root: Path) -> None:
    save_image(root / "images/x.jpg")
    save(root / "masks/x_mask.png", scene(0))
    register()
    message = refusal(lambda: load_records(NAME))
    assert "(x_mask.png is there: give LABEL_ENDING '_mask' if it belongs to it)" in message


@pytest.mark.parametrize(("images", "masks"), [("all", "all/masks"), ("all/images", "all")])
def test_one_folder_lies_in_the_other(root: Path, images: str, masks: str) -> None:
    """Also with a folder of converted masks among them, the second time."""
    for number, stem in enumerate(("x", "y")):
        save_image(root / images / f"{stem}.png")
        save(root / masks / f"{stem}.png", scene(number) + 1)
    register(images, masks, label_values=[1, 2, 3], cache_dir="all/cache")
    for _ in range(2):
        check_equal(loaded(), {"x": scene(0), "y": scene(1)})


def test_files_of_systems_are_passed_over(root: Path) -> None:
    save_image(root / "images/x.jpg")
    save(root / "masks/x.png", scene(0))
    for folder in ("images", "masks"):
        for name in (
            "._x.jpg",
            "._x.png",
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            "@eaDir/x.png",
            "__MACOSX/x.jpg",
        ):
            path = root / folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no image")
        (root / folder / ".thumbnails").mkdir()
        (root / folder / ".thumbnails/t.png").write_bytes(b"no image")
    register()
    check_equal(loaded(), {"x": scene(0)})


@pytest.mark.parametrize("others", [True, False])
def test_jpeg_masks_are_refused_because_they_are_lossy(root: Path, others: bool) -> None:
    for number, stem in enumerate(("x", "y")):
        save_image(root / f"images/{stem}.jpg")
        suffix = "png" if others and number == 0 else "jpg"
        save(root / f"masks/{stem}.{suffix}", scene(number))
    register()
    message = refusal(lambda: load_records(NAME))
    assert "is a JPEG, whose compression changes class numbers; save label maps as PNG" in message


LISTS = {
    "stems": "x\nsub/y\n",
    "with suffixes and windows lines": "\ufeffx.jpg\r\nsub/y.jpg\r\n\r\n",
    "with the folder": "images/x.jpg\nimages/sub/y.jpg",
    "with columns": "x.jpg x.png\nsub/y\t1\n",
    "with the masks": "x masks/x.png\nsub/y.jpg masks/sub/y.png\n",
    "with masks of an ending": "x masks/x_mask.png\nsub/y masks/sub/ymask.png\n",
    "with comments and backslashes": "# train\n./x\nsub\\y.jpg\n",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_a_list_chooses_the_split(root: Path, text: str) -> None:
    for number, stem in enumerate(("x", "sub/y", "other", "sub/x")):
        save_image(root / f"images/{stem}.jpg")
        if stem != "other":  # of what is not listed, nothing is asked
            save(root / f"masks/{stem}.png", scene(number))
    (root / "train.txt").write_bytes(text.encode())
    register(list_file="train.txt")
    check_equal(loaded(), {"x": scene(0), "sub/y": scene(1)})
    (root / "train.txt").write_text(f"{root}/images/x.jpg\n{root}/images/sub/y.jpg\n")
    check_equal(loaded(), {"x": scene(0), "sub/y": scene(1)})


def test_a_list_names_images_with_their_ending(root: Path) -> None:
    save_image(root / "all/a b_img.jpg")
    save(root / "all/a b_mask.png", scene(0))
    (root / "train.txt").write_text("a b_img.jpg\n")
    register("all", "all", image_ending="_img", label_ending="_mask", list_file="train.txt")
    check_equal(loaded(), {"a b": scene(0)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\nxx\n", "for 1 of 2 names in its list, the first is"),
        ("x\nx.jpg\n", "names {root}/images/x.jpg twice"),
        ("x\nx\n", "names x twice"),
        ("# nothing\n", "names no image"),
        ("town/x\n", "for 1 of 1 name in its list, the first is"),
        ("x (2).jpg\n", "for 1 of 1 name in its list, the first is x (2).jpg"),
        ("x 1.PNG\n", "for 1 of 1 name in its list, the first is x 1.PNG"),
        ("1 (1).jpg\n", "for 1 of 1 name in its list, the first is 1 (1).jpg"),
        ("1 11.jpg\n", "for 1 of 1 name in its list, the first is 1 11.jpg"),
        ("x.1 (2).jpg\n", "for 1 of 1 name in its list, the first is x.1 (2).jpg"),
        (None, "cannot be read"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(root: Path, text: str | None, message: str) -> None:
    for stem in ("x", "1", "x.1"):
        save_image(root / f"images/{stem}.jpg")
        save(root / f"masks/{stem}.png", scene(0))
    if text is not None:
        (root / "train.txt").write_text(text)
    register(list_file="train.txt")
    assert message.format(root=root) in refusal(lambda: load_records(NAME))


def test_images_without_a_mask_are_an_option(root: Path) -> None:
    save_image(root / "images/x.jpg")
    save_image(root / "images/y.jpg")
    save(root / "masks/x.png", scene(0))
    register()
    assert "no label map for 1 of 2 files" in refusal(lambda: load_records(NAME))
    register(unlabelled="skip")
    assert [record["image_id"] for record in load_records(NAME)] == ["x"]
    register(unlabelled="keep")
    assert [sorted(record) for record in load_records(NAME)] == [
        ["file_name", "image_id", "sem_seg_file_name"],
        ["file_name", "image_id"],
    ]
    register(unlabelled="tree")
    check_equal(loaded(), {"x": scene(0), "y": np.full(SIZE, 2)})
    assert not list((root / "masks").glob("y*"))
    message = refusal(lambda: register(unlabelled="bush"))
    assert "UNLABELLED is 'bush'; it is skip, keep or the name of a class" in message


# -- Values

BINARY = {
    "0 and 255": (lambda t: (t * 255).astype(np.uint8), {"label_values": {0: "back", 255: "thing"}}),
    "0 and 255 as a list": (lambda t: (t * 255).astype(np.uint8), {"label_values": [0, 255]}),
    "text keys, as a config has them": (
        lambda t: (t * 255).astype(np.uint8),
        {"label_values": {"0": "back", "255": "thing"}},
    ),
    "reversed": (lambda t: ((1 - t) * 255).astype(np.uint8), {"label_values": [255, 0]}),
    "16 bits": (lambda t: t.astype(np.uint16) * 65535, {"label_values": [0, 65535]}),
    "equal channels": (
        lambda t: np.repeat((t * 255).astype(np.uint8)[..., None], 3, axis=2),
        {"label_values": [0, 255]},
    ),
    "with colours for pictures": (
        lambda t: (t * 255).astype(np.uint8),
        {"label_values": [0, 255], "colours": [(255, 0, 0), (0, 0, 255)]},
    ),
    "1 bit": (lambda t: t.astype(bool), {}),
    "1 bit among 0 and 255": (lambda t: t.astype(bool), {"label_values": [0, 255]}),
    "black and white as colours": (
        lambda t: (t * 255).astype(np.uint8),
        {"colours": [(0, 0, 0), (255, 255, 255)]},
    ),
    "0 is no class": (lambda t: (t + 1).astype(np.uint8), {"ignore": 0}),
}


@pytest.mark.parametrize("kind", BINARY)
def test_masks_of_two_classes_are_what_was_meant(root: Path, kind: str) -> None:
    write, arguments = BINARY[kind]
    for number in range(3):
        save_image(root / f"images/{number}.png")
        save(root / f"masks/{number}.png", write(scene(number, 2)))
    register(classes=["back", "thing"], **arguments)
    check_equal(loaded(), {str(number): scene(number, 2) for number in range(3)})
    assert MetadataCatalog.get(NAME).ignore_label == 255


def test_values_share_a_class_and_are_ignored(root: Path) -> None:
    save_image(root / "images/x.png")
    save(root / "masks/x.png", np.array([[0, 10, 11, 20, 99, 254]], dtype=np.uint8).repeat(8, 0).repeat(2, 1))
    register(ignore=254, label_values={0: "road", 10: "tree", 11: "tree", 20: "building", 99: None})
    expected = np.array([[0, 2, 2, 1, 254, 254]]).repeat(8, 0).repeat(2, 1)
    check_equal(loaded(), {"x": expected})
    assert MetadataCatalog.get(NAME).ignore_label == 254


@pytest.mark.parametrize("ignore", [0, 1, 2])
def test_an_ignored_value_among_the_classes_needs_no_dummy_class(root: Path, ignore: int) -> None:
    others = [value for value in range(4) if value != ignore]
    for number in range(3):
        stored = np.array(others, dtype=np.uint8)[scene(number)]
        stored[:2] = ignore
        save_image(root / f"images/{number}.png")
        save(root / f"masks/{number}.png", stored)
    register(ignore=ignore)
    expected = {str(number): scene(number) for number in range(3)}
    for labels in expected.values():
        labels[:2] = 255
    check_equal(loaded(), expected)
    assert MetadataCatalog.get(NAME).ignore_label == 255


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_values": [0, 255]}, "has 3 classes and 2 LABEL_VALUES"),
        ({"label_values": [0, 0, 1]}, "LABEL_VALUES has 0 twice"),
        ({"label_values": {0: "road", 1: "building"}}, "LABEL_VALUES has no value of tree"),
        (
            {"label_values": {0: "road", 1: "building", 2: "tre"}},
            "the class 'tre', which is none; did you mean tree?",
        ),
        (
            {"label_values": {-1: "road", 1: "building", 2: "tree"}},
            "has the value -1; they are whole numbers of 0",
        ),
        ({"label_values": [0, 1, 2.5]}, "has the value 2.5"),
        ({"label_values": [0, 1, True]}, "has the value True"),
        ({"label_values": [0, 1, 70000]}, "has the value 70000"),
        ({"label_values": "0, 1, 2"}, "LABEL_VALUES is '0, 1, 2'; write"),
        ({"label_values": 5}, "LABEL_VALUES is 5; write"),
        ({"label_values": [7, 8, 9], "ignore": 8}, "8 is a class's in LABEL_VALUES and is IGNORE"),
        ({"label_values": [7, 8, 9], "label_format": "colour"}, "not for the format colour"),
        ({"label_format": "coco", "list_file": "l.txt"}, "LIST and UNLABELLED are for folders of masks"),
        ({"label_format": "coco", "unlabelled": "skip"}, "LIST and UNLABELLED are for folders of masks"),
        (
            {"classes": [f"c{n}" for n in range(256)], "ignore": 255},
            "one of its 256 class numbers; give IGNORE 256",
        ),
    ],
)
def test_values_without_a_meaning_are_refused(arguments: dict[str, Any], message: str) -> None:
    assert message in refusal(lambda: register(**arguments))


def test_a_value_that_is_not_listed_is_named(root: Path) -> None:
    save_image(root / "images/x.png")
    labels = scene(0) * 0
    labels[0, :5] = 7
    path = save(root / "masks/x.png", labels)
    register(label_values=[0, 1, 2])
    message = refusal(lambda: load_records(NAME))
    assert (
        f"{path}: label value 7 (5 pixels) is no class's; known are 0, 1, 2, 255 (LABEL_VALUES, IGNORE)"
        in message
    )


# -- Palettes


def palette_png(path: Path, indices: np.ndarray, entries: list[tuple[int, int, int]], bits: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encode.png(path, indices, bits, encode.PALETTE, np.array(entries))


def other_suffix(path: Path, indices: np.ndarray, entries: list[tuple[int, int, int]]) -> None:
    image = Image.fromarray(indices).convert("P")
    image.putpalette([part for entry in entries for part in entry])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


ORDER = np.array([2, 0, 1])
SHUFFLED = [COLOURS[1], COLOURS[2], COLOURS[0]]  # index 2 is class 0, 0 is class 1, 1 is class 2


@pytest.mark.parametrize("form", ["auto", "colour"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", "2 bits", "4 bits"])
def test_palettes_in_another_order_are_read_by_their_colours(root: Path, suffix: str, form: str) -> None:
    expected = {str(number): scene(number) for number in range(3)}
    for stem, labels in expected.items():
        save_image(root / f"images/{stem}.png")
        indices = ORDER[labels].astype(np.uint8)
        if suffix.endswith("bits"):
            palette_png(root / f"masks/{stem}.png", indices, SHUFFLED, int(suffix[0]))
        else:
            other_suffix(root / f"masks/{stem}{suffix}", indices, SHUFFLED)
    register(colours=COLOURS, label_format=form)
    check_equal(loaded(), expected)


def test_every_file_is_judged_by_its_own_palette(root: Path) -> None:
    expected = {str(number): scene(number) for number in range(5)}
    for stem in expected:
        save_image(root / f"images/{stem}.png")
    palette_png(root / "masks/0.png", expected["0"], COLOURS)
    palette_png(root / "masks/1.png", ORDER[expected["1"]], SHUFFLED)
    save(root / "masks/2.png", expected["2"])
    save(root / "masks/3.png", np.array(COLOURS, dtype=np.uint8)[expected["3"]])
    expected["4"] = np.full(SIZE, 2)  # one class alone: the first entry is its colour
    palette_png(root / "masks/4.png", np.zeros(SIZE, dtype=np.uint8), [COLOURS[2]], 1)
    register(colours=COLOURS)
    check_equal(loaded(), expected)
    names = {Path(r["sem_seg_file_name"]).parent.name for r in load_records(NAME) if r["image_id"] in "02"}
    assert names == {"masks"}  # what needs no conversion is used where it is


def test_palettes_of_other_colours_are_read_by_index(root: Path) -> None:
    save_image(root / "images/x.png")
    palette_png(root / "masks/x.png", scene(0), [(1, 1, 1), (2, 2, 2), (3, 3, 3)])
    register(colours=COLOURS)
    check_equal(loaded(), {"x": scene(0)})


def test_palettes_that_contradict_themselves_are_refused(root: Path) -> None:
    save_image(root / "images/x.png")
    palette_png(root / "masks/x.png", scene(0), [COLOURS[1], COLOURS[0], (3, 3, 3)])
    register(colours=COLOURS)
    assert "say which counts (FORMAT index or colour)" in refusal(lambda: load_records(NAME))
    register(colours=COLOURS, label_format="index")
    check_equal(loaded(), {"x": scene(0)})


def test_without_colours_a_palette_is_read_by_index(root: Path) -> None:
    save_image(root / "images/x.png")
    palette_png(root / "masks/x.png", ORDER[scene(0)], SHUFFLED)
    register()
    check_equal(loaded(), {"x": ORDER[scene(0)]})


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("form", ["colours", "values"])
def test_converted_masks_are_turned_as_their_images(root: Path, form: str, tag: int) -> None:
    """Both files are stored alike with one tag, or the mask without it: the sizes tell what was meant."""
    exif = Image.Exif()
    exif[0x0112] = tag
    stored = scene(0)
    pixels = np.array(COLOURS, dtype=np.uint8)[stored] if form == "colours" else stored + 1
    arguments = {"colours": COLOURS} if form == "colours" else {"label_values": [1, 2, 3]}
    for stem, options in {"both": {"exif": exif}, "image": {}}.items():
        save(root / f"images/{stem}.png", np.repeat(stored[..., None] * 80, 3, axis=2), exif=exif)
        save(root / f"masks/{stem}.png", pixels, **options)
    register(**arguments)
    records = {record["image_id"]: record for record in load_records(NAME)}
    from hicl_d2.reading import read_image

    shown = read_image(records["both"]["file_name"], "RGB")[..., 0] // 80
    np.testing.assert_array_equal(read_labels(records["both"]["sem_seg_file_name"]), shown)
    expected = shown if tag >= 5 else stored
    np.testing.assert_array_equal(read_labels(records["image"]["sem_seg_file_name"]), expected)
