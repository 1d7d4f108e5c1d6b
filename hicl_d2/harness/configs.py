"""Resolving a config file: its ``_BASE_`` chain merged, overrides on top."""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

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


def literal(value: Any) -> Any:
    """Return ``value`` as the training will understand it, in JSON's types; two spellings give one value."""
    if isinstance(value, str):
        return _parsed(value)
    if isinstance(value, list | tuple):
        return [literal(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


@cache
def _parsed(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return text if isinstance(value, str | bytes | set) else literal(value)
