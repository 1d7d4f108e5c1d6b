"""Remove what is not needed any more; results, manifests and logs of the matrix's cells always stay."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hicl_d2.command.files import remove_unfinished, unfinished
from hicl_d2.harness import folder as files
from hicl_d2.harness.plan import PROBE_FOLDER
from hicl_d2.harness.workspace import Workspace

KEPT_CHECKPOINTS = ("model_final.pth", "model_best.pth")


def find(workspace: Workspace, orphans: bool) -> Iterator[Path]:
    """Yield what can go: half-written files, probes, checkpoints before the last one of cells that are done.

    ``orphans``: also the folders of cells that the matrix does not have any more.
    """
    output = workspace.output
    place = output / "cells"
    yield from unfinished(output)
    if (output / PROBE_FOLDER).is_dir():
        yield output / PROBE_FOLDER
    known = {cell.slug for cell in workspace.matrix.cells}
    for folder in sorted(place.iterdir()) if place.is_dir() else []:
        if folder.name not in known:
            if orphans:
                yield folder
            continue
        if workspace.states[folder.name].name == files.RUNNING:
            continue
        for below, _, _ in os.walk(folder):  # which follows no link
            yield from unfinished(below)
        if workspace.states[folder.name].name == files.DONE:
            yield from sorted(path for path in folder.glob("[!.]*.pth") if path.name not in KEPT_CHECKPOINTS)


def size(path: Path) -> int:
    """Return the bytes of a file or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
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
    place = output / "cells"
    for cell in sorted(place.iterdir()) if place.is_dir() else []:
        if cell.name in there or cell.is_symlink():
            continue
        remove_unfinished(cell)
        remove_unfinished(cell / files.ATTEMPTS_FOLDER)
