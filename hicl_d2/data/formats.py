"""Labels in other forms than class numbers: colours and palettes; COCO's are in :mod:`hicl_d2.data.coco`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hicl_d2.command.errors import InputError, counted
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
            further = (
                f"{counted(others, 'other unknown colour')} on {counted(int(wrong.sum()) - same, 'pixel')}"
            )
            more = f"; {further}" if others else ""
            raise InputError(
                f"{path}: the colour {colour} at row {row}, column {column} ({counted(same, 'pixel')}{more}) is no class's; "
                "add it to the colours, or to the ignored ones"
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
