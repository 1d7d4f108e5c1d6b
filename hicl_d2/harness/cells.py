"""One training of a matrix: its config, its identity and its folder."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from hicl_d2.command.layout import PLACE_KEYS

AXES = ("dataset", "model", "method", "ablation")

# Keys that hold the path of a file, of which the name counts.
PATH_KEYS = ("MODEL.WEIGHTS",)


@dataclass(frozen=True)
class Resources:
    """What a cell needs. ``memory_gb`` is per GPU (0: not known), ``timeout_hours`` None: no limit."""

    gpus: int = 1
    memory_gb: float = 0.0
    cpus: int = 4
    timeout_hours: float | None = None


@dataclass(frozen=True)
class Cell:
    """A point of the matrix: a name on every axis ("" where there is no such axis), a seed, a config.

    ``resolved`` is the config with its bases, overrides and seed, flat; ``data`` the fingerprint of its data
    set; ``obstacle`` says why it cannot run here (None: it can); without ``has_config`` it cannot run anywhere.
    """

    dataset: str
    model: str
    method: str
    ablation: str
    seed: int
    config: Path
    overrides: Mapping[str, Any]
    resolved: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    resources: Resources = field(default_factory=Resources)
    obstacle: str | None = None
    has_config: bool = True

    @cached_property
    def name(self) -> str:
        """The names on the axes and the seed, for people."""
        return "/".join([*(name for name in self.group if name), f"seed {self.seed}"])

    @property
    def group(self) -> tuple[str, str, str, str]:
        """The names on the axes, which cells share that differ in their seed alone."""
        return (self.dataset, self.model, self.method, self.ablation)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The resolved config without the keys that only say where the training runs."""
        content = {key: value for key, value in self.resolved.items() if key not in PLACE_KEYS}
        for key in PATH_KEYS:
            if isinstance(content.get(key), str):
                content[key] = PurePosixPath(content[key]).name
        return content

    @cached_property
    def hash(self) -> str:
        """Ten hexadecimal digits of the identity and the data; comments and places do not change them."""
        text = json.dumps([self.identity, self.data], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @cached_property
    def slug(self) -> str:
        """The name of the cell's folder: readable, and different for every config."""
        words = [*(name for name in self.group if name), f"seed{self.seed}"]
        readable = "-".join(re.sub(r"[^\w.]+", "_", word) for word in words)
        return f"{readable[:200]}-{self.hash}"

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
        value = self.resolved.get("SOLVER.MAX_ITER")
        return value if isinstance(value, int) else None

    @property
    def evaluations(self) -> int:
        """How many evaluations the training makes."""
        period, total = self.resolved.get("TEST.EVAL_PERIOD", 0), self.iterations
        return max(1, total // period) if isinstance(period, int) and period > 0 and total else 1
