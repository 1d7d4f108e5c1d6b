"""Your own data, in every form that masks come in, end up as the class numbers that were meant."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from hicl_d2.config import load_config
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data import check_datasets, register_custom, register_semantic_dataset
from hicl_d2.data.custom import KEYS
from hicl_d2.data.datasets.registry import load_records
from hicl_d2.reading import read_labels
from tests.data.official import picture, scene
from tests.test_reading import refusal

CLASSES = ["soil", "crop", "weed"]
COLOURS = [(90, 60, 20), (10, 200, 30), (200, 20, 160)]
VOID = (0, 0, 0)
NAME = "custom_test"


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.fixture
def truths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Write images, also in a folder with a space and unicode in its name; return their label maps."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    found = {}
    for number, stem in enumerate(["a", "b c", "feld ü/d"]):
        found[stem] = scene(3, number, (12, 16))
        path = tmp_path / "images" / f"{stem}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(found[stem], number).save(path)
    return found


def write_masks(root: Path, truths: dict[str, np.ndarray], form: str) -> None:
    table = np.zeros((256, 3), dtype=np.uint8)
    table[:3], table[255] = COLOURS, VOID
    for stem, labels in truths.items():
        image = Image.fromarray(labels)
        if form == "16 bits":
            image = Image.fromarray(labels.astype(np.uint16))
        elif form == "palette indices":
            image.putpalette(table.ravel().tolist())
        elif (
            form == "palette colours"
        ):  # its indices mean nothing: they are in the reverse order of the colours
            image = Image.fromarray(np.where(labels == 255, 13, 12 - labels).astype(np.uint8))
            palette = np.zeros((256, 3), dtype=np.uint8)
            palette[10:13], palette[13] = COLOURS[::-1], VOID
            image.putpalette(palette.ravel().tolist())
        elif form == "colours":
            image = Image.fromarray(table[labels])
        path = root / "masks" / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def loaded(truths: dict[str, np.ndarray]) -> None:
    records = load_records(NAME)
    assert [record["image_id"] for record in records] == sorted(truths)
    for record in records:
        np.testing.assert_array_equal(read_labels(record["sem_seg_file_name"]), truths[record["image_id"]])


@pytest.mark.parametrize("form", ["8 bits", "16 bits", "palette indices", "palette colours", "colours"])
def test_every_form_of_masks_is_read(tmp_path: Path, truths: dict[str, np.ndarray], form: str) -> None:
    write_masks(tmp_path, truths, form)
    register_semantic_dataset(NAME, "images", "masks", CLASSES, colours=COLOURS, ignored_colours=[VOID])
    loaded(truths)
    metadata = MetadataCatalog.get(NAME)
    assert metadata.stuff_classes == CLASSES
    assert metadata.stuff_colors == [list(colour) for colour in COLOURS]
    converted = (tmp_path / "masks.classes").exists()
    assert converted == (form in ("palette colours", "colours"))


def write_coco(root: Path, truths: dict[str, np.ndarray]) -> Path:
    """Annotate classes 1 and 2 (category ids 40 and 7), as run lengths and as polygons of the 4 x 4 blocks."""
    ids = {1: 40, 2: 7}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (stem, labels) in enumerate(truths.items()):
        height, width = labels.shape
        images.append({"id": number, "file_name": f"{stem}.jpg", "height": height, "width": width})
        for label, category in ids.items():
            mask = labels == label
            if number == 0:
                code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                segmentation: Any = {"size": code["size"], "counts": code["counts"].decode()}
            else:
                corners = [(y, x) for y in range(0, height, 4) for x in range(0, width, 4) if mask[y, x]]
                segmentation = [[x, y, x + 4, y, x + 4, y + 4, x, y + 4] for y, x in corners]
            if mask.any():
                annotations.append(
                    {"image_id": number, "category_id": category, "segmentation": segmentation}
                )
    categories = [{"id": 40, "name": "crop"}, {"id": 7, "name": "weed"}, {"id": 1, "name": "soil"}]
    path = root / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.mark.parametrize("background", ["soil", ""])
def test_coco_annotations_are_drawn(tmp_path: Path, truths: dict[str, np.ndarray], background: str) -> None:
    write_coco(tmp_path, truths)
    register_semantic_dataset(NAME, "images", "annotations.json", CLASSES, background=background)
    uncovered = 0 if background else 255
    loaded({stem: np.where(np.isin(v, [1, 2]), v, uncovered) for stem, v in truths.items()})


def test_a_small_object_lies_on_a_large_one(tmp_path: Path, truths: dict[str, np.ndarray]) -> None:
    path = write_coco(tmp_path, truths)
    content = json.loads(path.read_text())
    content["annotations"] = [
        {"image_id": 0, "category_id": 7, "segmentation": [[4, 4, 8, 4, 8, 8, 4, 8]]},
        {"image_id": 0, "category_id": 40, "segmentation": [[0, 0, 16, 0, 16, 12, 0, 12]]},
    ]
    path.write_text(json.dumps(content))
    register_semantic_dataset(NAME, "images", "annotations.json", CLASSES)
    labels = read_labels(load_records(NAME)[0]["sem_seg_file_name"])
    assert (labels[4:8, 4:8] == 2).all()
    assert (labels == 1).sum() == labels.size - 16


def config(tmp_path: Path, block: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"MODEL: {{SEM_SEG_HEAD: {{NUM_CLASSES: 3}}}}\nDATASETS:\n  TRAIN: ({NAME!r},)\n  CUSTOM:\n    {NAME}: {block}\n"
    )
    return path


def test_a_block_of_the_config_does_the_same(tmp_path: Path, truths: dict[str, np.ndarray]) -> None:
    write_masks(tmp_path, truths, "colours")
    colours = [list(colour) for colour in COLOURS]
    block = (
        f"{{IMAGES: images, LABELS: masks, CLASSES: {CLASSES}, COLOURS: {colours}, "
        f"IGNORED_COLOURS: [[0, 0, 0]], FORMAT: colour}}"
    )
    cfg = load_config(config(tmp_path, block))
    check_datasets(cfg)
    loaded(truths)
    again = load_config(config(tmp_path, block), [f"DATASETS.CUSTOM.{NAME}.CLASSES", "['x', 'y', 'z']"])
    register_custom(again)
    assert MetadataCatalog.get(NAME).stuff_classes == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{IMAGES: images, CLASSES: [a]}", f"DATASETS.CUSTOM.{NAME} lacks LABELS"),
        ("{IMAGES: i, LABELS: m, CLASSES: [a], COLORS: []}", "COLORS is no key; did you mean COLOURS?"),
        ("{IMAGES: i, LABELS: m, CLASSES: [a, a]}", "classes must be named, and each once"),
        ("{IMAGES: i, LABELS: m, CLASSES: [a, b], COLOURS: [[1, 2, 3]]}", "2 classes and 1 colour"),
        ("{IMAGES: i, LABELS: m, CLASSES: [a], FORMAT: rgb}", "label_format is 'rgb'"),
        ("{IMAGES: i, LABELS: m, CLASSES: [a], BACKGROUND: sky}", "the background 'sky' is no class"),
        ("5", f"DATASETS.CUSTOM.{NAME} must be a block of keys"),
    ],
)
def test_a_block_that_is_not_whole_is_refused(tmp_path: Path, block: str, message: str) -> None:
    cfg = load_config(config(tmp_path, block))
    assert message in refusal(lambda: register_custom(cfg))


def test_every_key_reaches_an_argument() -> None:
    import inspect

    parameters = inspect.signature(register_semantic_dataset).parameters
    assert set(KEYS.values()) == set(parameters) - {"name"}


def test_unknown_colours_are_counted_and_placed(tmp_path: Path, truths: dict[str, np.ndarray]) -> None:
    write_masks(tmp_path, truths, "colours")
    path = tmp_path / "masks" / "b c.png"
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[3, 5:9], pixels[7, 2] = (1, 2, 3), (9, 9, 9)
    Image.fromarray(pixels).save(path)
    register_semantic_dataset(NAME, "images", "masks", CLASSES, colours=COLOURS, ignored_colours=[VOID])
    message = refusal(lambda: load_records(NAME))
    assert (
        f"{path}: the colour (1, 2, 3) at row 3, column 5 (4 pixels; 1 other unknown colour on 1 pixel)"
        in message
    )


def test_colours_without_a_meaning_are_refused(tmp_path: Path, truths: dict[str, np.ndarray]) -> None:
    write_masks(tmp_path, truths, "colours")
    register_semantic_dataset(NAME, "images", "masks", CLASSES)
    assert "holds colours (RGB); give the colours of the classes" in refusal(lambda: load_records(NAME))
    register_semantic_dataset(
        NAME, "images", "masks", CLASSES, colours=[*COLOURS[:2], VOID], ignored_colours=[VOID]
    )
    assert "(0, 0, 0) stands for two classes" in refusal(lambda: load_records(NAME))


def test_a_mask_that_changes_is_converted_again(tmp_path: Path, truths: dict[str, np.ndarray]) -> None:
    write_masks(tmp_path, truths, "colours")
    register_semantic_dataset(NAME, "images", "masks", CLASSES, colours=COLOURS, ignored_colours=[VOID])
    loaded(truths)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "masks.classes").rglob("*.png")}
    loaded(truths)
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    truths["a"] = scene(3, 77, (12, 16))
    write_masks(tmp_path, truths, "colours")
    loaded(truths)


@pytest.mark.parametrize("cache_dir", ["", "masks/converted"])
def test_converted_masks_of_one_data_set_are_none_of_another(
    tmp_path: Path, truths: dict[str, np.ndarray], cache_dir: str
) -> None:
    write_masks(tmp_path, truths, "colours")
    for _ in range(2):
        for part in ("feld ü", "."):
            register_semantic_dataset(
                NAME, f"images/{part}", f"masks/{part}", CLASSES, colours=COLOURS, ignored_colours=[VOID],
                cache_dir=cache_dir,
            )  # fmt: skip
            found = {record["image_id"] for record in load_records(NAME)}
            assert found == ({"d"} if part != "." else set(truths))
    assert len(list((tmp_path / "masks").glob("**/*.classes*"))) == (2 if cache_dir else 1)


def test_a_folder_of_the_users_whose_name_looks_like_ours_is_read(
    tmp_path: Path, truths: dict[str, np.ndarray]
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir(exist_ok=True)
    own = {
        "all.classes/a": truths["a"],
        "b.classes/12345678x/c": truths["b c"],
        "c.classes/20240131/d": truths["feld ü/d"],
    }
    for number, (stem, labels) in enumerate(own.items()):
        path = tmp_path / "images" / f"{stem}.jpg"
        path.parent.mkdir(parents=True)
        picture(labels, number).save(path)
    for left in truths:
        (tmp_path / "images" / f"{left}.jpg").unlink()
    write_masks(tmp_path, own, "8 bits")
    register_semantic_dataset(NAME, "images", "masks", CLASSES)
    loaded(own)


def test_endings_pair_files_of_one_folder(tmp_path: Path, truths: dict[str, np.ndarray]) -> None:
    for stem, labels in truths.items():
        for ending, image in (("_image", picture(labels, 0)), ("_label", Image.fromarray(labels))):
            path = tmp_path / "all" / f"{stem}{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    register_semantic_dataset(NAME, "all", "all", CLASSES, image_ending="_image", label_ending="_label")
    loaded(truths)


def test_names_of_others_are_not_taken() -> None:
    assert "known already" in refusal(lambda: register_semantic_dataset("camvid_train", "i", "m", ["a"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [{"id": 1, "name": "soill"}]}, "has no category 'soil'; did you mean soill?"),
        ({"annotations": [{"image_id": 99, "category_id": 7, "segmentation": []}]}, "names image 99"),
        (
            {"annotations": [{"image_id": 0, "category_id": 7, "segmentation": "x"}]},
            "a segmentation cannot be read",
        ),
    ],
)
def test_bad_annotations_are_named(
    tmp_path: Path, truths: dict[str, np.ndarray], change: dict[str, Any], message: str
) -> None:
    path = write_coco(tmp_path, truths)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    register_semantic_dataset(NAME, "images", "annotations.json", CLASSES)
    assert message in refusal(lambda: load_records(NAME))
    path.write_text("{}")
    assert "is it a COCO annotation file?" in refusal(lambda: load_records(NAME))
