"""Checksums of files, kept between calls so that a large file is read once.

The cache is ``checksums.json`` in the user's cache folder (HICL_CACHE, else ``hicl_d2`` below XDG_CACHE_HOME or
``~/.cache``). An entry holds for a path as long as size, time of change (ns), inode and device are the same. Without a folder
to write to, files are read again each time.
"""

import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from hicl_d2.command.errors import InputError
from hicl_d2.command.files import write_text

# Set to have the cache elsewhere; an absolute path.
CACHE = "HICL_CACHE"
CACHE_FILE = "checksums.json"
# Entries that are kept, the newest; and the size of a cache that is read.
MOST_ENTRIES = 2000
MOST_BYTES = 4 * 2**20
# A file that was changed so lately may be changed again within the grain of its time stamp.
SETTLED_SECONDS = 2.0


def cache_folder() -> Path:
    """Return the folder of the user's caches for this project; it need not exist."""
    own = os.environ.get(CACHE) or ""
    if os.path.isabs(own):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or ""
    home = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        base = home if os.path.isabs(home) else os.devnull  # a user without a home folder keeps nothing
    return Path(base) / "hicl_d2"


def content_checksum(path: Path) -> str | None:
    """Return the SHA-256 of a file's content, or of the names and contents of all files in a folder; None if it is neither.

    Raises InputError for what cannot be read.
    """
    cache = _read_cache()
    known = dict(cache)
    try:
        found = _checksum(path, known)
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror}") from None
    if known != cache:
        _write_cache(known)
    return found


def _checksum(path: Path, known: dict[str, str]) -> str | None:
    if path.is_dir():
        total = hashlib.sha256()
        for file in sorted(each for each in path.rglob("*") if each.is_file()):
            name = os.fsencode(file.relative_to(path))
            total.update(b"%s\0%s\n" % (name, _file_checksum(file, known).encode()))
        return total.hexdigest()
    return _file_checksum(path, known) if path.is_file() else None


def _file_checksum(path: Path, known: dict[str, str]) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(None, "it is not a regular file", str(path))
        key = _key(path, before)
        if key in known:
            return known[key]
        total = hashlib.file_digest(stream, "sha256")
        is_same = key == _key(path, os.fstat(descriptor))
    if is_same and time.time() - before.st_mtime > SETTLED_SECONDS:
        known[key] = total.hexdigest()
    return total.hexdigest()


def _key(path: Path, about: os.stat_result) -> str:
    numbers = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    return f"{':'.join(map(str, numbers))}:{path.absolute()}"


def _read_cache() -> dict[str, str]:
    path = cache_folder() / CACHE_FILE
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= MOST_BYTES:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return {key: value for key, value in content.items() if isinstance(value, str)}
    return {}


def _write_cache(content: dict[str, str]) -> None:
    """Keep ``content``, the newest entries of it; that it cannot be kept costs time only."""
    newest = dict(list(content.items())[-MOST_ENTRIES:])
    with suppress(OSError, ValueError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_text(cache_folder() / CACHE_FILE, json.dumps(newest, indent=0) + "\n")
