"""Labels in other forms than class numbers: colours, palettes, COCO's polygons and run lengths."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hicl_d2.command.errors import InputError, listing, nearest
from hicl_d2.reading import read_label_colours

Colour = tuple[int, int, int]
KINDS = ("index", "colour", "coco")


class ColourMap:
    """Turns colours into class numbers: class n has colour n, and some colours are ignored.

    Raises InputError, when it is made, for a colour that stands for two things.
    """

    def __init__(self, colours: Sequence[Colour], ignored: Sequence[Colour], ignore_value: int) -> None:
        self.colours = [_checked(colour) for colour in (*colours, *ignored)]
        if len(set(self.colours)) < len(self.colours):
            twice = next(c for c in self.colours if self.colours.count(c) > 1)
            raise InputError(
                f"the colour {twice} stands for two classes; give each class a colour of its own"
            )
        numbers = [*range(len(colours)), *[ignore_value] * len(ignored)]
        codes = np.array([_code(np.array(colour)) for colour in self.colours])
        order = np.argsort(codes)
        self._codes = codes[order]
        self._numbers = np.array(numbers, dtype=np.uint8)[order]

    def numbers(self, rgb: np.ndarray) -> np.ndarray:
        """Return the class number of every colour (H, W, 3), uint8, as int16 (H, W); -1 for unknown ones."""
        codes = _code(rgb)
        place = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        return np.where(self._codes[place] == codes, self._numbers[place].astype(np.int16), np.int16(-1))

    def read(self, path: Path, image: Path | None = None) -> np.ndarray:
        """Return the class numbers (H, W), uint8, of an RGB or palette file, turned as its ``image`` file is.

        Raises InputError for a file that cannot be read, and for unknown colours: which, where, how many.
        """
        rgb = read_label_colours(path, image)
        numbers = self.numbers(rgb)
        wrong = numbers < 0
        if wrong.any():
            codes = _code(rgb)
            row, column = (int(axis[0]) for axis in wrong.nonzero())
            others = len(np.unique(codes[wrong])) - 1
            colour = tuple(rgb[row, column].tolist())
            same = int((codes == codes[row, column]).sum())
            more = f"; {others} other unknown colours on {int(wrong.sum()) - same} pixels" if others else ""
            raise InputError(
                f"{path}: the colour {colour} at row {row}, column {column} ({same} pixels{more}) is no class's; add "
                "it to the colours, or to the ignored ones"
            )
        return numbers.astype(np.uint8)


def _checked(colour: Sequence[int]) -> Colour:
    if len(colour) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in colour):
        raise InputError(f"{colour!r} is no colour; give red, green and blue, 0 to 255")
    return (colour[0], colour[1], colour[2])


def _code(rgb: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) as one number each."""
    wide = rgb.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def read_coco(path: Path) -> dict[str, Any]:
    """Return the content of a COCO annotation file. Raises InputError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no COCO annotations can be read: {error}") from None
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise InputError(f"{path} has no {listing(missing)}; is it a COCO annotation file?")
    return content


def coco_numbers(content: dict[str, Any], classes: Sequence[str], path: Path) -> dict[int, int]:
    """Return the class number of every category id; categories that are no classes are left out.

    Raises InputError for a class that is no category.
    """
    ids = {category["name"]: category["id"] for category in content["categories"]}
    for name in classes:
        if name not in ids:
            hint = nearest(name, ids) or f"; there are {listing(ids)}"
            raise InputError(f"{path} has no category {name!r}{hint}")
    return {ids[name]: number for number, name in enumerate(classes)}


def draw_coco(
    size: tuple[int, int], annotations: Sequence[tuple[int, Any]], background: int, name: str
) -> np.ndarray:
    """Return the label map (H, W), uint8, of (class number, segmentation) pairs; smaller objects lie on top.

    A segmentation is a list of polygons or a run-length code. Raises InputError, with the image's ``name``, for
    one that is neither or does not fit ``size``.
    """
    from pycocotools import mask as coco_mask

    height, width = size
    masks = []
    for number, segmentation in annotations:
        try:
            if isinstance(segmentation, list):
                code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
            elif isinstance(segmentation["counts"], list):
                code = coco_mask.frPyObjects(segmentation, height, width)
            else:
                code = segmentation
            mask = coco_mask.decode(code).astype(bool)
        except Exception as error:  # the library raises what it likes
            raise InputError(f"{name}: a segmentation cannot be read ({error})") from None
        if mask.shape != size:
            raise InputError(f"{name} is {size}, but a segmentation of it {mask.shape} (height, width)")
        masks.append((number, mask))
    labels = np.full(size, background, dtype=np.uint8)
    for number, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):
        labels[mask] = number
    return labels
