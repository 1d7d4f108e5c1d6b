"""Writing files so that a reader finds the old content or the new one, never a part of it."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hicl_d2.command.errors import InputError

logger = logging.getLogger(__name__)


@contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that takes the place of ``path`` when the block ends, once it is on the disk.

    If the block fails, ``path`` stays as it was and nothing is left beside it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def check_writable(folder: str | Path, name: str) -> None:
    """Check that ``folder`` can be made and written in, without making it; ``name`` is what the user calls it.

    Raises InputError if it cannot.
    """
    existing = Path(folder).absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{name} {folder} cannot be made: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{name} {folder}: no permission to write in {existing}; choose another {name}")


@contextmanager
def occupied(folder: str | Path) -> Iterator[None]:
    """Keep ``folder`` for this process inside the block; the lock ends with the process, however it ends.

    Raises InputError if another process has it. A file system without locks lets everybody in.
    """
    with open(Path(folder) / ".lock", "w") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise InputError(
                f"another process is running in {folder}; wait for it or choose another OUTPUT_DIR"
            ) from None
        except OSError:
            logger.info(f"{folder} is on a file system without locks; start no second run in it")
        yield


def remove_unfinished(folder: str | Path) -> None:
    """Remove what writers left in ``folder`` when they were killed; no process may be writing there."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Bring the renaming itself to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically. NaN and infinity raise ValueError: JSON has none."""
    text = json.dumps(content, indent=1, allow_nan=False)
    with atomic_open(path) as stream:
        stream.write(text + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; InputError if it is damaged, OSError if it cannot be read."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is damaged (not JSON: {error}); move it away") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged (a JSON {type(content).__name__}, not an object); move it away")
    return content
