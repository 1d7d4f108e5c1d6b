"""Modules of the user's own that a config names in IMPORTS: imported by their names, known by the content of their files."""

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from hicl_d2.command.errors import InputError, one_line

KEY = "IMPORTS"


def import_modules(names: Iterable[str]) -> None:
    """Import each module of ``names``, found on the Python path or in the current folder.

    Raises InputError for a module that is not there and for whatever it raises.
    """
    for name in names:
        _find(name)
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(name)
        except InputError:
            raise
        except Exception as error:  # code of the user's own raises what it likes
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise InputError(
                f"{KEY}: {name} cannot be imported: {type(error).__name__}: {one_line(error)} "
                f"({frame.filename}:{frame.lineno})"
            ) from error


def content_of(names: Iterable[str]) -> dict[str, str]:
    """Return sixteen hexadecimal digits for each module of ``names`` that change with its code; nothing is imported.

    The code of a module in a package is all Python files of the package, which may import each other. Raises InputError for
    a module that is not there.
    """
    return {name: _digest(_files(name)) for name in names}


def _files(name: str) -> list[Path]:
    _find(name)
    top = _spec(name.partition(".")[0], None)
    folders = list(top.submodule_search_locations or ()) if top else []
    if folders:
        return sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    return [Path(top.origin)] if top and top.origin else []


def _digest(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def _find(name: str) -> ModuleSpec:
    """Return where a module lies, without running the packages that it is in. Raises InputError if it is nowhere."""
    path: list[str] | None = None
    spec = None
    done = ""
    for part in name.split("."):
        done = f"{done}.{part}" if done else part
        spec = _spec(done, path)
        if spec is None:
            raise InputError(
                f"{KEY} names {name}, but there is no module {done} on the Python path or in {os.getcwd()}; set PYTHONPATH to "
                "the folder that it lies in"
            )
        path = list(spec.submodule_search_locations or ())
    assert spec is not None
    return spec


def _spec(name: str, path: list[str] | None) -> ModuleSpec | None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"{KEY} names {name!r}, which is no name of a module (my_package.my_module)")
    if path is None:
        return PathFinder.find_spec(name, [*sys.path, os.getcwd()])
    return PathFinder.find_spec(name, path)
