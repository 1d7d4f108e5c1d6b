"""COCO-Stuff with 171 classes: 10k (9,000 and 1,000 images) and 164k (118,287 and 5,000). Not comparable.

Source: Caesar, Uijlings, Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018. The loaders
read the labels that ``python -m hicl_d2.data.prepare coco_stuff_10k`` (or ``coco_stuff_164k``) makes of the
download's; the two versions of the 10k labels end up the same.
"""

from functools import partial
from pathlib import Path

from hicl_d2.command.errors import InputError, counted
from hicl_d2.data.datasets.coco_stuff_classes import CLASSES
from hicl_d2.data.datasets.folders import folder_records
from hicl_d2.data.datasets.registry import Records, data_root, register_semantic
from hicl_d2.visualization.colours import palette

ROOT_10K = "coco/coco_stuff_10k"
SPLITS_10K = ("train", "test")
EXPECTED_10K = (
    f"{ROOT_10K}/images/NAME.jpg and {ROOT_10K}/annotations_detectron2/{{train,test}}/NAME.png below "
    "$DETECTRON2_DATASETS; make the latter with: python -m hicl_d2.data.prepare coco_stuff_10k"
)
ROOT_164K = "coco"
SPLITS_164K = ("train", "val")
EXPECTED_164K = (
    f"{ROOT_164K}/{{train,val}}2017/NAME.jpg and {ROOT_164K}/stuffthingmaps_detectron2/{{train,val}}2017/NAME.png "
    "below $DETECTRON2_DATASETS; make the latter with: python -m hicl_d2.data.prepare coco_stuff_164k"
)


def register_coco_stuff() -> None:
    """Register ``coco_stuff_10k_sem_seg_{train,test}`` and ``coco_stuff_164k_sem_seg_{train,val}``."""
    # The labels of the 10k set in version 1.1; those of the 164k maps are one less.
    ids = list(CLASSES.values())
    for split in SPLITS_10K:
        name = f"coco_stuff_10k_sem_seg_{split}"
        _register(name, partial(_load_10k, name, split), EXPECTED_10K, ids)
    for split in SPLITS_164K:
        name = f"coco_stuff_164k_sem_seg_{split}"
        _register(name, partial(_load_164k, name, split), EXPECTED_164K, [number - 1 for number in ids])


def _register(name: str, load: partial[Records], expected: str, label_ids: list[int]) -> None:
    colours = palette(len(CLASSES))
    register_semantic(
        name, load, classes=tuple(CLASSES), colours=colours, expected=expected, label_ids=label_ids
    )


def _load_10k(name: str, split: str) -> Records:
    """The images of both splits lie in one folder: the labels say which belong to which."""
    root = data_root() / ROOT_10K
    labels = root / "annotations_detectron2" / split
    images = root / "images"
    try:
        paths = sorted(path for path in labels.iterdir() if path.suffix == ".png" and path.name[0] != ".")
        known = {path.name for path in images.iterdir()}
    except OSError as error:
        reason = (error.strerror or "cannot be listed").lower()
        raise InputError(
            f"the data set {name!r}: {error.filename}: {reason}; expected {EXPECTED_10K}"
        ) from None
    alone = [path for path in paths if f"{path.stem}.jpg" not in known]
    if alone:
        raise InputError(
            f"the data set {name!r}: no image for {len(alone)} of {counted(len(paths), 'file')}, the first is {alone[0]}; "
            f"expected {images}/{alone[0].stem}.jpg"
        )
    return [_record(images / f"{path.stem}.jpg", path) for path in paths]


def _record(image: Path, labels: Path) -> dict[str, str]:
    return {"file_name": str(image), "sem_seg_file_name": str(labels), "image_id": labels.stem}


def _load_164k(name: str, split: str) -> Records:
    root = data_root() / ROOT_164K
    labels = root / "stuffthingmaps_detectron2" / f"{split}2017"
    return folder_records(name, root / f"{split}2017", labels, EXPECTED_164K)
