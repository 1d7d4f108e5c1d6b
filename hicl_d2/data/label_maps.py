"""How the label files of a data set of your own become class numbers: as they are, by their values, or by their colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hicl_d2.command.errors import InputError, counted, listing, nearest
from hicl_d2.data.formats import Colour, ColourMap
from hicl_d2.data.prepare.plan import Item
from hicl_d2.reading import (
    check_labels,
    file_mode,
    image_size,
    palette_in_header,
    read_label_colours,
    read_labels,
)

# The ignored label in converted files where the given one is the number of a class.
FREE_IGNORE = 255
GREY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B")


def stored_ignore(name: str, ignore: int, num_classes: int) -> int:
    """Return the ignored label of converted files: ``ignore``, or 255 where that is the number of a class.

    Raises InputError if 255 is the number of a class too.
    """
    if not 0 <= ignore < num_classes:
        return ignore
    if num_classes > FREE_IGNORE:
        raise InputError(
            f"the data set {name!r} ignores {ignore}, one of its {num_classes} class numbers; give IGNORE {num_classes} or more"
        )
    return FREE_IGNORE


def value_table(
    name: str, label_values: Mapping[Any, Any] | Sequence[Any], classes: Sequence[str], ignore: int
) -> dict[int, int]:
    """Return the class number of every value that label files hold; empty where values are the class numbers.

    ``label_values`` is a list, the value of each class in order, or a mapping of values to names of classes (several values
    may share one), with None for what is ignored. Without it, an ``ignore`` among the class numbers leaves the other values
    from 0 on to the classes in order: with 0, the classes are 1 to K.

    Raises InputError for a value that is no whole number of 0 to 65535, a name that is no class, a class without a value, and
    for ``ignore`` among the values.
    """
    stored = stored_ignore(name, ignore, len(classes))
    if isinstance(label_values, str) or not isinstance(label_values, Mapping | Sequence):
        raise InputError(
            f"the data set {name!r}: LABEL_VALUES is {label_values!r}; write {{0: name, 255: name}} or a list of values"
        )
    if not len(label_values):
        if stored == ignore:
            return {}
        others = [value for value in range(len(classes) + 1) if value != ignore]
        return {**{value: number for number, value in enumerate(others)}, ignore: stored}
    table = {}
    for value, target in _pairs(name, label_values, classes):
        if value in table:
            raise InputError(f"the data set {name!r}: LABEL_VALUES has {value} twice")
        if target is not None and target not in classes:
            raise InputError(
                f"the data set {name!r}: LABEL_VALUES gives {value} the class {target!r}, which is none"
                f"{nearest(target, classes)}"
            )
        table[value] = stored if target is None else classes.index(target)
    without = [c for number, c in enumerate(classes) if number not in table.values()]
    if without:
        raise InputError(f"the data set {name!r}: LABEL_VALUES has no value of {listing(without)}")
    if ignore != FREE_IGNORE and table.get(ignore, stored) != stored:
        raise InputError(
            f"the data set {name!r}: {ignore} is a class's in LABEL_VALUES and is IGNORE; drop one"
        )
    return {ignore: stored, **table}


def _pairs(
    name: str, label_values: Mapping[Any, Any] | Sequence[Any], classes: Sequence[str]
) -> list[tuple[int, str | None]]:
    if isinstance(label_values, Mapping):
        pairs = [(value, None if c is None else str(c)) for value, c in label_values.items()]
    else:
        pairs = list(zip(label_values, classes, strict=False))
        if len(label_values) != len(classes):
            raise InputError(
                f"the data set {name!r} has {counted(len(classes), 'class', 'classes')} and {len(label_values)} LABEL_VALUES"
            )
    return [(_whole(name, value), target) for value, target in pairs]


def _whole(name: str, value: Any) -> int:
    """Return a label value; keys of a config are text."""
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or int(text) > 65535:
        raise InputError(
            f"the data set {name!r}: LABEL_VALUES has the value {value!r}; they are whole numbers of 0 to 65535"
        )
    return int(text)


def check_has_numbers(path: Path) -> None:
    """Raise InputError for a label file of colours, where nobody has said what they mean."""
    mode = file_mode(path)
    if mode not in (*GREY_MODES, "P", "F") and path.suffix.lower() != ".webp":  # WebP has colours alone
        raise InputError(
            f"{path} holds colours ({mode}); give the colours of the classes (colours, COLOURS), or, if red, green and blue "
            "are equal, the values (label_values, LABEL_VALUES)"
        )


def form_of(path: Path, colours: Sequence[Colour]) -> str:
    """Return how a label file is read where classes have ``colours``: "index", "colour", or "either", to be decided by pixels.

    A palette whose entries are the classes' colours in order needs no decision. Grey values are class numbers, except
    where every class has a grey colour; a file of 1 bit is a mask of 0 and 1.
    """
    mode = file_mode(path)
    if mode == "P":
        palette = palette_in_header(path)
        return "index" if palette is not None and _in_order(palette, colours) else "either"
    if mode == "L" and all(red == green == blue for red, green, blue in colours):
        return "either"
    return "index" if mode in GREY_MODES else "colour"


def _in_order(palette: np.ndarray, colours: Sequence[Colour]) -> bool:
    """Return whether entry n of a palette (N, 3) is the colour of class n, and no other entry is a class's."""
    entries = [tuple(entry) for entry in palette.tolist()]
    of_classes, others = entries[: len(colours)], entries[len(colours) :]
    return of_classes == [tuple(c) for c in colours[: len(of_classes)]] and not {*colours} & {*others}


@dataclass(frozen=True)
class LabelReader:
    """Makes class numbers of label files in every form.

    Attributes:
        num_classes: K.
        ignore: the ignored label of what is returned.
        values: class number of every value, as :func:`value_table` returns it.
        table: the classes' colours, if they have any.
    """

    num_classes: int
    ignore: int
    values: dict[int, int]
    table: ColourMap | None

    def __call__(self, item: Item) -> np.ndarray:
        """Return the label map (H, W), uint8, of an item whose ``content`` is the form of its source.

        "fill" and a class number give that class everywhere, at the size of the item's image. Raises InputError, with
        the path, for what has no meaning.
        """
        form, number = item.content
        if form == "fill":
            assert item.image is not None
            return np.full(image_size(item.image), number, dtype=np.uint8)
        if form == "index":
            return self._by_value(item)
        assert self.table is not None
        if form == "colour":
            return self.table.read(item.source, item.image)
        return self._by_palette(item, self.table)

    def _by_value(self, item: Item) -> np.ndarray:
        labels = read_labels(item.source, item.image, equal_channels=bool(self.values))
        if file_mode(item.source) == "1" and 1 not in self.values and 255 in self.values:
            labels = labels * np.uint8(255)  # a mask of 1 bit among masks of 0 and 255: its 1 is white
        return self._mapped(labels, item.source)

    def _mapped(self, labels: np.ndarray, path: Path) -> np.ndarray:
        if not self.values:
            check_labels(labels, self.num_classes, self.ignore, path)
            return labels.astype(np.uint8)
        numbers = np.full(65536, -1, dtype=np.int16)
        numbers[list(self.values)] = list(self.values.values())
        result = numbers[labels]
        if (result < 0).any():
            values, counts = np.unique(labels[result < 0], return_counts=True)
            more = f" and {counted(len(values) - 1, 'other value')}" if len(values) > 1 else ""
            raise InputError(
                f"{path}: label value {values[0]} ({counted(counts[0], 'pixel')}{more}) is no class's; known are "
                f"{', '.join(map(str, sorted(self.values)))} (LABEL_VALUES, IGNORE)"
            )
        return result.astype(np.uint8)

    def _by_palette(self, item: Item, table: ColourMap) -> np.ndarray:
        """Read a file by its colours if all are classes', else by its indices if no colour speaks against it."""
        by_colour = table.numbers(read_label_colours(item.source, item.image))
        if (by_colour >= 0).all():
            return by_colour.astype(np.uint8)
        by_index = self._mapped(read_labels(item.source, item.image), item.source)
        against = (by_colour >= 0) & (by_colour != by_index)
        if against.any():
            row, column = (int(axis[0]) for axis in against.nonzero())
            raise InputError(
                f"{item.source}: at row {row}, column {column} the colour is that of class {by_colour[row, column]} and the "
                f"index that of {by_index[row, column]}, and other colours are no class's; say which counts (FORMAT index or "
                "colour)"
            )
        return by_index
