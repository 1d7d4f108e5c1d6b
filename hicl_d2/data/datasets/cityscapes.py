"""Cityscapes with its 19 training classes. Where Detectron2 runs, the data sets are its own.

Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
"""

from functools import partial
from pathlib import Path

from hicl_d2.command.errors import InputError
from hicl_d2.d2.data import MetadataCatalog
from hicl_d2.data.datasets.registry import Colour, Records, data_root, register_semantic
from hicl_d2.reading import image_size

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
# The benchmark's own ids of the training classes: what submissions hold.
LABEL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
# The truth of the test split is not public: its records have no labels.
SPLITS = ("train", "val", "test")
EXPECTED = (
    "cityscapes/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and "
    "cityscapes/gtFine/{train,val}/CITY/*_gtFine_labelTrainIds.png below $DETECTRON2_DATASETS"
)
MAKE_TRAIN_IDS = "make them with: python -m hicl_d2.data.prepare cityscapes"


def register_cityscapes() -> None:
    """Register ``cityscapes_fine_sem_seg_train``, ``_val`` and ``_test``, in ``cityscapes`` below the data root."""
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
            label_ids=LABEL_IDS,
            thing_classes=list(CLASSES)[FIRST_THING:],
            **{key: known.get(key, folder) for key, folder in folders.items()},
        )


def _load(name: str, split: str) -> Records:
    root = data_root() / "cityscapes"
    found = (root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")
    images = sorted(path for path in found if not path.name.startswith("."))
    if not images:
        raise InputError(f"the data set {name!r}: {root} has no images of {split}; expected {EXPECTED}")
    if split == "test":
        return [_image_record(image) for image in images]
    return [_record(name, image, root / "gtFine" / split) for image in images]


def _image_record(image: Path) -> dict[str, object]:
    height, width = image_size(image)
    stem = image.name.removesuffix("_leftImg8bit.png")
    return {"file_name": str(image), "height": height, "width": width, "image_id": stem}


def _record(name: str, image: Path, labels: Path) -> dict[str, object]:
    record = _image_record(image)
    stem = record["image_id"]
    train_ids = labels / image.parent.name / f"{stem}_gtFine_labelTrainIds.png"
    if not train_ids.is_file():
        made = train_ids.with_name(f"{stem}_gtFine_labelIds.png").is_file()
        cure = MAKE_TRAIN_IDS if made else f"expected {EXPECTED}"
        raise InputError(f"the data set {name!r}: {train_ids} does not exist; {cure}")
    return {**record, "sem_seg_file_name": str(train_ids)}
