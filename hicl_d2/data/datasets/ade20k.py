"""ADE20K as in the Scene Parsing challenge: 150 classes, 20,210 and 2,000 images. Where Detectron2 runs, its own.

Source: Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017. The loaders read the labels that
``python -m hicl_d2.data.prepare ade20k`` makes of the download's.
"""

from functools import partial

from hicl_d2.data.datasets.ade20k_classes import CLASSES
from hicl_d2.data.datasets.folders import folder_records
from hicl_d2.data.datasets.registry import Records, data_root, register_semantic

ROOT = "ADEChallengeData2016"
FOLDERS = {"train": "training", "val": "validation"}
EXPECTED = (
    f"{ROOT}/images/{{training,validation}}/NAME.jpg and {ROOT}/annotations_detectron2/{{training,validation}}"
    "/NAME.png below $DETECTRON2_DATASETS; make the latter with: python -m hicl_d2.data.prepare ade20k"
)


def register_ade20k() -> None:
    """Register ``ade20k_sem_seg_train`` and ``_val``, in ``ADEChallengeData2016`` below the data root."""
    for split in FOLDERS:
        name = f"ade20k_sem_seg_{split}"
        register_semantic(
            name,
            partial(_load, name, split),
            classes=tuple(CLASSES),
            colours=tuple(CLASSES.values()),
            expected=EXPECTED,
            label_ids=list(range(1, len(CLASSES) + 1)),
        )


def _load(name: str, split: str) -> Records:
    root = data_root() / ROOT
    images, labels = (root / kind / FOLDERS[split] for kind in ("images", "annotations_detectron2"))
    return folder_records(name, images, labels, EXPECTED)
