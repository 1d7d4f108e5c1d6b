"""Which data a cell is trained on: a fingerprint of the files' names and sizes."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hicl_d2.command.errors import InputError
from hicl_d2.command.layout import data_root


def fingerprint(names: Iterable[str]) -> str | None:
    """Return ten digits for the files and folders ``names`` below the data root, None if one is not there.

    Contents are not read: a file that is changed and keeps its size is not noticed.
    """
    digest = hashlib.sha256()
    for name in names:
        path = data_root() / name
        if not path.exists():
            return None
        for relative, size in sorted(_files(path)):
            digest.update(f"{name}/{relative}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:10]


def _files(path: Path) -> Iterator[tuple[str, int]]:
    if path.is_file():
        yield "", path.stat().st_size
        return
    folders = [path]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None
        for entry in entries:
            if entry.is_dir():
                folders.append(Path(entry.path))
            elif not entry.name.startswith("."):
                yield os.path.relpath(entry.path, path), entry.stat().st_size
