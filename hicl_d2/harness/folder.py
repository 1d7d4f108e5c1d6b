"""The folder of a cell: its manifest, its attempts, its heartbeat and lock, and the state that follows from them."""

import fcntl
import hashlib
import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from hicl_d2.command.errors import InputError
from hicl_d2.command.files import open_lock, write_json, write_text
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.environment import environment
from hicl_d2.harness.failures import Failure
from hicl_d2.harness.results import read_result

MANIFEST_FILE = "cell.json"
ATTEMPTS_FOLDER = "attempts"
HEARTBEAT_FILE = "heartbeat"
LOCK_FILE = ".cell.lock"
SCHEMA = 1

HEARTBEAT_SECONDS = 5.0
# A cell whose heartbeat is older does not run any more; network file systems show changes late.
DEAD_SECONDS = 60.0

WAITING, QUEUED, RUNNING, STOPPED, FAILED, DONE, BLOCKED = (
    "waiting",
    "queued",
    "running",
    "stopped",
    "failed",
    "done",
    "blocked",
)


@dataclass(frozen=True)
class State:
    """The state of a cell; a done one has a ``result``, a failed one a ``failure``."""

    name: str
    result: dict[str, Any] | None = None
    failure: Failure | None = None
    attempt: dict[str, Any] | None = None


def look(cell: Cell, output: Path, exists: bool = True) -> State:
    """Return the state of ``cell``; ``exists``: whether it has a folder, if the caller knows.

    Raises InputError for a manifest that was edited and a result of another schema.
    """
    if not exists:
        return State(WAITING if cell.has_config else BLOCKED)
    folder = cell.folder(output)
    check_manifest(folder)
    result = read_result(folder)
    attempt = last_attempt(folder)
    if result is not None:
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
    if failure is None:
        return State(STOPPED, attempt=attempt)
    return State(FAILED, failure=Failure(failure["kind"], failure["message"]), attempt=attempt)


def states(cells: tuple[Cell, ...], output: Path) -> dict[str, State]:
    """Return the state of every cell, by slug."""
    place = output / "cells"
    there = set(os.listdir(place)) if place.is_dir() else set()
    return {cell.slug: look(cell, output, cell.slug in there) for cell in cells}


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
        "config": cell.identity,
        "data": cell.data,
        "command": command,
        "created": now(),
        **environment(),
    }
    content["digest"] = digest(content)
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def digest(content: dict[str, Any]) -> str:
    """Return sixteen digits over everything in a manifest but its digest."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest, None if there is none; InputError if it is not as it was written."""
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("digest") != digest(content):
        raise InputError(f"{path} was edited or damaged (its digest does not fit); move the folder away")
    return content


def check_manifest(folder: Path) -> None:
    """Raise InputError if the manifest was edited or is of another schema or cell."""
    content = read_manifest(folder)
    if content is None:
        return
    path = folder / MANIFEST_FILE
    if content["schema"] != SCHEMA:
        raise InputError(f"{path} has schema {content['schema']!r} and this harness reads {SCHEMA}")
    if not folder.name.endswith(content["hash"]):
        raise InputError(f"{path} is the manifest of another cell ({content['cell']}); move the folder away")


# ----------------------------------------------------------------------------------------------------------
# Attempts


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Return all attempts, the first one first."""
    return [json.loads(path.read_text()) for path in _attempt_files(folder)]


def last_attempt(folder: Path) -> dict[str, Any] | None:
    """Return the newest attempt, None if there is none."""
    files = _attempt_files(folder)
    return json.loads(files[-1].read_text()) if files else None


def _attempt_files(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder / ATTEMPTS_FOLDER))
    except FileNotFoundError:
        return []
    return [folder / ATTEMPTS_FOLDER / name for name in names if not name.startswith(".")]


def new_attempt(folder: Path, state: str, **facts: Any) -> dict[str, Any]:
    """Record that an attempt begins, and return it."""
    (folder / ATTEMPTS_FOLDER).mkdir(parents=True, exist_ok=True)
    files = _attempt_files(folder)
    number = int(files[-1].stem) + 1 if files else 1
    attempt = {"number": number, "state": state, "started": now(), "host": os.uname().nodename, **facts}
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
    folder: Path, attempt: dict[str, Any], seconds: float, status: int | None, failure: Failure | None
) -> None:
    """Record how an attempt ended: no status, no failure and no result means that it was stopped."""
    ending = {"kind": failure.kind, "message": failure.message} if failure else None
    attempt |= {
        "state": "ended",
        "ended": now(),
        "seconds": round(seconds, 3),
        "status": status,
        "failure": ending,
    }
    save_attempt(folder, attempt)


def now() -> str:
    """Return the time in UTC as ISO 8601 text."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# ----------------------------------------------------------------------------------------------------------
# Heartbeat and lock


def beat(folder: Path) -> None:
    """Renew the heartbeat: a harness watches the cell."""
    path = folder / HEARTBEAT_FILE
    try:
        os.utime(path)
    except FileNotFoundError:
        path.touch()


def is_beating(folder: Path) -> bool:
    """Return whether the heartbeat is recent."""
    try:
        return time.time() - (folder / HEARTBEAT_FILE).stat().st_mtime < DEAD_SECONDS
    except FileNotFoundError:
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
