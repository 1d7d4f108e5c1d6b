"""COCO-Stuff: the .mat labels of the 10k set in either version, and the PNG maps of the 164k set.

The versions of the 10k labels number the classes differently, and one read as the other shifts every class
without an error. So the version is read off the labels: some values occur in one of them alone.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hicl_d2.command.downloads import DOWNLOADS
from hicl_d2.command.errors import InputError
from hicl_d2.data.datasets.coco_stuff import ROOT_10K, ROOT_164K, SPLITS_10K, SPLITS_164K
from hicl_d2.data.datasets.coco_stuff_classes import CLASSES
from hicl_d2.data.prepare.plan import IGNORE, Item, Plan, lookup, names_in
from hicl_d2.reading import image_size, read_labels

EXPECTED_10K = DOWNLOADS["coco_stuff_10k"].expected
EXPECTED_164K = DOWNLOADS["coco_stuff_164k"].expected
COUNTS_10K = {"train": 9000, "test": 1000}
COUNTS_164K = {"train": 118287, "val": 5000}
# Files that are looked at to tell the version and the orientation; every file is checked when it is converted.
SAMPLES = 50


def _table(labels: Sequence[int], unlabelled: Sequence[int], size: int) -> np.ndarray:
    """Return the class of every label value below ``size``: 255 for unlabelled ones, -1 for those that do not
    occur.
    """
    table = np.full(size, -1, dtype=np.int16)
    table[list(unlabelled)] = IGNORE
    table[list(labels)] = np.arange(len(labels))
    return table


# Labels of the classes, in their order, by version: 1 is unlabelled in 1.0, 0 in 1.1, 255 in the 164k maps.
TABLES = {
    "1.0": _table(range(2, 173), [1], 173),
    "1.1": _table(list(CLASSES.values()), [0], 183),
    "164k": _table([number - 1 for number in CLASSES.values()], [255], 256),
}


class Form(NamedTuple):
    """How the labels of a 10k download are to be read."""

    version: str
    transposed: bool


def plan_coco_stuff_10k(root: Path) -> Plan:
    """Plan annotations_detectron2/{train,test} from annotations and imageLists.

    Raises InputError for files that are missing, and for labels that fit neither version or both.
    """
    folder = root / ROOT_10K
    names_in(folder / "annotations", ".mat", EXPECTED_10K)
    items: list[Item] = []
    found = {}
    for split in SPLITS_10K:
        stems = _listed(folder / "imageLists" / f"{split}.txt")
        of_split = [
            Item(
                folder / "annotations" / f"{stem}.mat",
                folder / "annotations_detectron2" / split / f"{stem}.png",
                folder / "images" / f"{stem}.jpg",
            )
            for stem in stems
        ]
        of_split = [item for item in of_split if item.source.is_file()]
        items += of_split
        found[split] = len(of_split)
    form = _find_form(items)
    notes = [f"labels of COCO-Stuff 10k v{form.version}{', transposed' if form.transposed else ''}"]
    return Plan(items, partial(_convert_mat, form), tuple(CLASSES), COUNTS_10K, found, notes)


def _listed(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} cannot be read; expected {EXPECTED_10K}") from None


def _find_form(items: Sequence[Item]) -> Form:
    if not items:
        raise InputError(f"no .mat file is one of those that imageLists name; expected {EXPECTED_10K}")
    seen: dict[str, Path] = {}
    votes = [0, 0]
    for item in items[:: max(1, len(items) // SAMPLES)]:
        labels = read_mat(item.source)
        for version in _versions_of(labels):
            seen.setdefault(version, item.source)
        height, width = _image_size(item)
        if height != width:
            votes[0] += labels.shape == (height, width)
            votes[1] += labels.shape == (width, height)
    if len(seen) > 1:
        (one, first), (other, second) = seen.items()
        raise InputError(
            f"{first} holds labels of COCO-Stuff v{one} and {second} of v{other}; fetch one version alone"
        )
    if not seen:
        raise InputError(
            "the labels fit COCO-Stuff v1.0 and v1.1 alike (no 0, none above 172, none of the unused ids), so "
            "that their version cannot be told; are these all files of the download?"
        )
    return Form(next(iter(seen)), votes[1] > votes[0])


def _versions_of(labels: np.ndarray) -> list[str]:
    """Return the versions that some value of ``labels`` occurs in alone."""
    values = set(np.unique(labels).tolist())
    one, other = ({int(v) for v in (TABLES[version] >= 0).nonzero()[0]} for version in ("1.0", "1.1"))
    return [version for version, own in (("1.0", one - other), ("1.1", other - one)) if values & own]


def _image_size(item: Item) -> tuple[int, int]:
    assert item.image is not None
    return image_size(item.image)


def _convert_mat(form: Form, item: Item) -> np.ndarray:
    labels = read_mat(item.source)
    labels = labels.T if form.transposed else labels
    size = _image_size(item)
    if labels.shape != size:
        raise InputError(
            f"{item.source}: the label map is {labels.shape[0]} x {labels.shape[1]}, but its image {item.image} is "
            f"{size[0]} x {size[1]}"
        )
    return lookup(labels, TABLES[form.version], item.source, f"COCO-Stuff v{form.version}")


def read_mat(path: Path) -> np.ndarray:
    """Return the label map S of a MATLAB file, (H, W) as it lies there, of an unsigned integer type.

    Raises InputError with the path for a file that is corrupt or has no such field.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["S"])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # a corrupt file can make the reader fail in any way
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} is no MATLAB file that can be read ({reason}); fetch it again") from None
    labels = content.get("S")
    if labels is None or labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "uif":
        raise InputError(f"{path} has no label map S; is it an annotation of COCO-Stuff 10k?")
    whole = labels.astype(np.int64)
    if (whole != labels).any() or (whole < 0).any():
        raise InputError(f"{path}: the label map S holds numbers that are no labels")
    return whole.astype(np.uint16)


def plan_coco_stuff_164k(root: Path) -> Plan:
    """Plan stuffthingmaps_detectron2/{train,val}2017 beside stuffthingmaps. Raises InputError without those."""
    items: list[Item] = []
    found = {}
    for split in SPLITS_164K:
        folder = root / ROOT_164K / "stuffthingmaps" / f"{split}2017"
        sources = names_in(folder, ".png", EXPECTED_164K)
        target = root / ROOT_164K / "stuffthingmaps_detectron2" / f"{split}2017"
        items += [Item(source, target / source.name) for source in sources]
        found[split] = len(sources)
    return Plan(items, _convert_png, tuple(CLASSES), COUNTS_164K, found)


def _convert_png(item: Item) -> np.ndarray:
    meaning = "the 164k maps, 0 to 181 without 11 unused ids, and 255"
    return lookup(read_labels(item.source), TABLES["164k"], item.source, meaning)
