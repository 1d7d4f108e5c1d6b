"""Cityscapes with its 19 training classes. Where Detectron2 runs, the data sets are its own.

Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
"""

from functools import partial
from pathlib import Path

from hicl_d2.d2.data import MetadataCatalog
from hicl_d2.data.datasets.registry import Colour, Records, data_root, register_semantic
from hicl_d2.data.reading import image_size
from hicl_d2.errors import InputError

CLASSES: dict[str, Colour] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
FIRST_THING = list(CLASSES).index("person")
SPLITS = ("train", "val")
EXPECTED = (
    "cityscapes/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and "
    "cityscapes/gtFine/{train,val}/CITY/*_gtFine_labelTrainIds.png below $DETECTRON2_DATASETS"
)
MAKE_TRAIN_IDS = (
    "make them with cityscapesscripts' csCreateTrainIdLabelImgs (CITYSCAPES_DATASET set to the root)"
)


def register_cityscapes() -> None:
    """Register ``cityscapes_fine_sem_seg_train`` and ``_val``, in ``cityscapes`` below the data root."""
    for split in SPLITS:
        name = f"cityscapes_fine_sem_seg_{split}"
        known = MetadataCatalog.get(name)
        folders = {
            "image_dir": f"{data_root()}/cityscapes/leftImg8bit/{split}/",
            "gt_dir": f"{data_root()}/cityscapes/gtFine/{split}/",
        }
        register_semantic(
            name,
            partial(_load, name, split),
            classes=tuple(CLASSES),
            colours=tuple(CLASSES.values()),
            evaluator_type="cityscapes_sem_seg",
            expected=EXPECTED,
            thing_classes=list(CLASSES)[FIRST_THING:],
            **{key: known.get(key, folder) for key, folder in folders.items()},
        )


def _load(name: str, split: str) -> Records:
    root = data_root() / "cityscapes"
    images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    if not images:
        raise InputError(f"the data set {name!r}: {root} has no images of {split}; expected {EXPECTED}")
    return [_record(name, image, root / "gtFine" / split) for image in images]


def _record(name: str, image: Path, labels: Path) -> dict[str, object]:
    stem = image.name.removesuffix("_leftImg8bit.png")
    train_ids = labels / image.parent.name / f"{stem}_gtFine_labelTrainIds.png"
    if not train_ids.is_file():
        made = train_ids.with_name(f"{stem}_gtFine_labelIds.png").is_file()
        cure = MAKE_TRAIN_IDS if made else f"expected {EXPECTED}"
        raise InputError(f"the data set {name!r}: {train_ids} does not exist; {cure}")
    height, width = image_size(image)
    record = {"file_name": str(image), "sem_seg_file_name": str(train_ids)}
    return {**record, "height": height, "width": width, "image_id": stem}
