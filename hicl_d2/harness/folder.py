"""The folder of a cell: its manifest, its attempts, its heartbeat and lock, and the state that follows from them."""

import errno
import fcntl
import json
import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from hicl_d2.command.digest import KEY, digest, with_digest
from hicl_d2.command.errors import InputError
from hicl_d2.command.files import open_lock, write_json, write_text
from hicl_d2.command.identity import MISSING
from hicl_d2.command.layout import MANIFEST
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.environment import environment
from hicl_d2.harness.failures import Failure
from hicl_d2.harness.results import number, read_json_file, read_result

MANIFEST_FILE = "cell.json"
ATTEMPTS_FOLDER = "attempts"
HEARTBEAT_FILE = "heartbeat"
LOCK_FILE = ".cell.lock"
ATTEMPT_FILE = re.compile(r"[0-9]{4,9}\.json")
# What an attempt's state says when it is over.
ENDED = "ended"
SCHEMA = 2
# The schema whose identity had neither defaults nor the content of weights.
OLD_SCHEMA = 1

HEARTBEAT_SECONDS = 5.0
# A cell whose heartbeat is older does not run any more; network file systems show changes late.
DEAD_SECONDS = 60.0

WAITING, QUEUED, RUNNING, STOPPED, FAILED, DONE, BLOCKED, STALE, DAMAGED = (
    "waiting",
    "queued",
    "running",
    "stopped",
    "failed",
    "done",
    "blocked",
    "stale",
    "damaged",
)


@dataclass(frozen=True)
class State:
    """The state of a cell; a done one has a ``result``, a failed one a ``failure``, a stale or damaged one a ``note``."""

    name: str
    result: dict[str, Any] | None = None
    failure: Failure | None = None
    attempt: dict[str, Any] | None = None
    note: str = ""


def look(cell: Cell, output: Path, exists: bool = True) -> State:
    """Return the state of ``cell``; ``exists``: whether it has a folder, if the caller knows.

    Raises InputError for a manifest or result that was edited, a result of another schema, and a training that was not this
    cell's.
    """
    if not exists:
        return State(WAITING if cell.has_config else BLOCKED)
    folder = cell.folder(output)
    check_manifest(folder)
    result = read_result(folder)
    attempt = last_attempt(folder)
    if result is not None:
        check_training(folder, (attempt or {}).get("data"))
        return State(DONE, result, attempt=attempt)
    if not cell.has_config:
        return State(BLOCKED)
    if attempt is None:
        return State(WAITING)
    if attempt.get("state") == QUEUED:
        return State(QUEUED, attempt=attempt)
    if attempt.get("state") == RUNNING:
        return State(RUNNING if is_beating(folder) else STOPPED, attempt=attempt)
    failure = attempt.get("failure")
    if not isinstance(failure, dict):
        return State(STOPPED, attempt=attempt)
    kind, message = str(failure.get("kind")), str(failure.get("message"))
    return State(FAILED, failure=Failure(kind, message), attempt=attempt)


def states(cells: tuple[Cell, ...], output: Path) -> dict[str, State]:
    """Return the state of every cell, by slug; one that cannot be read is damaged, and the others are as they are."""
    place = output / "cells"
    there = set(os.listdir(place)) if place.is_dir() else set()
    found = {}
    for cell in cells:
        try:
            found[cell.slug] = look(cell, output, cell.slug in there)
        except InputError as error:
            found[cell.slug] = State(DAMAGED, note=str(error))
    return found


# ----------------------------------------------------------------------------------------------------------
# The manifest


def write_manifest(cell: Cell, matrix: str, output: Path, command: list[str]) -> None:
    """Write ``cell.json``, once: what the cell is and where it was first started."""
    folder = cell.folder(output)
    path = folder / MANIFEST_FILE
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": SCHEMA,
        "matrix": matrix,
        "cell": cell.name,
        "hash": cell.hash,
        "seed": cell.seed,
        "config_file": str(cell.config),
        "overrides": dict(cell.overrides),
        "short": cell.is_short,
        "identity": cell.identity.parts(),
        "config": cell.config_values,
        "command": command,
        "created": now(),
        **environment(),
    }
    write_text(path, json.dumps(with_digest(content), indent=1, default=str) + "\n")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest, None if there is none; InputError if it is not as it was written."""
    path = folder / MANIFEST_FILE
    try:
        content = read_json_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get(KEY) != digest(content):
        raise InputError(f"{path} was edited or damaged (its digest does not fit); move the folder away")
    return content


def check_manifest(folder: Path) -> None:
    """Raise InputError if the manifest was edited or is of another schema or cell."""
    content = read_manifest(folder)
    if content is None:
        return
    path = folder / MANIFEST_FILE
    if content.get("schema") != SCHEMA:
        raise InputError(f"{path} has schema {content.get('schema')!r} and this harness reads {SCHEMA}")
    if not folder.name.endswith(f"-{content.get('hash')}"):
        raise InputError(
            f"{path} is the manifest of another cell ({content.get('cell')}); move the folder away"
        )


def check_training(folder: Path, data: str | None = None) -> None:
    """Raise InputError if the training in ``folder`` was another one than the harness had planned.

    So it is where a config, the code or weights changed between the start of the harness and that of the cell, or the data
    before its end; ``data``: their fingerprint then. Weights that the harness had not seen, and manifests of before
    identities were noted, say nothing.
    """
    planned, trained = _noted_identity(folder / MANIFEST_FILE), _noted_identity(folder / MANIFEST)
    trained = {**trained, "data": data}
    parts = {
        "the config or a default of the code": "config",
        "the content of MODEL.WEIGHTS": "weights",
        "the code behind IMPORTS": "imports",
        "the names or sizes of the data's files": "data",
    }
    for text, key in parts.items():
        before, after = planned.get(key), trained.get(key)
        if before is None or after is None or before == after:
            continue
        if not any(str(part).startswith(MISSING) for part in (before, after)):
            raise InputError(
                f"{folder} does not hold what the matrix planned: {text} changed after the harness had started; move the "
                "folder away and run again"
            )


def data_of(folder: Path) -> dict[str, str]:
    """Return the fingerprint of each data set of the training in ``folder``, empty if its manifest has none."""
    try:
        content = read_json_file(folder / MANIFEST)
    except (OSError, ValueError, InputError):
        return {}
    found = content.get("data") if isinstance(content, dict) else None
    return (
        {name: each for name, each in found.items() if isinstance(each, str)}
        if isinstance(found, dict)
        else {}
    )


def _noted_identity(path: Path) -> dict[str, Any]:
    """Return the identity in a manifest, empty if there is none that can be read."""
    try:
        content = read_json_file(path)
    except (OSError, ValueError, InputError):
        return {}
    found = content.get("identity") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


# ----------------------------------------------------------------------------------------------------------
# Attempts


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Return all attempts, the first one first; files that are damaged or of others are passed over."""
    return [attempt for path in _attempt_files(folder) if (attempt := _read_attempt(path)) is not None]


def last_attempt(folder: Path) -> dict[str, Any] | None:
    """Return the newest attempt that can be read, None if there is none."""
    read = map(_read_attempt, reversed(_attempt_files(folder)))
    return next((attempt for attempt in read if attempt is not None), None)


def _attempt_files(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder / ATTEMPTS_FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return []
    ours = [name for name in names if ATTEMPT_FILE.fullmatch(name)]
    return [folder / ATTEMPTS_FOLDER / name for name in sorted(ours, key=_number)]


def _number(name: str) -> int:
    return int(name.partition(".")[0])


def _read_attempt(path: Path) -> dict[str, Any] | None:
    try:
        attempt = read_json_file(path)
    except (OSError, ValueError, InputError):
        return None
    is_ours = isinstance(attempt, dict) and isinstance(attempt.get("state"), str)
    if not is_ours:
        return None
    if not isinstance(attempt.get("job"), str | None) or number(attempt.get("seconds", 0)) is None:
        return None
    return {**attempt, "number": _number(path.name)}


def new_attempt(folder: Path, state: str, **facts: Any) -> dict[str, Any]:
    """Record that an attempt begins, and return it."""
    (folder / ATTEMPTS_FOLDER).mkdir(parents=True, exist_ok=True)
    files = _attempt_files(folder)
    count = _number(files[-1].name) + 1 if files else 1
    attempt = {"number": count, "state": state, "started": now(), "host": os.uname().nodename, **facts}
    save_attempt(folder, attempt)
    return attempt


def start_attempt(folder: Path, **facts: Any) -> dict[str, Any]:
    """Record that a training starts, in the queued attempt or else in a new one, and return the attempt."""
    attempt = last_attempt(folder)
    if attempt is None or attempt.get("state") != QUEUED:
        return new_attempt(folder, RUNNING, **facts)
    attempt |= {"state": RUNNING, "started": now(), "host": os.uname().nodename, **facts}
    save_attempt(folder, attempt)
    return attempt


def save_attempt(folder: Path, attempt: dict[str, Any]) -> None:
    """Write an attempt over its earlier version."""
    path = folder / ATTEMPTS_FOLDER / f"{attempt['number']:04d}.json"
    write_json(path, attempt)


def end_attempt(
    folder: Path,
    attempt: dict[str, Any],
    seconds: float,
    status: int | None,
    failure: Failure | None,
    data: str | None = None,
) -> None:
    """Record how an attempt ended: no status, no failure and no result means that it was stopped.

    ``data`` is the fingerprint of the data at the end, None if it is not known.
    """
    ending = {"kind": failure.kind, "message": failure.message} if failure else None
    attempt |= {
        "state": ENDED,
        "ended": now(),
        "seconds": round(seconds, 3),
        "status": status,
        "failure": ending,
        "data": data,
    }
    save_attempt(folder, attempt)


def now() -> str:
    """Return the time in UTC as ISO 8601 text."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# ----------------------------------------------------------------------------------------------------------
# Heartbeat and lock


def beat(folder: Path) -> None:
    """Renew the heartbeat: a harness watches the cell."""
    touch(folder / HEARTBEAT_FILE)


def touch(path: Path) -> None:
    """Renew a file's time, and make it if it is not there; a link in its place is not followed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        os.utime(descriptor)
    finally:
        os.close(descriptor)


def open_log(path: Path) -> IO[bytes]:
    """Open a file to append to. Raises InputError for a link in its place: what it points to is not ours."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return open(os.open(path, flags, 0o666), "ab")
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise InputError(f"{path} must be a regular file, not a link or a pipe; move it away") from None
        raise


def is_beating(folder: Path) -> bool:
    """Return whether the heartbeat is recent; of one that lies in the future, because a clock was set back, the lock tells."""
    try:
        age = time.time() - (folder / HEARTBEAT_FILE).stat().st_mtime
    except FileNotFoundError:
        return False
    return age < DEAD_SECONDS if age > -DEAD_SECONDS else _is_locked(folder)


def _is_locked(folder: Path) -> bool:
    """Return whether a process of the cell is alive, by its lock; nothing is made or changed."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(folder / LOCK_FILE, flags)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def lock(folder: Path) -> IO[bytes] | None:
    """Return an open file that holds the cell's lock, None if a process of the cell is alive.

    The training inherits the file, and with it the lock: the lock is gone when all its processes are,
    whatever became of the harness.
    """
    file = open_lock(folder / LOCK_FILE)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
