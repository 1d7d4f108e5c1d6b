"""Remove what is not needed any more; results, manifests and logs of the matrix's cells always stay."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hicl_d2.command.errors import InputError
from hicl_d2.command.files import remove_unfinished, unfinished
from hicl_d2.harness import folder as files
from hicl_d2.harness.plan import PROBE_FOLDER
from hicl_d2.harness.workspace import FOLDER_FILE, SHORT_FOLDER, Workspace

# The checkpoints that a run makes while it trains.
CHECKPOINT = re.compile(r"model_[0-9]{7}\.pth")


def check_claimed(workspace: Workspace) -> None:
    """Raise InputError for a folder that no run of the matrix has claimed."""
    if not (workspace.output / FOLDER_FILE).is_file():
        raise InputError(
            f"{workspace.output} has no {FOLDER_FILE}: run did not make it for {workspace.matrix.name}, so nothing is removed"
        )


def find(workspace: Workspace, orphans: bool) -> Iterator[Path]:
    """Yield what can go: half-written files, probes, checkpoints before the last one of cells that are done.

    ``orphans``: also the folders of cells that the matrix does not have any more. Only what the harness or its trainings
    made is found, and nothing behind a link: a folder of a cell has a valid ``cell.json`` of this matrix.
    """
    output = workspace.output
    yield from unfinished(output)
    if not (output / SHORT_FOLDER).is_symlink():
        yield from unfinished(output / SHORT_FOLDER)
    name = workspace.matrix.name
    yield from own_folders(output / PROBE_FOLDER / "cells", name)
    known = {cell.slug for cell in workspace.matrix.cells}
    for folder in own_folders(output / "cells", name):
        if folder.name not in known:
            if orphans and not _is_in_use(folder):
                yield folder
            continue
        if workspace.states[folder.name].name in (files.RUNNING, files.QUEUED) or _is_in_use(folder):
            continue
        for below, _, _ in os.walk(folder):  # which follows no link
            yield from unfinished(below)
        if workspace.states[folder.name].name == files.DONE:
            yield from sorted(path for path in folder.iterdir() if _is_checkpoint(path))


def own_folders(place: Path, matrix: str) -> list[Path]:
    """Return the folders directly in ``place`` that hold a cell of the matrix; none if ``place`` is a link."""
    if place.is_symlink() or place.parent.is_symlink() or not place.is_dir():
        return []
    return [folder for folder in sorted(place.iterdir()) if _is_own(folder, matrix)]


def _is_own(folder: Path, matrix: str) -> bool:
    if folder.is_symlink() or not folder.is_dir() or (folder / files.MANIFEST_FILE).is_symlink():
        return False
    try:
        manifest = files.read_manifest(folder)
    except (InputError, OSError):
        return False
    is_named = manifest is not None and folder.name.endswith(f"-{manifest.get('hash')}")
    return is_named and manifest is not None and manifest.get("matrix") == matrix


def _is_in_use(folder: Path) -> bool:
    """Return whether a training lives in a folder, maybe of a harness on another machine."""
    attempt = files.last_attempt(folder)
    # Where the last attempt has ended the heartbeat may still be recent.
    has_ended = attempt is not None and attempt.get("state") == files.ENDED
    if files.is_beating(folder) and not has_ended:
        return True
    if not (folder / files.LOCK_FILE).exists():
        return False
    try:
        held = files.lock(folder)
    except (InputError, OSError):
        return True
    if held is None:
        return True
    held.close()
    return False


def _is_checkpoint(path: Path) -> bool:
    return bool(CHECKPOINT.fullmatch(path.name)) and path.is_file() and not path.is_symlink()


def size(path: Path) -> int:
    """Return the bytes of a file or of all files in a folder."""
    if path.is_dir() and not path.is_symlink():
        return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
    return path.lstat().st_size


def remove(path: Path) -> None:
    """Remove a file or a folder, never what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear_unfinished(workspace: Workspace) -> None:
    """Remove what writers left half-written when they were killed; call it with the folder's lock held.

    Cells that a cluster may be running are left alone, and folders that are links.
    """
    output = workspace.output
    there = {slug for slug, state in workspace.states.items() if (state.attempt or {}).get("job")}
    remove_unfinished(output)
    if not (output / SHORT_FOLDER).is_symlink():
        remove_unfinished(output / SHORT_FOLDER)
    place = output / "cells"
    for cell in sorted(place.iterdir()) if place.is_dir() else []:
        if cell.name in there or cell.is_symlink():
            continue
        remove_unfinished(cell)
        if not (cell / files.ATTEMPTS_FOLDER).is_symlink():
            remove_unfinished(cell / files.ATTEMPTS_FOLDER)


def clear_probes(workspace: Workspace) -> None:
    """Remove the folder of probes if nothing of anybody is left in it but its lock."""
    place = workspace.output / PROBE_FOLDER
    if place.is_symlink() or not place.is_dir():
        return
    with suppress(OSError):
        (place / "cells").rmdir()
    if {path.name for path in place.iterdir()} <= {".lock"}:
        (place / ".lock").unlink(missing_ok=True)
        place.rmdir()
