"""What a user may write about a data set of their own: names, paths, numbers, colours, and nothing of another kind.

YAML makes something else of text that is not quoted: off, on, yes and no are booleans, null is nothing, 0 and 20241126 are
numbers. What the user wrote is lost then, so it is refused with the advice to quote it.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any

from hicl_d2.command.errors import InputError, counted

# The most characters of a name: it stands in tables, in file names and beside pictures.
LONGEST = 120
# Unicode's categories of what breaks a line, moves a terminal's cursor or cannot be written: controls, surrogates, separators.
_BREAKING = ("Cc", "Cs", "Zl", "Zp")
QUOTE = "quote it, or YAML does not read it as text"


def checked_values(values: Mapping[str, Any], spell: Callable[[str], str]) -> dict[str, Any]:
    """Return the arguments of ``register_semantic_dataset`` by their names, each of its kind.

    ``spell`` says what the user calls an argument. Raises InputError, with that name, for a value of another kind.
    """
    return {
        argument: _KINDS[argument](value, spell(argument)) if argument in _KINDS else value
        for argument, value in values.items()
    }


def checked_name(name: Any, place: str) -> str:
    """Return ``name``, the name of a data set or of a class. Raises InputError if it cannot stand in one line."""
    text = _text(name, place)
    if not text.strip():
        raise InputError(f"{place} is empty; give a name")
    if any(unicodedata.category(character) in _BREAKING for character in text):
        raise InputError(f"{place} is {text!r}: a name holds no line breaks and no control characters")
    if len(text) > LONGEST:
        raise InputError(
            f"{place} has {counted(len(text), 'character')} ({text[:20]}...); a name has up to {LONGEST}"
        )
    return text


def file_stem(name: str) -> str:
    """Return a file name for ``name``, whatever it holds: one part of a path, another one for another name."""
    plain = re.sub(r"[^\w. -]", "_", name)[:48]
    if plain == name and not name.startswith("."):
        return name
    return f"{plain.lstrip('.') or '_'}.{digest(name)}"


def digest(text: str) -> str:
    """Return 16 hexadecimal digits that stand for ``text``."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _text(value: Any, place: str) -> str:
    if isinstance(value, str):
        return str(value)
    hint = "" if isinstance(value, list | tuple | dict) else f"; {QUOTE}"
    raise InputError(f"{place} must be text, not {value!r}{hint}")


def _path(value: Any, place: str) -> str:
    text = _text(os.fspath(value) if isinstance(value, os.PathLike) else value, place)
    if "\0" in text:
        raise InputError(f"{place} is {text!r}, which is no path")
    return text


def _needed_path(value: Any, place: str) -> str:
    text = _path(value, place)
    if not text:
        raise InputError(f"{place} is empty; give a path")
    return text


def _list(value: Any, place: str, of: str) -> list[Any]:
    if isinstance(value, str | bytes | dict | set | frozenset) or not isinstance(value, Iterable):
        raise InputError(f"{place} must be a list of {of}, not {value!r}")
    return list(value)


def _names(value: Any, place: str) -> tuple[str, ...]:
    names = tuple(
        checked_name(name, f"{place}[{n}]") for n, name in enumerate(_list(value, place, "class names"))
    )
    if not names or len(set(names)) < len(names):
        raise InputError(f"{place}: classes must be named, and each once, not {list(names)}")
    return names


def _number(value: Any, place: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,9}", value):
        return int(value)
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{place} must be a whole number, not {value!r}")
    return int(value)


def _colours(value: Any, place: str) -> tuple[tuple[int, int, int], ...]:
    wanted = "[red, green, blue], 0 to 255 each"
    colours = []
    for number, colour in enumerate(_list(value, place, wanted)):
        parts = list(colour) if isinstance(colour, Iterable) and not isinstance(colour, str | dict) else []
        whole = [int(part) for part in parts if isinstance(part, Integral) and not isinstance(part, bool)]
        if len(whole) != 3 or len(parts) != 3 or not all(0 <= part <= 255 for part in whole):
            raise InputError(f"{place}[{number}] is {colour!r}, which is no colour; give {wanted}")
        colours.append((whole[0], whole[1], whole[2]))
    return tuple(colours)


_KINDS: dict[str, Callable[[Any, str], Any]] = {
    "image_dir": _needed_path,
    "label_dir": _needed_path,
    "classes": _names,
    "ignore": _number,
    "colours": _colours,
    "ignored_colours": _colours,
    "label_format": _text,
    "image_ending": _path,
    "label_ending": _path,
    "background": _text,
    "cache_dir": _path,
    "list_file": _path,
    "unlabelled": _text,
}
