"""One training of a matrix: its config, its identity and its folder."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hicl_d2.command.identity import WEIGHTS_KEY, Identity, config_digest, literal
from hicl_d2.command.layout import PLACE_KEYS

AXES = ("dataset", "model", "method", "ablation")


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

    ``resolved`` is the config with its bases, overrides and seed, flat, and ``defaults`` are the keys that it does not name;
    ``data`` is the fingerprint of its data set, the files and folders ``data_names`` below the data root; ``weights`` and
    ``imports`` say what those keys of the config hold today;
    ``obstacle`` says why it cannot run here (None: it can); without ``has_config`` it cannot run anywhere. ``is_short``: with
    the matrix's ``shorten``. ``digest``: the config's, where it is known already. ``adopted``: the folder of the same run
    that was named when the code had fewer keys.
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
    data_names: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    obstacle: str | None = None
    has_config: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    imports: Mapping[str, str] = field(default_factory=dict)
    is_short: bool = False
    digest: str = ""
    adopted: str = ""

    @cached_property
    def name(self) -> str:
        """The names on the axes and the seed, for people."""
        return "/".join([*(name for name in self.group if name), f"seed {self.seed}"])

    @property
    def group(self) -> tuple[str, str, str, str]:
        """The names on the axes, which cells share that differ in their seed alone."""
        return (self.dataset, self.model, self.method, self.ablation)

    @cached_property
    def config_values(self) -> dict[str, Any]:
        """Every key of the config with its value, without those that only say where the training runs."""
        whole = {**self.defaults, **self.resolved}
        content = {key: literal(value) for key, value in whole.items() if key not in PLACE_KEYS}
        if content.get(WEIGHTS_KEY):
            content[WEIGHTS_KEY] = self.weights
        return content

    @cached_property
    def identity(self) -> Identity:
        """What makes the cell's training the one that it is."""
        digest = self.digest or config_digest({**self.defaults, **self.resolved})
        return Identity(digest, self.seed, self.weights, self.data, self.imports)

    @property
    def hash(self) -> str:
        """The digits of the identity; comments and places do not change them."""
        return self.identity.digest

    @cached_property
    def readable(self) -> str:
        """The part of the folder's name that people read."""
        words = [*(name for name in self.group if name), f"seed{self.seed}"]
        return "-".join(_plain(word) for word in words)[:200]

    @cached_property
    def slug(self) -> str:
        """The name of the cell's folder: readable, and different for every identity."""
        return self.adopted or f"{self.readable}-{self.hash}"

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
        return value if isinstance(value, int) and 0 <= value < 2**53 else None

    @property
    def evaluations(self) -> int:
        """How many evaluations the training makes."""
        period, total = self.resolved.get("TEST.EVAL_PERIOD", 0), self.iterations
        return max(1, total // period) if isinstance(period, int) and period > 0 and total else 1


def _plain(name: str) -> str:
    """Return ``name`` in characters that any path may hold; names that differ in others alone stay different."""
    word = re.sub(r"[^\w.]+", "_", name, flags=re.ASCII)
    if re.fullmatch(r"[\w.+=-]*", name, re.ASCII):
        return word
    return f"{word}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"
