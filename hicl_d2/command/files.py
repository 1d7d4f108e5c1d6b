"""Writing files so that a reader finds the old content or the new one, never a part of it; and locks.

A file is written under a temporary name beside its place, flushed to the disk and renamed. The temporary name is new
and begins with :data:`PREFIX`: only this module makes such names, and :func:`unfinished` finds nothing else. A symbolic
link in the place of the file is replaced; what it points to is never opened.
"""

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hicl_d2.command.errors import InputError

PREFIX = ".hicl_d2-"
UNFINISHED = re.compile(re.escape(PREFIX) + r"[0-9a-f]{16}-.+\.tmp(\.[^.]+)?", re.DOTALL)
# Bytes of the file's own name in a temporary name, which must stay below the 255 that file systems take.
NAME_BYTES = 200
# Bytes that a name and a path may have at most on Linux.
MOST_NAME, MOST_PATH = 255, 4096
# A folder cannot be flushed on every file system.
CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# Whole files


@contextmanager
def atomic_open(path: str | Path, mode: str = "w", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Open a stream, "w" (UTF-8, newlines as given) or "wb", whose content takes the place of ``path`` when the block ends.

    If the block fails, ``path`` stays as it was and nothing is left beside it. ``durable`` waits until the content is on
    the disk; without it the file is whole after a kill but maybe not after a power cut (for many small files that can
    be made again). An OSError names ``path``.
    """
    form: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with _replacing(Path(path), "", durable) as (_, descriptor), open(descriptor, mode, **form) as stream:
        yield stream
        stream.flush()
        if durable:
            os.fsync(stream.fileno())


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path with the suffix of ``path``, whose file takes the place of ``path`` when the block ends.

    As :func:`atomic_open`, for libraries that want a path and choose the format by its suffix (PIL, matplotlib).
    """
    path = Path(path)
    with _replacing(path, path.suffix, durable) as (temporary, descriptor):
        os.close(descriptor)
        yield temporary
        if durable:
            _flush(temporary)


@contextmanager
def _replacing(path: Path, suffix: str, durable: bool) -> Iterator[tuple[Path, int]]:
    """Yield the path and descriptor of a new temporary file, and rename it to ``path`` in the end."""
    name = os.fsdecode(os.fsencode(path.name)[:NAME_BYTES])
    temporary = path.with_name(f"{PREFIX}{secrets.token_hex(8)}-{name}.tmp{suffix}")
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        yield temporary, os.open(temporary, flags, 0o666)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and str(error.filename) in ("None", str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    if durable:
        _flush(path.parent)  # the renaming itself


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


def unfinished(folder: str | Path) -> list[Path]:
    """Return the temporary files that killed writers left directly in ``folder``, sorted; none if it is no folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                Path(entry.path)
                for entry in entries
                if UNFINISHED.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_unfinished(folder: str | Path) -> None:
    """Remove what killed writers left directly in ``folder``; no process may be writing there."""
    for path in unfinished(folder):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically, with its newlines as they are."""
    with atomic_open(path) as stream:
        stream.write(text)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically. NaN and infinity raise ValueError: JSON has none."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def expanded(path: str | Path) -> Path:
    """Return ``path`` with a leading ``~`` or ``~user`` as the home folder; where there is none, as it is written."""
    return Path(os.path.expanduser(path))


def check_regular(path: str | Path, what: str = "file", most: int | None = None) -> None:
    """Raise InputError for what is no regular file, or too large: a pipe or a device would keep its reader waiting.

    ``most``: the bytes that a ``what`` may have. What is not there passes: opening it says so.
    """
    try:
        found = os.stat(path)
    except OSError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{what} {path} cannot be read: it is not a regular file")
    if most is not None and found.st_size > most:
        raise InputError(
            f"{what} {path} cannot be read: it has more than {most // 2**20} MB, which no {what} needs"
        )


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; InputError if it is damaged or no regular file, OSError if it cannot be read."""
    check_regular(path)
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged (not JSON: {error}); move it away") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged (a JSON {type(content).__name__}, not an object); move it away")
    return content


# ---------------------------------------------------------------------------------------------------------------------
# Folders and locks


def check_writable(folder: str | Path, name: str) -> None:
    """Check that ``folder`` can be made and written in, without leaving it; ``name`` is what the user calls it.

    A folder is made for a moment in what is there of its path.

    Raises InputError if it cannot, and for a name that nobody means: none at all, "None", or one with control characters.
    """
    _check_name(str(folder), name)
    existing = Path(folder).absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{name} {folder} cannot be made: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{name} {folder}: no permission to write in {existing}; choose another {name}")
    trial = existing / f"{PREFIX}{secrets.token_hex(8)}"
    try:  # some file systems, as /proc, grant the permission and take nothing
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        reason = (error.strerror or "no reason given").lower()
        raise InputError(
            f"{name} {folder}: nothing can be made in {existing} ({reason}); choose another {name}"
        ) from None


def _check_name(folder: str, name: str) -> None:
    shown = ascii(folder)[:80]
    if not folder.strip() or folder in ("None", "null"):
        raise InputError(f"{name} is {shown}; give the name of a folder")
    if any(ord(character) < 32 or ord(character) == 127 for character in folder):
        raise InputError(f"{name} is {shown}; the name of a folder has no line breaks or control characters")
    try:
        parts = [len(part.encode()) for part in Path(folder).absolute().parts]
    except UnicodeEncodeError:
        raise InputError(f"{name} is {shown}; the name of a folder must be text (UTF-8)") from None
    if max(parts) > MOST_NAME or sum(parts) + len(parts) + MOST_NAME > MOST_PATH:
        raise InputError(
            f"{name} {folder[:40]}... is too long: a name may have {MOST_NAME} bytes, a path {MOST_PATH - MOST_NAME}"
        )


@contextmanager
def occupied(folder: str | Path, busy: str) -> Iterator[None]:
    """Keep ``folder`` for this process inside the block; the lock ends with the process, however it ends.

    Raises InputError with the message ``busy`` if another process has it. A file system without locks lets everybody
    in. The lock is the process's own: workers that it forked do not hold it when it was killed.
    """
    with open_lock(Path(folder) / ".lock") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise InputError(busy) from None
        except OSError:
            logger.info(f"{folder} is on a file system without locks; start no second run in it")
        yield


def open_lock(path: Path) -> IO[bytes]:
    """Open a lock file, made if it is not there; its content is never touched.

    Raises InputError for anything but a regular file: locking a link would open what it points to.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return open(descriptor, "r+b", buffering=0)
        os.close(descriptor)
    raise InputError(
        f"{path} must be a regular file to be used as a lock, not a link or a folder; move it away"
    )
