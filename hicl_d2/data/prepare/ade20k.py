"""ADE20K: labels 1 to 150 become 0 to 149; 0 (not evaluated) becomes 255."""

from pathlib import Path

import numpy as np

from hicl_d2.command.downloads import DOWNLOADS
from hicl_d2.data.datasets.ade20k import FOLDERS, ROOT
from hicl_d2.data.datasets.ade20k_classes import CLASSES
from hicl_d2.data.prepare.plan import IGNORE, Item, Plan, lookup, names_in
from hicl_d2.reading import read_labels

EXPECTED = DOWNLOADS["ade20k"].expected
COUNTS = {"train": 20210, "val": 2000}

TABLE = np.array([IGNORE, *range(len(CLASSES))], dtype=np.int16)


def plan_ade20k(root: Path) -> Plan:
    """Plan annotations_detectron2 beside annotations. Raises InputError where there are none."""
    items: list[Item] = []
    found = {}
    for split, folder in FOLDERS.items():
        sources = names_in(root / ROOT / "annotations" / folder, ".png", EXPECTED)
        target = root / ROOT / "annotations_detectron2" / folder
        items += [Item(source, target / source.name) for source in sources]
        found[split] = len(sources)
    return Plan(items, _convert, tuple(CLASSES), COUNTS, found)


def _convert(item: Item) -> np.ndarray:
    meaning = "the challenge's labels 0 to 150 (is it the full ADE20K, or converted already?)"
    return lookup(read_labels(item.source), TABLE, item.source, meaning)
