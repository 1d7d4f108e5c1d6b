"""One training of a matrix: what it is, where it lives, and what has become of it."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.configs import resolve
from harness.errors import InputError

RESULT_FILE = "result.json"
RESULT_SCHEMA = 1
AXES = ("dataset", "model", "method", "ablation")

# Keys that say where a training runs and not what it computes.
PLACE_KEYS = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS")


@dataclass(frozen=True)
class Cell:
    """A point of the matrix: a name on every axis ("" where there is no such axis), a seed, a config."""

    dataset: str
    model: str
    method: str
    ablation: str
    seed: int
    config: Path
    overrides: dict[str, Any]

    @property
    def name(self) -> str:
        """The names on the axes and the seed, for people."""
        return "/".join([*(getattr(self, axis) for axis in AXES if getattr(self, axis)), f"seed {self.seed}"])

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The config with its bases and overrides, flat."""
        return resolve(self.config, {**self.overrides, "SEED": self.seed})

    @cached_property
    def hash(self) -> str:
        """Ten digits that change with anything in the resolved config, not with comments or places."""
        content = {key: value for key, value in self.resolved.items() if key not in PLACE_KEYS}
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def slug(self) -> str:
        """The name of the cell's folder: readable, and different for every config."""
        words = [getattr(self, axis) for axis in AXES if getattr(self, axis)]
        words += [f"seed{self.seed}", self.hash]
        return "-".join(re.sub(r"[^\w.]+", "_", word) for word in words)

    def folder(self, output: Path) -> Path:
        """Return where the training writes."""
        return output / "cells" / self.slug

    def arguments(self) -> list[str]:
        """Return the overrides as the training's command line takes them: KEY VALUE ..."""
        words: list[str] = []
        for key, value in {**self.overrides, "SEED": self.seed}.items():
            words += [key, value if isinstance(value, str) else repr(value)]
        return words

    @property
    def iterations(self) -> int | None:
        """How many iterations the training takes, where the config says so."""
        try:
            return int(self.resolved["SOLVER.MAX_ITER"])
        except (KeyError, TypeError, ValueError):
            return None


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished training, None if there is none yet.

    A file that is damaged counts as none: the training will write it again. InputError for one of another
    schema.
    """
    path = folder / RESULT_FILE
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return None
    if not isinstance(result, dict) or result.get("status") != "finished":
        return None
    if result.get("schema") != RESULT_SCHEMA:
        raise InputError(
            f"{path} has schema {result.get('schema')!r} and this harness reads {RESULT_SCHEMA}; "
            "choose another --output, or move the cell's folder away"
        )
    return result


def measures(result: dict[str, Any]) -> Iterator[tuple[str, str, float | None, int | None]]:
    """Yield every number of a result as (metric, at, value, iteration); value None for nothing measured."""
    for at, scores in result.get("metrics", {}).items():
        iteration = scores.get("iteration")
        for metric, value in scores.items():
            if metric != "iteration":
                yield metric, at, _number(value), iteration
    last = result.get("metrics", {}).get("last", {})
    end = result.get("iterations")
    for name, value in result.get("class_iou", {}).items():
        if f"sem_seg/IoU-{name}" not in last:
            yield f"sem_seg/IoU-{name}", "last", _number(value), last.get("iteration")
    for group in ("seconds", "parameters"):
        for name, value in (result.get(group) or {}).items():
            yield f"{group}/{name}", "last", _number(value), end
    yield "peak_memory_mb", "last", _number(result.get("peak_memory_mb")), end


def _number(value: Any) -> float | None:
    """Return a finite number, None for anything else: JSON has no nan, and a table shows neither."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
