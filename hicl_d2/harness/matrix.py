"""The matrix file: its axes, and the cells that they span."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hicl_d2.command import imports
from hicl_d2.command.errors import InputError, nearest_or_known
from hicl_d2.command.identity import MISSING, WEIGHTS_KEY, config_digest, weights_content
from hicl_d2.command.safe_yaml import BASE_KEY, Document, read_chain
from hicl_d2.command.shipped import MATRIX, locate
from hicl_d2.harness import ROOT
from hicl_d2.harness.cells import AXES, Cell, Resources
from hicl_d2.harness.configs import Configs
from hicl_d2.harness.data import data_root, fingerprint
from hicl_d2.harness.defaults import defaults
from hicl_d2.harness.points import (
    Point,
    check_keys,
    check_name,
    read_axis,
    read_mapping,
    read_overrides,
    read_point,
    read_text,
    shown,
)

AXIS_KEYS = tuple(f"{axis}s" for axis in AXES)
TOP_KEYS = ("config", "overrides", "words", "data", "resources")
KEYS = (
    "name",
    *TOP_KEYS,
    *AXIS_KEYS,
    "seeds",
    "include",
    "exclude",
    "baseline",
    "report",
    "shorten",
)
EXCLUDE_KEYS = (*AXES, "seed")
# What a seed of the training must be below.
SEEDS = 2**31
WORD = re.compile(r"\{(\w+)\}")
INCLUDE_KEYS = (*AXES, "seeds", *TOP_KEYS)
REPORT_KEYS = ("metrics", "compare")
MAIN_METRIC = "sem_seg/mIoU"
DEFAULT_METRICS = (MAIN_METRIC, "sem_seg/mAcc", "seconds/per_iteration")


@dataclass
class Contents:
    """What enters the cells beside their configs: fingerprints of data sets, contents of weights and of modules, by name."""

    data: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, dict[str, str]]:
        """Return the three mappings, those without an entry left out."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class Matrix:
    """A matrix file, read and checked.

    ``baseline`` holds the names on the axes that the others are compared with: {"method": "baseline"}.
    ``contents`` say what every data set, weights file and module of IMPORTS that could be looked at holds. ``compare`` are
    the two methods of the detailed figures.
    """

    path: Path
    name: str
    baseline: Mapping[str, str]
    cells: tuple[Cell, ...]
    metrics: tuple[str, ...] = DEFAULT_METRICS
    compare: tuple[str, str] | None = None
    contents: "Contents" = field(default_factory=lambda: Contents())

    @property
    def is_short(self) -> bool:
        """Whether the cells are those with the file's ``shorten``."""
        return self.cells[0].is_short

    def groups(self) -> dict[tuple[str, ...], list[Cell]]:
        """Return the cells that differ in their seed alone, in the order of the file."""
        groups: dict[tuple[str, ...], list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(cell.group, []).append(cell)
        return groups

    def baseline_of(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """Return the group that ``group`` is compared with (itself, if it is the baseline)."""
        names = {**dict(zip(AXES, group, strict=True)), **self.baseline}
        return tuple(names[axis] for axis in AXES)

    def against(self, name: str) -> "Matrix":
        """Return the matrix with another method, or else ablation, as baseline; on other axes it stays as it is."""
        named = {axis: {getattr(cell, axis) for cell in self.cells} - {""} for axis in ("method", "ablation")}
        axis = next((axis for axis, there in named.items() if name in there), None)
        if axis is None:
            there = sorted(set.union(*named.values()))
            raise InputError(
                f"--against {name} is no method or ablation of {self.path}{nearest_or_known(name, there)}"
            )
        other = replace(self, baseline={**self.baseline, axis: name})
        groups = other.groups()
        if not any(other.baseline_of(group) in groups for group in groups):
            wanted = ", ".join(f"{key} {value}" for key, value in other.baseline.items())
            raise InputError(f"--against {name}: {self.path} has no cell of {wanted} to compare with")
        return other


def read_matrix(path: Path, shorten: bool = False, known: Contents | None = None) -> Matrix:
    """Read a matrix file and those it is based on. Their configs are paths from their own folders or from the current one, or
    names of the project's.

    ``shorten`` puts the file's ``shorten`` overrides on top of every cell; ``known`` are contents noted before, for what is
    not on this machine. Raises InputError, in one line, for anything
    that does not fit; cells that cannot run here have an ``obstacle``.
    """
    chain = read_chain(path, MATRIX, text_keys=True)
    content, places = _merged(chain)
    for key in ("name", "methods", "seeds"):
        if not content.get(key):
            raise InputError(f"{path}: {key} is missing")
    name = check_name(read_text(content, "name", str(path)), f"{path}: name")
    axes = [
        read_axis(content.get(key), f"{places.get(key, path)}: {key}", axis)
        for axis, key in zip(AXES, AXIS_KEYS, strict=True)
    ]
    extra = _shorten(chain, path) if shorten else {}
    builder = _Builder(chain, extra, known or Contents())
    seeds = _seeds(content["seeds"], places["seeds"])
    cells = [builder.cell(points, seed) for points in itertools.product(*axes) for seed in seeds]
    cells = _excluded(cells, content.get("exclude"), places.get("exclude", path))
    cells += [
        builder.cell(points, seed)
        for points, seed in _included(content.get("include"), seeds, axes, places.get("include", path))
    ]
    if not cells:
        raise InputError(f"{path}: exclude leaves no cell")
    _check_different(cells, path)
    return Matrix(
        path,
        name,
        _baseline(content.get("baseline"), cells, places.get("baseline", path)),
        tuple(cells),
        **_report(content.get("report"), cells, places.get("report", path)),
        contents=builder.contents,
    )


def _merged(chain: Sequence[Document]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the keys of a file and its bases, and the file that each is from: a file's own key takes its base's place.

    A name is a file's own, as its results are. What :func:`read_point` reads is not merged here: of overrides, words and
    resources each key counts by itself.
    """
    content: dict[str, Any] = {}
    places: dict[str, Path] = {}
    for document in chain:
        check_keys(document.content, (*KEYS, BASE_KEY), str(document.path))
        content.pop("name", None)
        for key, value in document.content.items():
            both = key == "report" and isinstance(value, dict) and isinstance(content.get(key), dict)
            content[key] = {**content[key], **value} if both else value
            places[key] = document.path
    return content, places


class _Builder:
    """Builds the cells of a matrix, given by its file and those it is based on; reads what many of them share once."""

    def __init__(self, chain: Sequence[Document], extra: Mapping[str, Any], known: Contents) -> None:
        self.contents = Contents()
        self._path = chain[-1].path
        self._folders = [document.path.parent for document in reversed(chain)]
        self._tops = [read_point("", document.content, str(document.path)) for document in chain]
        self._extra = extra
        self._known = known
        self._defaults = defaults()
        self._digests: dict[tuple[Path, str], str] = {}
        self._configs = Configs()
        self._paths: dict[str, Path] = {}
        self._exists: dict[Path, bool] = {}
        self._data_obstacles: dict[str, str | None] = {}

    def cell(self, points: Sequence[Point], seed: int) -> Cell:
        """Return the cell at ``points``: the config of the last one that names one, the overrides of all."""
        names = dict(zip(AXES, (point.name for point in points), strict=True))
        config = self._config(points, names)
        overrides: dict[str, Any] = {}
        resources: dict[str, Any] = {}
        for point in (*self._tops, *points):
            overrides.update(point.overrides)
            resources.update(point.resources)
        overrides.update(self._extra)
        if config not in self._exists:
            self._exists[config] = config.is_file()
        obstacle: str | None = None
        resolved: dict[str, Any] = {**overrides, "SEED": seed}
        if self._exists[config]:
            resolved = self._configs.resolve(config, resolved)
        else:
            obstacle = f"no config {_shown(config)}"
        resources.setdefault("gpus", 0 if resolved.get("MODEL.DEVICE") == "cpu" else 1)
        data_names = tuple(name for point in (*self._tops, *points) for name in point.data)
        data, no_data = self._look_at_data(names["dataset"], data_names)
        weights = resolved.get(WEIGHTS_KEY)
        return Cell(
            **names,
            seed=seed,
            config=config,
            overrides=overrides,
            resolved=resolved,
            data=data,
            data_names=data_names,
            resources=Resources(**resources),
            obstacle=obstacle or no_data,
            has_config=self._exists[config],
            defaults=self._defaults,
            weights=self._look_at_weights(weights) if isinstance(weights, str) else "",
            imports=self._look_at_imports(resolved.get(imports.KEY)),
            is_short=bool(self._extra),
            digest=self._digest(config, overrides, resolved),
        )

    def _digest(self, config: Path, overrides: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
        """Return the digest of a config, which cells that differ in their seed alone share."""
        key = (config, json.dumps(overrides, sort_keys=True, default=str))
        if key not in self._digests:
            self._digests[key] = config_digest({**self._defaults, **resolved})
        return self._digests[key]

    def _look_at_weights(self, weights: str) -> str:
        """Return what stands for the content of weights; of those that are not here any more, what was noted."""
        if weights not in self.contents.weights:
            found = weights_content(weights)
            if found.startswith(MISSING):
                found = self._known.weights.get(weights, found)
            self.contents.weights[weights] = found
        return self.contents.weights[weights]

    def _look_at_imports(self, names: Any) -> dict[str, str]:
        """Return a digest of the code of each module; that one cannot be found is for the training to say."""
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str) and name not in self.contents.imports:
                try:
                    self.contents.imports |= imports.content_of([name])
                except InputError:
                    self.contents.imports[name] = self._known.imports.get(name, MISSING)
        known = self.contents.imports
        return {name: known[name] for name in names if name in known} if isinstance(names, list) else {}

    def _config(self, points: Sequence[Point], names: dict[str, str]) -> Path:
        templates = [point.config for point in (*self._tops, *points) if point.config is not None]
        if not templates:
            named = "/".join(filter(None, names.values()))
            raise InputError(f"{self._path}: no config for {named}; give the matrix a config")
        words = dict(names)
        for point in (*self._tops, *points):
            words.update(point.words)
        name = self._filled(templates[-1], words)
        if name not in self._paths:
            is_ours = self._path.absolute().is_relative_to(
                ROOT
            )  # its configs are ours, whatever lies in the current folder
            places = () if is_ours else (*self._folders, Path())
            self._paths[name] = (locate(name, folders=places) or ROOT / name).absolute()
        return self._paths[name]

    def _filled(self, template: str, words: Mapping[str, str]) -> str:
        """Return a template with its words filled in; nothing else that str.format knows is offered."""
        parts = WORD.split(template)
        if any("{" in text or "}" in text for text in parts[::2]) or not words.keys() >= set(parts[1::2]):
            allowed = ", ".join(f"{{{word}}}" for word in words)
            raise InputError(f"{self._path}: config {template} may hold {allowed} and no other braces")
        parts[1::2] = [words[word] for word in parts[1::2]]
        return "".join(parts)

    def _look_at_data(self, dataset: str, names: Sequence[str]) -> tuple[str, str | None]:
        """Return the fingerprint of a data set and why it cannot be used here."""
        if not names:
            return "", None
        if dataset not in self._data_obstacles:
            found = fingerprint(names)
            self._data_obstacles[dataset] = (
                f"no data {' '.join(names)} below {data_root()} (set DETECTRON2_DATASETS)"
                if found is None
                else None
            )
            known = found or self._known.data.get(dataset)
            if known is not None:
                self.contents.data[dataset] = known
        return self.contents.data.get(dataset, ""), self._data_obstacles[dataset]


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _shorten(chain: Sequence[Document], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for document in chain:
        found.update(read_overrides(document.content.get("shorten"), f"{document.path}: shorten"))
    if not found:
        raise InputError(
            f"{path} has no shorten: give it overrides (SOLVER.MAX_ITER, ...) or run without --shorten"
        )
    return found


def _seeds(content: Any, path: Path | str) -> list[int]:
    is_list = isinstance(content, list) and all(type(seed) is int and seed >= 0 for seed in content)
    if not is_list or not content:
        raise InputError(f"{path}: seeds must be a list of whole numbers from 0, not {shown(content)}")
    if max(content) >= SEEDS:
        raise InputError(f"{path}: seed {shown(max(content))} is too large; seeds are below {SEEDS}")
    twice = sorted(seed for seed, times in Counter(content).items() if times > 1)
    if twice:
        raise InputError(f"{path}: seed {twice[0]} is named twice")
    return content


def _entries(content: Any, known: tuple[str, ...], place: str) -> Iterator[tuple[dict[str, Any], str]]:
    if content is None:
        return
    if not isinstance(content, list) or not all(isinstance(entry, dict) and entry for entry in content):
        raise InputError(f"{place} must be a list of entries with {', '.join(known)}, not {shown(content)}")
    for number, entry in enumerate(content, 1):
        check_keys(entry, known, f"{place}: entry {number}")
        yield entry, f"{place}: entry {number}"


def _excluded(cells: list[Cell], content: Any, path: Path) -> list[Cell]:
    """Return the cells that no entry matches; an entry is a glob, or several, for each axis it names."""
    for entry, place in _entries(content, EXCLUDE_KEYS, f"{path}: exclude"):
        kept = [cell for cell in cells if not _matches(cell, entry)]
        if len(kept) == len(cells):
            raise InputError(f"{place} matches no cell; remove it, or correct its names")
        cells = kept
    return cells


def _matches(cell: Cell, entry: Mapping[str, Any]) -> bool:
    for axis, globs in entry.items():
        name = str(getattr(cell, axis))
        if not any(fnmatchcase(name, str(glob)) for glob in (globs if isinstance(globs, list) else [globs])):
            return False
    return True


def _included(
    content: Any, seeds: list[int], axes: list[list[Point]], path: Path
) -> Iterator[tuple[tuple[Point, ...], int]]:
    """Yield the cells that entries add to the product: the points they name, merged with the entry's own keys."""
    known = {axis: {point.name: point for point in points} for axis, points in zip(AXES, axes, strict=True)}
    for entry, place in _entries(content, INCLUDE_KEYS, f"{path}: include"):
        own = read_point("", entry, place)
        names = {
            axis: check_name(entry[axis], f"{place}: {axis}", axis) if axis in entry else "" for axis in AXES
        }
        points = [known[axis].get(name, Point(name)) for axis, name in names.items()]
        last = points[-1]
        points[-1] = Point(
            last.name,
            own.config if own.config is not None else last.config,
            {**last.overrides, **own.overrides},
            {**last.words, **own.words},
            last.data + own.data,
            {**last.resources, **own.resources},
        )
        for seed in _seeds(entry.get("seeds", seeds), place):
            yield tuple(points), seed


def _baseline(content: Any, cells: list[Cell], path: Path) -> dict[str, str]:
    """Return the names on the axes that make a baseline: a method, or a name for each of several axes."""
    if content is None:
        return {"method": cells[0].method}
    names = {"method": content} if isinstance(content, str) else content
    if not isinstance(names, dict) or not names:
        raise InputError(f"{path}: baseline must be a method, or a name for some axes, not {shown(content)}")
    check_keys(names, AXES, f"{path}: baseline")
    for axis, name in names.items():
        there = {getattr(cell, axis) for cell in cells}
        if not isinstance(name, str) or name not in there:
            raise InputError(
                f"{path}: baseline {name} is not one of the {axis}s{nearest_or_known(str(name), there)}"
            )
    return names


def _report(content: Any, cells: list[Cell], path: Path) -> dict[str, Any]:
    values = read_mapping(content, f"{path}: report")
    check_keys(values, REPORT_KEYS, f"{path}: report")
    metrics = values.get("metrics", list(DEFAULT_METRICS))
    if not isinstance(metrics, list) or not metrics or not all(isinstance(name, str) for name in metrics):
        raise InputError(
            f"{path}: report: metrics must be a list of names ({MAIN_METRIC}, ...), not {shown(metrics)}"
        )
    methods = list(dict.fromkeys(cell.method for cell in cells))
    compare = values.get("compare", [methods[0], methods[-1]])
    if not isinstance(compare, list) or len(compare) != 2:
        raise InputError(f"{path}: report: compare must be two methods, not {shown(compare)}")
    for name in compare:
        if name not in methods:
            raise InputError(
                f"{path}: report: compare: {name} is not one of the methods{nearest_or_known(str(name), methods)}"
            )
    return {"metrics": tuple(metrics), "compare": tuple(compare) if compare[0] != compare[1] else None}


def _check_different(cells: list[Cell], path: Path) -> None:
    """Raise InputError for two cells of one name or identity (which is not known where a config is missing)."""
    first: dict[tuple[str, str], Cell] = {}
    named: dict[str, Cell] = {}
    for cell in cells:
        if named.setdefault(cell.name, cell) is not cell:
            raise InputError(f"{path}: two cells are called {cell.name}; give one of them another name")
        twin = first.setdefault((cell.hash, "" if cell.has_config else str(cell.config)), cell)
        if twin is not cell:
            raise InputError(f"{path}: {twin.name} and {cell.name} are the same training; remove one of them")
