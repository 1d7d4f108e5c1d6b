"""Points on the axes of a matrix: a name with its config, overrides, words, data and resources."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

from hicl_d2.command.errors import InputError, nearest_or_known
from hicl_d2.command.safe_yaml import leaves
from hicl_d2.harness.cells import Resources

POINT_KEYS = ("config", "overrides", "words", "data", "resources")
RESOURCE_KEYS = tuple(field.name for field in fields(Resources))
# What the name of a matrix, a data set or a model may hold, which becomes a part of paths and job names.
MOST_CHARACTERS = 100
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+=-]{{0,{MOST_CHARACTERS - 1}}}")
# The axes whose names are shown, and enter paths in plain characters only (Cell.readable): any text of one line.
SHOWN_AXES = ("method", "ablation")
# GPUs, processors, GiB or hours: beyond it is a slip.
MOST_RESOURCES = 10**6
MOST_NUMBER = 10**30
# Characters of a value that a message shows.
SHOWN = 120
HARNESS_KEYS = {"SEED": "list it under seeds", "OUTPUT_DIR": "every cell gets its own"}


@dataclass(frozen=True)
class Point:
    """A point on an axis.

    ``config`` is the template of a config's path, if it names one; ``overrides`` are flat; ``words`` fill
    templates; ``data`` names files and folders of the data set; ``resources`` are fields of Resources.
    """

    name: str
    config: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)


def read_axis(content: Any, place: str, axis: str) -> list[Point]:
    """Return the points of ``axis``, given as a list of names or as a mapping from names to their keys."""
    if content is None:
        return [Point("")]
    if isinstance(content, list):
        names = [check_name(name, place, axis) for name in content]
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        if twice:
            raise InputError(f"{place}: {twice[0]} is named twice")
        content = dict.fromkeys(names)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{place} must be a list of names, or names with config and overrides")
    return [
        _checked(check_name(name, place, axis), value, f"{place}: {name}") for name, value in content.items()
    ]


def check_name(name: Any, place: str, axis: str = "") -> str:
    """Return the name of a matrix or of a point on ``axis``.

    Raises InputError for anything but one path component of plain characters; for methods and ablations, for anything
    but text of one line without slashes.
    """
    if not isinstance(name, str):
        raise InputError(
            f"{place}: a name must be text, not {shown(name)}; quote it, or YAML does not read it so"
        )
    if axis in SHOWN_AXES:
        _check_shown(name, place)
    elif not NAME.fullmatch(name) or name.endswith("."):
        raise InputError(
            f"{place}: the name {shown(name)} must be 1 to {MOST_CHARACTERS} letters (a to z), digits and . _ + = -, begin "
            "with a letter or digit and not end with a dot (no spaces, slashes, no control characters)"
        )
    return name


def _check_shown(name: str, place: str) -> None:
    is_text = bool(name) and name.isprintable() and name == name.strip() and len(name) <= MOST_CHARACTERS
    if not is_text or name[0] in ".-" or "/" in name or "\\" in name:
        raise InputError(
            f"{place}: the name {shown(name)} must be 1 to {MOST_CHARACTERS} characters of one line, not begin with a dot or a "
            "dash (no slashes, no control characters, no spaces at its ends)"
        )


def shown(value: Any) -> str:
    """Return a value as a message shows it: on one line, and not longer than that."""
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        return "a number of very many digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _checked(name: str, content: Any, place: str) -> Point:
    if not isinstance(content, dict | None):
        raise InputError(f"{place} must have config and overrides, not {shown(content)}")
    check_keys(content or {}, POINT_KEYS, place)
    return read_point(name, content or {}, place)


def read_point(name: str, content: Mapping[str, Any], place: str) -> Point:
    """Return the point that ``content`` describes; other keys in it are ignored."""
    return Point(
        name,
        read_text(content, "config", place) if content.get("config") is not None else None,
        read_overrides(content.get("overrides"), f"{place}: overrides"),
        _words(content.get("words"), f"{place}: words"),
        _data(content.get("data"), f"{place}: data"),
        _resources(content.get("resources"), f"{place}: resources"),
    )


def check_keys(content: Mapping[Any, Any], known: tuple[str, ...], place: str) -> None:
    """Raise InputError for an unknown key, with the nearest known one."""
    for key in content:
        if key not in known:
            raise InputError(f"{place}: unknown key {key}{nearest_or_known(str(key), known)}")


def read_text(content: Mapping[str, Any], key: str, place: str) -> str:
    """Return the text under ``key``."""
    value = content[key]
    if not isinstance(value, str):
        raise InputError(f"{place}: {key} must be text, not {shown(value)}")
    return value


def read_mapping(content: Any, place: str) -> dict[str, Any]:
    """Return keys and values, none for None."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{place} must be keys and values, not {shown(content)}")
    return content


def read_overrides(content: Any, place: str) -> dict[str, Any]:
    """Return overrides of the config, flat; InputError for a key given twice and for one that the harness sets itself."""
    flat: dict[str, Any] = {}
    for path, value in leaves(read_mapping(content, place)):
        key = ".".join(path)
        if key in flat:
            raise InputError(
                f"{place}: {key} is given twice, as {shown(flat[key])} and as {shown(value)}; keep one of them"
            )
        flat[key] = value
        _check_passable(key, value, place)
    for key, advice in HARNESS_KEYS.items():
        if key in flat:
            raise InputError(f"{place}: {key} is set by the harness; {advice}")
    return flat


def _check_passable(key: str, value: Any, place: str) -> None:
    """Raise InputError for what no command line can hold, and for numbers that no config means."""
    items = value if isinstance(value, list | tuple) else [value]
    for item in (key, *items):
        if isinstance(item, str) and ("\0" in item or any("\ud800" <= letter <= "\udfff" for letter in item)):
            raise InputError(
                f"{place}: {shown(item)} holds characters that no command line takes; remove them"
            )
        if isinstance(item, int) and abs(item) > MOST_NUMBER:
            raise InputError(f"{place}: {key} is {shown(item)}, which is too large a number")


def _words(content: Any, place: str) -> dict[str, str]:
    return {str(key): str(value) for key, value in read_mapping(content, place).items()}


def _data(content: Any, place: str) -> tuple[str, ...]:
    names = [content] if isinstance(content, str) else content or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{place} must be a list of files and folders below the data root, not {shown(content)}"
        )
    for name in names:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise InputError(f"{place}: {shown(name)} must be a file or folder below the data root")
    return tuple(names)


def _resources(content: Any, place: str) -> dict[str, Any]:
    values = read_mapping(content, place)
    check_keys(values, RESOURCE_KEYS, place)
    for key, value in values.items():
        is_whole = key in ("gpus", "cpus")
        is_number = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= MOST_RESOURCES or (key != "gpus" and value == 0):
            raise InputError(
                f"{place}: {key} must be a {'whole ' if is_whole else ''}number, not {shown(value)}"
            )
    return values
