"""Labels in other forms than class numbers: colours and palettes; COCO's are in :mod:`hicl_d2.data.coco`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.reading import UNREADABLE

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

    def read(self, path: Path) -> np.ndarray:
        """Return the class numbers (H, W), uint8, of an RGB or palette image.

        Raises InputError for a file that cannot be read, and for unknown colours: which, where, how many.
        """
        try:
            with Image.open(path) as image:
                rgb = np.asarray(image.convert("RGB"))
        except UNREADABLE as error:
            raise InputError(
                f"{path}: this label map cannot be read: {' '.join(str(error).split())}"
            ) from None
        codes = _code(rgb)
        place = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        wrong = self._codes[place] != codes
        if wrong.any():
            row, column = (int(axis[0]) for axis in wrong.nonzero())
            others = len(np.unique(codes[wrong])) - 1
            colour = tuple(rgb[row, column].tolist())
            same = int((codes == codes[row, column]).sum())
            more = f"; {others} other unknown colours on {int(wrong.sum()) - same} pixels" if others else ""
            raise InputError(
                f"{path}: the colour {colour} at row {row}, column {column} ({same} pixels{more}) is no class's; add "
                "it to the colours, or to the ignored ones"
            )
        return self._numbers[place]


def _checked(colour: Sequence[int]) -> Colour:
    if len(colour) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in colour):
        raise InputError(f"{colour!r} is no colour; give red, green and blue, 0 to 255")
    return (colour[0], colour[1], colour[2])


def _code(rgb: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) as one number each."""
    wide = rgb.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def guess_kind(path: Path, num_classes: int, ignore_value: int, has_colours: bool) -> str:
    """Return "index" or "colour" for the label files of which ``path`` is one.

    A palette image is read by its indices unless colours are given and its indices are no classes.
    Raises InputError for colours that nobody has said the meaning of.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.unique(np.asarray(image)) if mode == "P" else np.zeros(0)
    except UNREADABLE as error:
        raise InputError(f"{path}: this label map cannot be read: {' '.join(str(error).split())}") from None
    if mode in ("L", "I;16"):
        return "index"
    if mode == "P":
        fits = bool(((values < num_classes) | (values == ignore_value)).all())
        if fits or not has_colours:
            return "index"
    if has_colours:
        return "colour"
    raise InputError(f"{path} holds colours ({mode}); give the colours of the classes (colours, COLOURS)")
