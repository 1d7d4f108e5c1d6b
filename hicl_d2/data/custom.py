"""Your own data in one call, or in a block of the config.

Whatever the masks are, the loaders, the evaluators and Detectron2 see one form: PNGs of class numbers. Masks in another
form (colours, COCO's JSON) are converted when they are first used, in parallel, into a folder of their own; the
originals are never touched.
"""

import functools
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError, counted, listing, nearest
from hicl_d2.command.files import expanded
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data.coco import draw_coco, read_coco
from hicl_d2.data.datasets.folders import folder_records, read_list
from hicl_d2.data.datasets.registry import Records, data_root, register_semantic
from hicl_d2.data.formats import KINDS, Colour, ColourMap
from hicl_d2.data.label_maps import LabelReader, check_has_numbers, form_of, stored_ignore, value_table
from hicl_d2.data.names import checked_name, checked_values, digest, file_stem
from hicl_d2.data.prepare.plan import Item, Plan, carry_out, stamp_of
from hicl_d2.reading import IMAGE_SUFFIXES, LABEL_SUFFIXES, image_size
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
# Names that were registered here, and those of them that a config registered.
_ours: set[str] = set()
_of_configs: set[str] = set()


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
    values = {argument: value for argument, value in locals().items() if argument != "name"}
    name = checked_name(name, "the name of a data set")
    source = _source(name, **checked_values(values, lambda argument: f"the data set {name!r}: {argument}"))
    if name in DatasetCatalog:
        if name not in _ours:
            raise InputError(f"a data set {name!r} is known already; choose another name")
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_semantic(
        name,
        partial(_load, source),
        classes=source.classes,
        colours=source.colours or palette(len(source.classes)),
        ignore_label=source.ignore,
        expected=f"images in {source.images} and masks in {source.labels}",
    )
    _ours.add(name)


def _source(
    name: str,
    *,
    image_dir: str,
    label_dir: str,
    classes: tuple[str, ...],
    ignore: int,
    colours: tuple[Colour, ...],
    ignored_colours: tuple[Colour, ...],
    label_format: str,
    image_ending: str,
    label_ending: str,
    background: str,
    cache_dir: str,
    label_values: Any,
    list_file: str,
    unlabelled: str,
) -> _Source:
    """Return what the arguments of `register_semantic_dataset`, each of its kind, say together."""
    if label_format not in ("auto", *KINDS):
        raise InputError(
            f"the data set {name!r}: label_format is {label_format!r}; it is auto, {', '.join(KINDS)}"
        )
    if colours and len(colours) != len(classes):
        raise InputError(
            f"the data set {name!r} has {counted(len(classes), 'class', 'classes')} and {counted(len(colours), 'colour')}"
        )
    if background and background not in classes:
        raise InputError(
            f"the data set {name!r}: the background {background!r} is no class{nearest(background, classes)}"
        )
    root = data_root()
    labels = root / expanded(label_dir)
    form = "coco" if label_format == "auto" and labels.suffix.lower() == ".json" else label_format
    values = value_table(name, label_values, classes, ignore)
    has_values = bool(len(label_values))
    _check_extras(name, form, has_values, list_file, unlabelled, classes)
    if has_values and form == "auto":
        form = "index"
    ignore = stored_ignore(name, ignore, len(classes))
    beside = f"{labels.name}.classes"  # the whole name: v1.0 and v1.1 are two folders
    if cache_dir:
        cache = root / expanded(cache_dir) / f"{beside}.{digest(os.path.abspath(labels))}"
    else:
        cache = labels.with_name(beside)
    return _Source(
        name,
        root / expanded(image_dir),
        labels,
        classes,
        ignore,
        colours,
        ignored_colours,
        form,
        image_ending,
        label_ending,
        classes.index(background) if background else ignore,
        cache,
        tuple(values.items()),
        root / expanded(list_file) if list_file else None,
        unlabelled,
    )


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
        spelled = {argument: f"{place}.{key}" for key, argument in KEYS.items()}
        register_semantic_dataset(name, **checked_values(arguments, spelled.__getitem__))
        _of_configs.add(name)


def forget_custom() -> None:
    """Take the data sets that configs registered out of the catalogues, so that the next config knows its own alone."""
    for name in _of_configs & _ours:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    _ours.difference_update(_of_configs)
    _of_configs.clear()


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
        items.append(_item(source, cache, image, label, form))
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


def _item(source: _Source, cache: Path, image: Path, labels: Path, content: Any = None) -> Item:
    """Return the conversion of ``labels`` into a file of ``cache`` that we name: no name of the data set leads out of it."""
    own = digest(os.path.relpath(image, source.images))
    return Item(labels, cache / f"{file_stem(image.stem)}.{own}.png", image, content, stamp=stamp_of(labels))


def _load_coco(source: _Source) -> Records:
    _byte(source)
    stamp = stamp_of(source.labels)
    left_out: Counter[str] = Counter()
    is_class = source.background < len(source.classes)
    background = source.classes[source.background] if is_class else ""
    images = read_coco(source.labels, source.images, source.classes, background, left_out)
    if left_out:
        _warn_once(
            f"{source.labels}: {counted(left_out.total(), 'annotation')} of {counted(len(left_out), 'category', 'categories')} "
            f"that {'is' if len(left_out) == 1 else 'are'} no class ({listing(left_out, 4)}): these pixels are "
            f"{background or 'ignored'}, unless another object covers them"
        )
    missing = [str(image.path) for image in images if not image.path.is_file()]
    if missing:
        raise InputError(
            f"{source.labels}: no file for {len(missing)} of {counted(len(images), 'image')}, the first is {missing[0]}"
        )
    cache = _cache(source, [source.classes, source.background, source.ignore])
    items = [
        replace(_item(source, cache, image.path, source.labels, (image.size, image.objects)), stamp=stamp)
        for image in images
    ]
    _convert(source, items, partial(_draw, source.background))
    return [
        {"file_name": str(image.path), "sem_seg_file_name": str(item.target), "image_id": image.name}
        for image, item in zip(images, items, strict=True)
    ]


@functools.cache
def _warn_once(text: str) -> None:
    console.say(f"warning: {text}")
    logger.info(text)


def _draw(background: int, item: Item) -> np.ndarray:
    size, annotations = item.content
    found = image_size(str(item.image))
    if found != size:
        raise InputError(
            f"{item.image} is {found[0]} x {found[1]}, but {item.source} says {size[0]} x {size[1]} (height x width); "
            "annotations belong to an image of their size"
        )
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
    if source.cache.is_symlink():
        raise InputError(
            f"the data set {source.name!r}: {source.cache} is a symbolic link, and converted masks are written into a "
            "folder of their own alone; remove the link, or give another folder (cache_dir, CACHE)"
        )
    try:
        source.cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the data set {source.name!r}: converted masks cannot be written to {source.cache} ({error.strerror}); "
            "give another folder (cache_dir, CACHE)"
        ) from None
    carry_out(replace(plan, items=fresh), source.cache, workers=workers)
