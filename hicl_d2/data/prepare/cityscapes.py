"""Cityscapes: the 19 training ids, with cityscapesscripts' table of labels."""

from functools import cache
from pathlib import Path

import numpy as np

from hicl_d2.command.downloads import DOWNLOADS
from hicl_d2.command.errors import InputError
from hicl_d2.data.datasets.cityscapes import CLASSES
from hicl_d2.data.prepare.plan import IGNORE, Item, Plan, lookup
from hicl_d2.reading import read_labels

EXPECTED = DOWNLOADS["cityscapes"].expected
COUNTS = {"train": 2975, "val": 500}
SOURCES = ("_gtFine_labelIds.png", "_gtFine_polygons.json")


def plan_cityscapes(root: Path) -> Plan:
    """Plan labelTrainIds.png beside every labelIds.png, or polygons.json where there is none.

    Raises InputError where there is neither.
    """
    items: list[Item] = []
    found = {}
    for split in COUNTS:
        folder = root / "cityscapes" / "gtFine" / split
        sources: dict[str, Path] = {}
        for ending in reversed(SOURCES):
            for path in folder.glob(f"*/[!.]*{ending}"):
                sources[f"{path.parent.name}/{path.name.removesuffix(ending)}"] = path
        if not sources:
            raise InputError(f"{folder} holds no labels; expected {EXPECTED}")
        items += [
            Item(path, folder / f"{stem}_gtFine_labelTrainIds.png") for stem, path in sorted(sources.items())
        ]
        found[split] = len(sources)
    return Plan(items, _convert, tuple(CLASSES), COUNTS, found)


def _convert(item: Item) -> np.ndarray:
    if item.source.suffix == ".json":
        return _draw(item.source)
    return lookup(read_labels(item.source), _table(), item.source, "Cityscapes' labelIds")


@cache
def _table() -> np.ndarray:
    """Return the training id of every id, 255 for those that are not trained on, (34,)."""
    from cityscapesscripts.helpers.labels import labels

    table = np.full(max(label.id for label in labels) + 1, -1, dtype=np.int16)
    for label in labels:
        if label.id >= 0:
            table[label.id] = label.trainId if label.trainId >= 0 else IGNORE
    return table


def _draw(polygons: Path) -> np.ndarray:
    """Let cityscapesscripts draw the polygons."""
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    annotation = Annotation()
    try:
        annotation.fromJsonFile(str(polygons))
        return np.asarray(createLabelImage(annotation, "trainIds"))
    except (OSError, ValueError, KeyError, TypeError, SystemExit) as error:  # the last for an unknown label
        raise InputError(f"{polygons}: no annotation of Cityscapes can be read ({error!r})") from None
