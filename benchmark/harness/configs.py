"""What a config file says in the end: its chain of bases merged, and overrides on top."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.files import read_yaml

BASE_KEY = "_BASE_"


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
            for content in reversed(list(_chain(path))):
                merged.update(flatten(content))
            self._flat[path] = {key: literal(value) for key, value in merged.items()}
        changes = {key: literal(value) for key, value in flatten(overrides).items()}
        return {**self._flat[path], **changes}


def _chain(path: Path) -> Iterator[dict[str, Any]]:
    seen: set[Path] = set()
    while True:
        if path.resolve() in seen:
            raise InputError(f"{path}: {BASE_KEY} leads back to this file; remove the circle")
        seen.add(path.resolve())
        content = read_yaml(path)
        base = content.pop(BASE_KEY, None)
        yield content
        if base is None:
            return
        if not isinstance(base, str):
            raise InputError(f"{path}: {BASE_KEY} must be the path of one config file, not {base!r}")
        path = path.parent / Path(base).expanduser()


def flatten(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


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
