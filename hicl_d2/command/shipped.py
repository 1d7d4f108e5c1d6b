"""The configs and matrices that come with the project, found by name from any folder.

A checkout has them in configs/ and benchmark/; an installed package carries the same folders inside itself. A name is
the path below configs/ or benchmark/matrices/, with or without that folder and the ending: ``camvid/Base-CamVid.yaml``.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hicl_d2.command.errors import InputError, nearest
from hicl_d2.command.files import expanded

PACKAGE = Path(__file__).resolve().parents[1]
IS_CHECKOUT = not (PACKAGE / "configs").is_dir()
# The folder of configs/, benchmark/ and projects/.
HOME = PACKAGE.parent if IS_CHECKOUT else PACKAGE
CONFIG, MATRIX = "config file", "matrix file"
# Where the files of each kind lie in HOME.
FOLDERS = {CONFIG: "configs", MATRIX: "benchmark/matrices"}
SUFFIX = ".yaml"


@cache
def names(kind: str = CONFIG) -> tuple[str, ...]:
    """Return the names of all files of a kind, sorted: paths below its folder, with "/" and the ending."""
    folder = HOME / FOLDERS[kind]
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{SUFFIX}")))


def is_base(name: str) -> bool:
    """Return whether a config is there for others to be based on: its file begins with Base-."""
    return Path(name).name.startswith("Base-")


def locate(name: str | Path, kind: str = CONFIG, folders: Sequence[Path] = (Path(),)) -> Path | None:
    """Return the file that ``name`` stands for: a path that exists below one of ``folders`` (the current one), else a file
    that comes with the project; None if there is neither.
    """
    path = expanded(name)
    for folder in folders:
        if os.path.exists(folder / path):
            return folder / path
    own = own_name(path, kind)
    return None if own is None else HOME / FOLDERS[kind] / own


def find(name: str | Path, kind: str = CONFIG) -> Path:
    """Return :func:`locate`; InputError, with the nearest name of the project's own, if there is none."""
    path = locate(name, kind)
    if path is None:
        raise InputError(f"{kind} {name} does not exist{_hint(Path(name), kind)}")
    return path


def own_name(path: Path, kind: str = CONFIG) -> str | None:
    """Return which of :func:`names` a path is, None if it is none of them; the disk is not asked about ``path``."""
    wanted = _stripped(path.as_posix(), kind)
    for candidate in (wanted, f"{wanted}{SUFFIX}"):
        if candidate in names(kind):
            return candidate
    return None


def _stripped(text: str, kind: str) -> str:
    """Return ``text`` without the folder of its kind in front: configs/, benchmark/matrices/ or matrices/."""
    text = text.removeprefix("./")
    folder = FOLDERS.get(kind, "")
    for prefix in (f"{folder}/", f"{Path(folder).name}/"):
        text = text.removeprefix(prefix)
    return text


def _hint(path: Path, kind: str) -> str:
    """Return the nearest name as a question, by the whole path and then by its last part."""
    known = names(kind)
    whole = nearest(_stripped(path.as_posix(), kind), known)
    if whole:
        return whole
    by_stem = {Path(name).stem: name for name in reversed(known)}
    close = nearest(path.stem, by_stem).removeprefix("; did you mean ").removesuffix("?")
    if close:
        return f"; did you mean {by_stem[close]}?"
    return "; hicl configs lists those that come with the project"
