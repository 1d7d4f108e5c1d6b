"""Resolving a config file: its ``_BASE_`` chain merged, overrides on top."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hicl_d2.command.identity import literal
from hicl_d2.command.safe_yaml import flatten, read_chain


class Configs:
    """Config files, each read once: ten thousand cells share a few."""

    def __init__(self) -> None:
        self._flat: dict[Path, dict[str, Any]] = {}

    def resolve(self, path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config of ``path`` with its bases and ``overrides``, flat: {"SOLVER.MAX_ITER": 400}.

        Values are as the training reads them: text that is a Python literal is that literal, tuples are lists.
        Keys that no file names keep the training's defaults and do not appear. Raises InputError for a file
        that is missing or malformed.
        """
        if path not in self._flat:
            merged: dict[str, Any] = {}
            for document in read_chain(path):
                merged.update(flatten(document.content))
            self._flat[path] = {key: literal(value) for key, value in merged.items()}
        changes = {key: literal(value) for key, value in flatten(overrides).items()}
        return {**self._flat[path], **changes}
