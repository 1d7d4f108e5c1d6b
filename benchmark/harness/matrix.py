"""The matrix file: its axes, and the cells that they span."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cells import AXES, Cell
from harness.configs import flatten
from harness.errors import InputError, nearest
from harness.files import read_yaml

ROOT = Path(__file__).resolve().parents[2]

KEYS = ("name", "config", "overrides", *(f"{axis}s" for axis in AXES), "seeds", "baseline", "shorten")
POINT_KEYS = ("config", "overrides")
HARNESS_KEYS = {"SEED": "list it under seeds", "OUTPUT_DIR": "every cell gets its own"}


@dataclass(frozen=True)
class Point:
    """A place on an axis: its config, if it names one, and its overrides, flat."""

    name: str
    config: str | None
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Matrix:
    """A matrix file, read and checked. ``baseline`` is the method that the others are compared with."""

    path: Path
    name: str
    baseline: str
    cells: tuple[Cell, ...]


def read_matrix(path: Path, shorten: bool = False) -> Matrix:
    """Read a matrix file.

    ``shorten`` puts the file's ``shorten`` overrides on top of every cell. Raises InputError, in one line,
    for anything that does not fit.
    """
    content = read_yaml(path)
    _check_keys(content, KEYS, str(path))
    for key in ("name", "methods", "seeds"):
        if not content.get(key):
            raise InputError(f"{path}: {key} is missing")
    name = _text(content, "name", str(path))
    axes = [_axis(content.get(f"{axis}s"), f"{path}: {axis}s") for axis in AXES]
    methods = [point.name for point in axes[AXES.index("method")]]
    baseline = str(content.get("baseline", methods[0]))
    if baseline not in methods:
        raise InputError(f"{path}: baseline {baseline} is not one of the methods{nearest(baseline, methods)}")
    top = _point("", content, str(path))
    extra = _shorten(content, path) if shorten else {}
    seeds = _seeds(content["seeds"], path)
    cells = [_cell(path, top, points, seed, extra) for points in itertools.product(*axes) for seed in seeds]
    _check_different(cells, path)
    return Matrix(path, name, baseline, tuple(cells))


def _check_keys(content: Mapping[Any, Any], known: tuple[str, ...], place: str) -> None:
    for key in content:
        if key not in known:
            raise InputError(f"{place}: unknown key {key}{nearest(str(key), known)}")


def _text(content: Mapping[str, Any], key: str, place: str) -> str:
    value = content[key]
    if not isinstance(value, str):
        raise InputError(f"{place}: {key} must be text, not {value!r}")
    return value


def _axis(content: Any, place: str) -> list[Point]:
    """Return the points of an axis: a list of names, or a mapping from names to config and overrides."""
    if content is None:
        return [Point("", None, {})]
    if isinstance(content, list):
        names = [str(name) for name in content]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"{place}: {twice[0]} is named twice")
        content = dict.fromkeys(names)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{place} must be a list of names, or names with config and overrides")
    return [_checked_point(str(name), value, f"{place}: {name}") for name, value in content.items()]


def _checked_point(name: str, content: Any, place: str) -> Point:
    if not isinstance(content, dict | None):
        raise InputError(f"{place} must have config and overrides, not {content!r}")
    _check_keys(content or {}, POINT_KEYS, place)
    return _point(name, content or {}, place)


def _point(name: str, content: Mapping[str, Any], place: str) -> Point:
    config = _text(content, "config", place) if content.get("config") is not None else None
    return Point(name, config, _overrides(content.get("overrides"), f"{place}: overrides"))


def _overrides(content: Any, place: str) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{place} must be keys and values, not {content!r}")
    flat = flatten(content)
    for key, advice in HARNESS_KEYS.items():
        if key in flat:
            raise InputError(f"{place}: {key} is set by the harness; {advice}")
    return flat


def _shorten(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if not content.get("shorten"):
        raise InputError(
            f"{path} has no shorten: give it overrides (SOLVER.MAX_ITER, ...) or run without --shorten"
        )
    return _overrides(content["shorten"], f"{path}: shorten")


def _seeds(content: Any, path: Path) -> list[int]:
    is_list = isinstance(content, list) and all(type(seed) is int and seed >= 0 for seed in content)
    if not is_list:
        raise InputError(f"{path}: seeds must be a list of whole numbers from 0, not {content!r}")
    twice = sorted({seed for seed in content if content.count(seed) > 1})
    if twice:
        raise InputError(f"{path}: seed {twice[0]} is named twice")
    return content


def _cell(path: Path, top: Point, points: tuple[Point, ...], seed: int, extra: dict[str, Any]) -> Cell:
    """Return the cell at ``points``: the config of the last axis that names one, the overrides of all."""
    names = dict(zip(AXES, (point.name for point in points), strict=True))
    templates = [point.config for point in (top, *points) if point.config is not None]
    if not templates:
        raise InputError(
            f"{path}: no config for {'/'.join(filter(None, names.values()))}; give the matrix a config"
        )
    try:
        config = ROOT / templates[-1].format(**names)
    except (KeyError, IndexError, ValueError):
        allowed = ", ".join(f"{{{axis}}}" for axis in AXES)
        raise InputError(f"{path}: config {templates[-1]} may hold {allowed} and no other braces") from None
    overrides: dict[str, Any] = {}
    for point in (top, *points):
        overrides.update(point.overrides)
    cell = Cell(**names, seed=seed, config=config, overrides={**overrides, **extra})
    if not config.is_file():
        raise InputError(f"{path}: the config of {cell.name} does not exist: {config}")
    return cell


def _check_different(cells: list[Cell], path: Path) -> None:
    first: dict[str, Cell] = {}
    for cell in cells:
        twin = first.setdefault(cell.hash, cell)
        if twin is not cell:
            raise InputError(f"{path}: {twin.name} and {cell.name} are the same training; remove one of them")
