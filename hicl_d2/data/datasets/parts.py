"""The generated data set ``parts``: 240 training and 80 test scenes of 128 x 128, made on first use.

Its scenes are described in :mod:`hicl_d2.data.datasets.parts_scene`; they depend on the seed alone.
"""

import json
import logging
import os
import tempfile
from functools import partial
from pathlib import Path

from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.data.datasets.folders import expected_tree, paired_records
from hicl_d2.data.datasets.parts_scene import CLASSES, SIZE, draw_scene
from hicl_d2.data.datasets.registry import Colour, Records, data_root, register_semantic

COLOURS: list[Colour] = [
    (40, 40, 44),
    (60, 160, 60),
    (250, 220, 90),
    (70, 130, 220),
    (200, 120, 50),
    (210, 50, 60),
    (160, 80, 180),
]
SCENES = {"train": 240, "val": 80}
SEED = 0
# Written beside the scenes: says by which code a folder was made.
DESCRIPTION = {"data set": "parts", "version": 1, "seed": SEED, "size": SIZE, "scenes": SCENES}
EXPECTED = expected_tree("parts", "{train,val}")

logger = logging.getLogger(__name__)


def register_parts() -> None:
    """Register ``parts_train`` and ``parts_val``, kept in ``parts`` below the data root."""
    for split in SCENES:
        register_semantic(
            f"parts_{split}", partial(_load, split), classes=CLASSES, colours=COLOURS, expected=EXPECTED
        )


def _load(split: str) -> Records:
    folder = data_root() / "parts"
    make_parts(folder)
    return paired_records(f"parts_{split}", folder, split, EXPECTED)


def make_parts(folder: Path) -> None:
    """Make the data set in ``folder`` unless it is there.

    The scenes are drawn into a folder of their own, which is renamed at the end: what is in ``folder`` is
    always whole, whether this is interrupted or several processes do it at once. Raises InputError where it
    cannot be written or holds something else.
    """
    if folder.exists():
        _check_made_here(folder)
        return
    logger.info("Drawing the data set parts into %s", folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".parts-", dir=folder.parent) as unfinished:
            made = Path(unfinished) / "parts"
            _draw(made)
            _rename(made, folder)
    except OSError as error:
        raise InputError(
            f"the data set parts cannot be made in {folder}: {error.strerror or error}; "
            "set DETECTRON2_DATASETS to a folder that can be written"
        ) from None


def _check_made_here(folder: Path) -> None:
    try:
        description = json.loads((folder / "parts.json").read_text())
    except (OSError, ValueError):
        description = None
    if description != DESCRIPTION:
        raise InputError(
            f"{folder} was not made by this version of the data set parts; move it away, and it is made again"
        )


def _draw(folder: Path) -> None:
    for split_number, (split, count) in enumerate(SCENES.items()):
        images, labels = folder / "images" / split, folder / "annotations" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            image, truth = draw_scene(SEED, split_number, index)
            Image.fromarray(image).save(images / f"{index:04d}.png")
            Image.fromarray(truth).save(labels / f"{index:04d}.png")
    (folder / "parts.json").write_text(json.dumps(DESCRIPTION, indent=1) + "\n")


def _rename(made: Path, folder: Path) -> None:
    try:
        os.rename(made, folder)
    except OSError:
        # Another process was first: its scenes are the same.
        if not folder.exists():
            raise
        _check_made_here(folder)
