"""What a config file says in the end: its chain of bases merged, and overrides on top."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.files import read_yaml

BASE_KEY = "_BASE_"


def resolve(path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of ``path`` with its bases and ``overrides``, flat: {"SOLVER.MAX_ITER": 400}.

    Keys that no file names keep the training's defaults and do not appear. Raises InputError for a file that
    is missing or malformed.
    """
    resolved: dict[str, Any] = {}
    for content in reversed(list(_chain(path))):
        resolved.update(flatten(content))
    resolved.update(flatten(overrides))
    return resolved


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
