"""COCO's annotation files: which image has which objects, and the label map that they make.

The file comes from strangers and from many exporters. Each entry is looked at before anything is drawn; what cannot be read
right ends in one line that names it, and no object is left out in silence.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hicl_d2.command.errors import InputError, counted, listing, nearest
from hicl_d2.command.files import check_regular
from hicl_d2.data.names import digest

Size = tuple[int, int]
# Of an annotation file; COCO's largest has 0.5 GB.
MOST_BYTES = 8 * 2**30
# How far beyond the image a corner may lie, in sides of the image: further out it belongs to another one.
FURTHEST = 4


@dataclass
class CocoImage:
    """An image of the file, and what is annotated in it.

    Attributes:
        path: of the image; ``file_name`` counts from the folder of images, and may be absolute or lead out of it.
        name: unlike that of all other images; a relative path without suffix that leads nowhere else.
        size: (height, width), as the file says.
        objects: (class number, segmentation) of every object of a class.
    """

    path: Path
    name: str
    size: Size
    objects: list[tuple[int, Any]] = field(default_factory=list)


def read_coco(
    path: Path,
    images: Path,
    classes: Sequence[str],
    background: str = "",
    left_out: Counter[str] | None = None,
) -> list[CocoImage]:
    """Return the images of a COCO annotation file in the order of their names.

    Objects whose category is no class are left out, and counted by category in ``left_out``. The class ``background`` need
    not be a category. Raises InputError for a file that is none, an entry that lacks
    something, an id or a file that stands for two images, a class that is no category, and an annotation whose image or
    category is not there.
    """
    content = _read(path)
    found = _images(content["images"], path, images)
    names = _category_names(content["categories"], path)
    numbers = _class_numbers(names, classes, path, background)
    are_shares = True
    for place, entry in _entries(content["annotations"], f"{path}: annotations"):
        image_id = _id(entry, "image_id", place)
        category = _id(entry, "category_id", place)
        if image_id not in found:
            raise InputError(f"{place} names image {image_id}, which is not there")
        if category not in numbers:
            raise InputError(
                f"{place} has the category_id {category}, but there are the categories {listing(numbers)}"
            )
        number = numbers[category]
        if number is None:
            if left_out is not None:
                left_out[names[category]] += 1
            continue
        segmentation = _segmentation(entry, f"{place} (image {found[image_id].path})")
        if segmentation is not None:
            are_shares = are_shares and _are_shares(segmentation)
            found[image_id].objects.append((number, segmentation))
    if are_shares and any(image.objects for image in found.values()):
        raise InputError(
            f"{path}: all corners of its polygons lie between 0 and 1, but COCO gives them in pixels; multiply them by "
            "the width and height of the image"
        )
    return sorted(found.values(), key=lambda image: str(image.path))


def _read(path: Path) -> dict[str, Any]:
    check_regular(path, "annotation file", MOST_BYTES)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no COCO annotations can be read: {error}") from None
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} has no {listing(missing)}; is it a COCO annotation file?")
    return content


def _entries(entries: Any, place: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield each of a list of JSON objects with what it is called in messages."""
    if not isinstance(entries, list):
        raise InputError(f"{place} must be a list, not a {type(entries).__name__}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{place}[{number}] must be an object, not {entry!r:.80}")
        own_id = entry.get("id")
        yield f"{place}[{number}]" + ("" if own_id is None else f" (id {own_id!r:.40})"), entry


def _id(entry: dict[str, Any], key: str, place: str) -> str:
    """Return an id as text: some exporters write 7, others "7"."""
    value = entry.get(key)
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return str(int(text)) if text.isascii() and text.lstrip("-").isdigit() and len(text) < 40 else text
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        what = f"has the {key} {value!r:.80}" if key in entry else f"has no {key}"
        raise InputError(f"{place} {what}; expected a number or text")
    return str(value)


def _images(entries: Any, path: Path, folder: Path) -> dict[str, CocoImage]:
    """Return the images by id."""
    found: dict[str, CocoImage] = {}
    by_path: dict[str, str] = {}
    for place, entry in _entries(entries, f"{path}: images"):
        own_id, name = _id(entry, "id", place), entry.get("file_name")
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise InputError(f"{place} has the file_name {name!r:.80}; expected the path of an image")
        file = os.path.normpath(folder / name)
        if own_id in found:
            raise InputError(f"{place} has the id of {found[own_id].path} too; give each image its own")
        if file in by_path:
            raise InputError(f"{place} is {file}, as the image with the id {by_path[file]} is; name it once")
        by_path[file] = own_id
        found[own_id] = CocoImage(Path(file), "", _size(entry, place, file))
    _name(list(found.values()), folder)
    return found


def _size(entry: dict[str, Any], place: str, file: str) -> Size:
    values = [entry.get(key) for key in ("height", "width")]
    sides = [int(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and v == v // 1]
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(
            f"{place} has the height {values[0]!r:.40} and the width {values[1]!r:.40}; give those of {file} in pixels"
        )
    return (sides[0], sides[1])


def _name(images: Sequence[CocoImage], folder: Path) -> None:
    """Give each image a name of its own: its path in ``folder`` without suffix, with a mark where that is not enough."""
    counts: dict[str, int] = {}
    for image in images:
        inside = os.path.relpath(image.path, folder)
        leads_out = inside.split(os.sep, 1)[0] == os.pardir
        stem = os.path.splitext(inside)[0]
        image.name = f"{image.path.stem}.{digest(str(image.path))}" if leads_out else stem
        counts[image.name] = counts.get(image.name, 0) + 1
    for image in images:
        if counts[image.name] > 1:
            image.name = f"{image.name}.{digest(str(image.path))}"


def _category_names(entries: Any, path: Path) -> dict[str, str]:
    """Return the name of every category id."""
    names: dict[str, str] = {}
    for place, entry in _entries(entries, f"{path}: categories"):
        own_id, name = _id(entry, "id", place), entry.get("name")
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise InputError(f"{place} has the name {name!r:.80}; expected text")
        if names.setdefault(own_id, str(name)) != str(name):
            raise InputError(
                f"{place} is called {name}, but {names[own_id]} has this id too; give each its own"
            )
    return names


def _class_numbers(
    names: dict[str, str], classes: Sequence[str], path: Path, background: str
) -> dict[str, int | None]:
    """Return the class number of every category id, None for categories that are no classes."""
    for name in classes:
        if name not in names.values() and name != background:
            hint = nearest(name, names.values()) or f"; there are {listing(names.values())}"
            raise InputError(f"{path} has no category {name!r}{hint}")
    return {own_id: classes.index(name) if name in classes else None for own_id, name in names.items()}


def _segmentation(entry: dict[str, Any], place: str) -> Any:
    """Return the segmentation of an annotation, polygons as a list of lists; None for an object without any pixel."""
    found = entry.get("segmentation")
    if isinstance(found, list):
        if found and not any(isinstance(part, list) for part in found):
            found = [found]  # one polygon that is not in a list of its own
        found = [part for part in found if part != []]
    if found:
        return found
    box = entry.get("bbox")
    sides = box[2:] if isinstance(box, list) and len(box) == 4 else [1, 1]
    if found is None or all(isinstance(side, int | float) and side > 0 for side in sides):
        raise InputError(
            f"{place} has no segmentation, and a box does not say which pixels; draw its outline, or remove it"
        )
    return None


def _are_shares(segmentation: Any) -> bool:
    """Return whether all numbers of polygons lie between 0 and 1."""
    if not isinstance(segmentation, list):
        return False
    numbers = [number for part in segmentation if isinstance(part, list) for number in part]
    return all(isinstance(number, int | float) and 0 <= number <= 1 for number in numbers)


def draw_coco(size: Size, annotations: Sequence[tuple[int, Any]], background: int, name: str) -> np.ndarray:
    """Return the label map (H, W), uint8, of (class number, segmentation) pairs; smaller objects lie on top.

    A segmentation is a list of polygons or a run-length code, compressed or not. Raises InputError, with the image's
    ``name``, for one that is neither or does not fit ``size``.
    """
    masks = []
    for number, segmentation in annotations:
        if isinstance(segmentation, list):
            mask = _fill(segmentation, size, name)
        elif isinstance(segmentation, dict):
            mask = _unroll(segmentation, size, name)
        else:
            raise InputError(f"{name}: a segmentation cannot be read ({segmentation!r:.80})")
        masks.append((number, mask))
    labels = np.full(size, background, dtype=np.uint8)
    for number, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):
        labels[mask] = number
    return labels


def _fill(polygons: list[Any], size: Size, name: str) -> np.ndarray:
    """Return the pixels (H, W), bool, that polygons of x, y, x, y, ... cover."""
    from pycocotools import mask as coco_mask

    height, width = size
    checked = []
    for polygon in polygons:
        try:
            corners = np.array(polygon, dtype=np.float64)
        except (TypeError, ValueError):
            corners = np.zeros(0)
        if corners.ndim != 1 or len(corners) % 2 or len(corners) < 6:
            raise InputError(
                f"{name}: a segmentation cannot be read: a polygon is x, y of three corners or more, not {polygon!r:.80}"
            )
        beyond = np.abs(corners.reshape(-1, 2)) > np.array([width, height]) * (1 + FURTHEST)
        if not np.isfinite(corners).all() or beyond.any():
            raise InputError(
                f"{name} is {height} x {width}, but a polygon of it has corners far outside, or none: {polygon!r:.80}"
            )
        checked.append(corners.tolist())
    # One by one: for several the library takes four numbers as a box.
    codes = [code for corners in checked for code in coco_mask.frPyObjects([corners], height, width)]
    return coco_mask.decode(coco_mask.merge(codes)).astype(bool)


def _unroll(code: dict[str, Any], size: Size, name: str) -> np.ndarray:
    """Return the pixels (H, W), bool, of a run-length code: lengths of runs of 0 and 1 in turn, column by column."""
    its_size, counts = code.get("size"), code.get("counts")
    if its_size != [*size]:
        raise InputError(f"{name} is {size}, but a segmentation of it {its_size!r:.80} (height, width)")
    lengths = _lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(
        isinstance(length, int) and not isinstance(length, bool) and length >= 0 for length in lengths
    ):
        raise InputError(f"{name}: a segmentation cannot be read: no run lengths are {counts!r:.80}")
    if sum(lengths) != math.prod(size):
        raise InputError(
            f"{name}: a segmentation cannot be read: its run lengths are {counted(sum(lengths), 'pixel')}, the image has "
            f"{math.prod(size)}"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(size[::-1]).T


def _lengths(text: str) -> list[int] | None:
    """Return the run lengths that COCO's compressed code stands for, None if it is none.

    A character carries five bits from code 48 on, the lowest first, and a sixth that says that more follow; the number is in
    two's complement, and from the fourth on it is the difference to the last but one.
    """
    lengths: list[int] = []
    number, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        lengths.append(number + lengths[-2] if len(lengths) > 2 else number)
        number, shift = 0, 0
    return None if shift else lengths
