"""Your own data in one call, or in a block of the config.

Whatever the masks are, the loaders, the evaluators and Detectron2 see one form: PNGs of class numbers. Masks in another
form (colours, COCO's JSON) are converted when they are first used, in parallel, into a folder of their own; the
originals are never touched.
"""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hicl_d2.command.errors import InputError, listing, nearest
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data.datasets.folders import folder_records, read_list
from hicl_d2.data.datasets.registry import Records, data_root, register_semantic
from hicl_d2.data.formats import KINDS, Colour, ColourMap, coco_numbers, draw_coco, read_coco
from hicl_d2.data.label_maps import LabelReader, check_has_numbers, form_of, stored_ignore, value_table
from hicl_d2.data.prepare.plan import Item, Plan, carry_out
from hicl_d2.reading import IMAGE_SUFFIXES, LABEL_SUFFIXES
from hicl_d2.visualization.colours import palette

logger = logging.getLogger(__name__)

MOST_WORKERS = 8
# What becomes of images without a mask; the name of a class fills it.
UNLABELLED = ("skip", "keep")
# Keys of a block DATASETS.CUSTOM.<name>, and the argument that each stands for.
KEYS = {
    "IMAGES": "image_dir",
    "LABELS": "label_dir",
    "CLASSES": "classes",
    "IGNORE": "ignore",
    "COLOURS": "colours",
    "IGNORED_COLOURS": "ignored_colours",
    "FORMAT": "label_format",
    "IMAGE_ENDING": "image_ending",
    "LABEL_ENDING": "label_ending",
    "BACKGROUND": "background",
    "CACHE": "cache_dir",
    "LABEL_VALUES": "label_values",
    "LIST": "list_file",
    "UNLABELLED": "unlabelled",
}
_ours: set[str] = set()


@dataclass(frozen=True)
class _Source:
    name: str
    images: Path
    labels: Path
    classes: tuple[str, ...]
    ignore: int
    colours: tuple[Colour, ...]
    ignored_colours: tuple[Colour, ...]
    form: str
    image_ending: str
    label_ending: str
    background: int
    cache: Path
    values: tuple[tuple[int, int], ...]
    list_file: Path | None
    unlabelled: str


def register_semantic_dataset(
    name: str,
    image_dir: str | Path,
    label_dir: str | Path,
    classes: Sequence[str],
    ignore: int = 255,
    *,
    colours: Sequence[Sequence[int]] = (),
    ignored_colours: Sequence[Sequence[int]] = (),
    label_format: str = "auto",
    image_ending: str = "",
    label_ending: str = "",
    background: str = "",
    cache_dir: str | Path = "",
    label_values: Mapping[int, str | None] | Sequence[int] = (),
    list_file: str | Path = "",
    unlabelled: str = "",
) -> None:
    """Register a data set of your own; no file is opened before it is used.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST; registering it again replaces it.
        image_dir: folder of images (.jpg, .jpeg, .png, .bmp, .tif, .tiff, .webp), sub-folders included. Paths that are not
            absolute are below $DETECTRON2_DATASETS.
        label_dir: folder of masks (.png, .bmp, .tif, .tiff, lossless .webp), of the images' names and sub-folders; it may
            be the images' own folder. Or a COCO annotation file (.json).
        classes: names of the classes, in the order of their numbers from 0.
        ignore: the label of pixels without a class. If it is below the number of classes, the classes are the other labels
            in order: with 0, they are 1 to K.
        colours: (red, green, blue) of each class: for pictures, and for masks that hold colours.
        ignored_colours: colours of masks that are to be ignored.
        label_format: "index" (8 or 16 bits, palette indices), "colour", "coco", or "auto": as each mask looks.
            Where classes have colours, a palette is read by its colours unless they stand in the classes' order.
        image_ending: what images' names end in before the suffix and masks' names do not ("_leftImg8bit").
        label_ending: the same of masks ("_labels").
        background: with COCO, the class of pixels that no annotation covers; ignored if empty.
        cache_dir: folder for converted masks; beside ``label_dir`` if empty.
        label_values: what masks hold in place of class numbers: {0: "back", 255: "thing"} (None: ignored), or the value of
            each class in order.
        list_file: text file with the names of the images to take, one a line, with or without suffix.
        unlabelled: what becomes of images without a mask: "" refuses them, "skip" leaves them out, "keep" keeps them for
            prediction, and the name of a class gives it to all their pixels.

    Raises InputError for classes that are missing or named twice, an unknown format, colours or values that do not match
    the classes, and a name that another data set has.
    """
    names = tuple(str(c) for c in classes)
    if not names or len(set(names)) < len(names):
        raise InputError(f"the data set {name!r}: classes must be named, and each once, not {list(names)}")
    if label_format not in ("auto", *KINDS):
        raise InputError(
            f"the data set {name!r}: label_format is {label_format!r}; it is auto, {', '.join(KINDS)}"
        )
    if colours and len(colours) != len(names):
        raise InputError(f"the data set {name!r} has {len(names)} classes and {len(colours)} colours")
    if background and background not in names:
        raise InputError(
            f"the data set {name!r}: the background {background!r} is no class{nearest(background, names)}"
        )
    if name in DatasetCatalog:
        if name not in _ours:
            raise InputError(f"a data set {name!r} is known already; choose another name")
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    root = data_root()
    labels = root / Path(label_dir).expanduser()
    form = "coco" if label_format == "auto" and labels.suffix == ".json" else label_format
    values = value_table(name, label_values, names, ignore)
    has_values = bool(len(label_values))
    _check_extras(name, form, has_values, str(list_file), unlabelled, names)
    if has_values and form == "auto":
        form = "index"
    ignore = stored_ignore(name, ignore, len(names))
    source = _Source(
        name,
        root / Path(image_dir).expanduser(),
        labels,
        names,
        ignore,
        tuple(map(tuple, colours)),  # type: ignore[arg-type]
        tuple(map(tuple, ignored_colours)),  # type: ignore[arg-type]
        form,
        image_ending,
        label_ending,
        names.index(background) if background else ignore,
        root / Path(cache_dir).expanduser() if cache_dir else labels.with_name(f"{labels.stem}.classes"),
        tuple(values.items()),
        root / Path(list_file).expanduser() if list_file else None,
        unlabelled,
    )
    shown = list(colours) or palette(len(names))
    register_semantic(
        name,
        partial(_load, source),
        classes=names,
        colours=[(int(c[0]), int(c[1]), int(c[2])) for c in shown],
        ignore_label=ignore,
        expected=f"images in {source.images} and masks in {source.labels}",
    )
    _ours.add(name)


def register_custom(cfg: CfgNode) -> None:
    """Register the data sets of DATASETS.CUSTOM. Raises InputError, with the key, for a block that is not whole."""
    for name, block in cfg.DATASETS.CUSTOM.items():
        place = f"DATASETS.CUSTOM.{name}"
        if not isinstance(block, dict):
            raise InputError(f"{place} must be a block of keys ({listing(KEYS)})")
        for key in block:
            if key not in KEYS:
                raise InputError(f"{place}.{key} is no key{nearest(key, KEYS)}; known are {listing(KEYS)}")
        missing = [key for key in ("IMAGES", "LABELS", "CLASSES") if key not in block]
        if missing:
            raise InputError(f"{place} lacks {listing(missing)}")
        arguments: dict[str, Any] = {KEYS[key]: value for key, value in block.items()}
        register_semantic_dataset(name, **arguments)


def _check_extras(
    name: str, form: str, has_values: bool, list_file: str, unlabelled: str, classes: Sequence[str]
) -> None:
    """Raise InputError for arguments that have no meaning together."""
    if has_values and form in ("colour", "coco"):
        raise InputError(
            f"the data set {name!r}: LABEL_VALUES stands for values of grey masks, not for the format {form}"
        )
    if form == "coco" and (list_file or unlabelled):
        raise InputError(
            f"the data set {name!r}: LIST and UNLABELLED are for folders of masks; an annotation file names its images itself"
        )
    if unlabelled not in ("", *UNLABELLED, *classes):
        raise InputError(
            f"the data set {name!r}: UNLABELLED is {unlabelled!r}; it is {', '.join(UNLABELLED)} or the name of a class"
        )


def _load(source: _Source) -> Records:
    """List the records, after converting masks that are not class numbers."""
    if source.form == "coco":
        return _load_coco(source)
    records = folder_records(
        source.name,
        source.images,
        source.labels,
        "an image and a mask of one name",
        image_suffixes=IMAGE_SUFFIXES,
        label_suffixes=LABEL_SUFFIXES,
        image_ending=source.image_ending,
        label_ending=source.label_ending,
        chosen=read_list(source.name, source.list_file) if source.list_file else None,
        unlabelled=bool(source.unlabelled),
        leave=[source.cache],
    )
    if source.unlabelled == "skip":
        records = [record for record in records if "sem_seg_file_name" in record]
    forms = [_form(source, record) for record in records]
    first = next((record for record in records if "sem_seg_file_name" in record), None)
    if source.form == "auto" and not source.colours and not source.values and first is not None:
        check_has_numbers(Path(first["sem_seg_file_name"]))
    if not any(forms):
        return records
    if source.form == "colour" and not source.colours:
        raise InputError(f"the data set {source.name!r}: masks of colours need the classes' colours")
    table = ColourMap(source.colours, source.ignored_colours, _byte(source)) if source.colours else None
    reader = LabelReader(len(source.classes), _byte(source), dict(source.values), table)
    cache = _cache(
        source,
        [
            reader.num_classes,
            source.colours,
            source.ignored_colours,
            source.ignore,
            source.values,
            source.form,
        ],
    )
    result, items = [], []
    for record, form in zip(records, forms, strict=True):
        if form is None:
            result.append(record)
            continue
        image = Path(record["file_name"])
        label = Path(record["sem_seg_file_name"]) if "sem_seg_file_name" in record else image
        items.append(Item(label, cache / f"{record['image_id']}.png", image, form))
        result.append({**record, "sem_seg_file_name": str(items[-1].target)})
    _convert(source, items, reader)
    return result


def _form(source: _Source, record: dict[str, Any]) -> tuple[str, int] | None:
    """Return how the label map of a record is converted, and the class it is filled with; None where it stays as it is."""
    if "sem_seg_file_name" not in record:
        known = source.unlabelled in source.classes
        return ("fill", source.classes.index(source.unlabelled)) if known else None
    form = source.form
    if form == "auto":
        form = form_of(Path(record["sem_seg_file_name"]), source.colours) if source.colours else "index"
    return None if form == "index" and not source.values else (form, 0)


def _load_coco(source: _Source) -> Records:
    content = read_coco(source.labels)
    numbers = coco_numbers(content, source.classes, source.labels)
    _byte(source)
    cache = _cache(source, [source.classes, source.background, source.ignore])
    by_image: dict[int, list[tuple[int, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in by_image:
            raise InputError(
                f"{source.labels}: an annotation names image {annotation['image_id']}, which is not there"
            )
        if annotation["category_id"] in numbers and annotation.get("segmentation"):
            by_image[annotation["image_id"]].append(
                (numbers[annotation["category_id"]], annotation["segmentation"])
            )
    records, items = [], []
    for image in sorted(content["images"], key=lambda entry: str(entry["file_name"])):
        path = source.images / image["file_name"]
        stem = os.path.splitext(image["file_name"])[0]
        target = cache / f"{stem}.png"
        size = int(image["height"]), int(image["width"])
        items.append(Item(source.labels, target, path, (size, by_image[image["id"]])))
        records.append({"file_name": str(path), "sem_seg_file_name": str(target), "image_id": stem})
    missing = [record["file_name"] for record in records if not os.path.isfile(record["file_name"])]
    if missing:
        raise InputError(
            f"{source.labels}: {len(missing)} of {len(records)} images are missing, the first is {missing[0]}"
        )
    _convert(source, items, partial(_draw, source.background))
    return records


def _draw(background: int, item: Item) -> np.ndarray:
    size, annotations = item.content
    return draw_coco(size, annotations, background, str(item.image))


def _byte(source: _Source) -> int:
    """Return the ignored value, after checking that converted masks can hold all labels in 8 bits."""
    if len(source.classes) > 255 or not 0 <= source.ignore <= 255:
        raise InputError(
            f"the data set {source.name!r}: masks that are converted hold 8 bits: up to 255 classes, and an ignored "
            f"value of 0 to 255, not {len(source.classes)} and {source.ignore}"
        )
    return source.ignore


def _cache(source: _Source, meaning: Any) -> Path:
    """Return the folder of converted masks, another one for another meaning of the same files."""
    return source.cache / hashlib.blake2b(repr(meaning).encode(), digest_size=4).hexdigest()


def _convert(source: _Source, items: list[Item], convert: Any) -> None:
    plan = Plan(items, convert, source.classes, {}, {})
    fresh = [item for item in items if not item.is_done()]
    if not fresh:
        return
    logger.info("Converting %d masks of %s into %s", len(fresh), source.name, source.cache)
    workers = min(MOST_WORKERS, os.cpu_count() or 1) if len(fresh) > 16 else 0
    try:
        source.cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the data set {source.name!r}: converted masks cannot be written to {source.cache} ({error.strerror}); "
            "give another folder (cache_dir, CACHE)"
        ) from None
    carry_out(replace(plan, items=fresh), source.cache, workers=workers)
