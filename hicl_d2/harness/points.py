"""Points on the axes of a matrix: a name with its config, overrides, words, data and resources."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hicl_d2.command.errors import InputError, nearest_or_known
from hicl_d2.command.safe_yaml import flatten
from hicl_d2.harness.cells import Resources

POINT_KEYS = ("config", "overrides", "words", "data", "resources")
RESOURCE_KEYS = tuple(field.name for field in fields(Resources))
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


def read_axis(content: Any, place: str) -> list[Point]:
    """Return the points of an axis, given as a list of names or as a mapping from names to their keys."""
    if content is None:
        return [Point("")]
    if isinstance(content, list):
        names = [_name(name, place) for name in content]
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        if twice:
            raise InputError(f"{place}: {twice[0]} is named twice")
        content = dict.fromkeys(names)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{place} must be a list of names, or names with config and overrides")
    return [_checked(_name(name, place), value, f"{place}: {name}") for name, value in content.items()]


def _name(name: Any, place: str) -> str:
    """Return a name, which must be text that stands in one line."""
    if not isinstance(name, str):
        raise InputError(f"{place}: a name must be text, not {name!r}; quote it, or YAML does not read it so")
    if not name.strip() or not name.isprintable():
        raise InputError(f"{place}: the name {name!r} must hold something, and no control characters")
    return name


def _checked(name: str, content: Any, place: str) -> Point:
    if not isinstance(content, dict | None):
        raise InputError(f"{place} must have config and overrides, not {content!r}")
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
        raise InputError(f"{place}: {key} must be text, not {value!r}")
    return value


def read_mapping(content: Any, place: str) -> dict[str, Any]:
    """Return keys and values, none for None."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{place} must be keys and values, not {content!r}")
    return content


def read_overrides(content: Any, place: str) -> dict[str, Any]:
    """Return overrides of the config, flat; InputError for a key that the harness sets itself."""
    flat = flatten(read_mapping(content, place))
    for key, advice in HARNESS_KEYS.items():
        if key in flat:
            raise InputError(f"{place}: {key} is set by the harness; {advice}")
    return flat


def _words(content: Any, place: str) -> dict[str, str]:
    return {str(key): str(value) for key, value in read_mapping(content, place).items()}


def _data(content: Any, place: str) -> tuple[str, ...]:
    names = [content] if isinstance(content, str) else content or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{place} must be a list of files and folders below the data root, not {content!r}")
    return tuple(names)


def _resources(content: Any, place: str) -> dict[str, Any]:
    values = read_mapping(content, place)
    check_keys(values, RESOURCE_KEYS, place)
    for key, value in values.items():
        is_whole = key in ("gpus", "cpus")
        is_number = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
        if not is_number or value < 0 or (key != "gpus" and value == 0):
            raise InputError(f"{place}: {key} must be a {'whole ' if is_whole else ''}number, not {value!r}")
    return values
