"""CamVid with 11 classes: 367, 101 and 233 driving frames of 360 x 480.

Source: Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009; the
classes and the split are those of Badrinarayanan, Kendall, Cipolla, "SegNet", PAMI 2017. The split ``val``
lies inside a training sequence: report ``test``.
"""

from functools import partial

from hicl_d2.data.datasets.folders import expected_tree, paired_records
from hicl_d2.data.datasets.registry import Colour, Records, data_root, register_semantic

CLASSES: dict[str, Colour] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "sidewalk": (0, 0, 192),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
SPLITS = ("train", "val", "test")
EXPECTED = expected_tree("camvid", f"{{{','.join(SPLITS)}}}")


def register_camvid() -> None:
    """Register ``camvid_train``, ``camvid_val`` and ``camvid_test``, in ``camvid`` below the data root."""
    for split in SPLITS:
        register_semantic(
            f"camvid_{split}",
            partial(_load, split),
            classes=tuple(CLASSES),
            colours=tuple(CLASSES.values()),
            expected=EXPECTED,
        )


def _load(split: str) -> Records:
    return paired_records(f"camvid_{split}", data_root() / "camvid", split, EXPECTED)
