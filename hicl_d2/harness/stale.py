"""Folders of cells that were trained with another identity than today's: adopted where they are the same run after all, else
named. Nothing in them is read as a result."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hicl_d2.command.errors import InputError
from hicl_d2.command.identity import SEED_KEY, Identity, config_digest
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.folder import OLD_SCHEMA, SCHEMA, read_manifest
from hicl_d2.harness.results import result_or_none

SHOWN_KEYS = 2


@dataclass(frozen=True)
class Earlier:
    """The folder of a cell that was trained before, and in one line why it does not count."""

    folder: Path
    text: str
    is_of_older_scheme: bool = False


def earlier_folders(cells: Sequence[Cell], output: Path) -> tuple[dict[str, str], dict[str, Earlier]]:
    """Look for folders of cells that have none under today's identity.

    Returns by slug the names of folders that hold the same run: a key that the code did not have when the folder was made
    counts as its default, as it does when a run is resumed. And by slug those of another identity that hold a result, or
    whose identity is of an older scheme.
    """
    place = output / "cells"
    there = set(os.listdir(place)) if place.is_dir() else set()
    missing: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.slug not in there:
            missing.setdefault(cell.readable, []).append(cell)
    adopted: dict[str, str] = {}
    earlier: dict[str, Earlier] = {}
    for name in sorted(there - {cell.slug for cell in cells}) if missing else ():
        for cell in missing.get(name.rpartition("-")[0], ()):
            manifest = _manifest(place / name)
            if manifest is None or manifest.get("cell") != cell.name:
                continue
            if manifest.get("schema") == OLD_SCHEMA:
                earlier[cell.slug] = Earlier(place / name, _older_scheme(place), True)
            elif manifest.get("schema") == SCHEMA and bool(manifest.get("short")) == cell.is_short:
                if _is_same(manifest, cell):
                    adopted[cell.slug] = name
                elif result_or_none(place / name) is not None and cell.slug not in earlier:
                    earlier[cell.slug] = Earlier(place / name, _difference(manifest, cell))
    return adopted, {slug: found for slug, found in earlier.items() if slug not in adopted}


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder that the harness made; None for a link and for anything else."""
    if folder.is_symlink():
        return None
    try:
        return read_manifest(folder)
    except (InputError, OSError):
        return None


def _is_same(manifest: Mapping[str, Any], cell: Cell) -> bool:
    config, identity = manifest.get("config"), manifest.get("identity")
    if not isinstance(config, dict) or not isinstance(identity, dict):
        return False
    whole = config_digest({**cell.defaults, **config})
    weights, data = str(identity.get("weights", "")), str(identity.get("data", ""))
    found = Identity(whole, cell.seed, weights, data, identity.get("imports") or {})
    return found.digest == cell.hash and manifest.get("seed") == cell.seed


def _difference(manifest: Mapping[str, Any], cell: Cell) -> str:
    """Return in one line what distinguishes a folder's identity from the cell's today."""
    parts = list(_changed(manifest, cell))
    shown = ", ".join(parts[:SHOWN_KEYS]) or "its identity is another one"
    more = f" and {len(parts) - SHOWN_KEYS} more" if len(parts) > SHOWN_KEYS else ""
    return f"stale: trained before, but {shown}{more}; run trains anew beside the old folder (clean --orphans removes it)"


def _changed(manifest: Mapping[str, Any], cell: Cell) -> Iterator[str]:
    config = manifest.get("config")
    before = {**cell.defaults, **(config if isinstance(config, dict) else {})}
    now = {**cell.defaults, **cell.config_values}
    for key in sorted({*before, *now} - {SEED_KEY}):
        if before.get(key) != now.get(key):
            yield f"{key} was {before.get(key, 'not set')!r} and is {now.get(key, 'not set')!r}"
    identity = manifest.get("identity") or {}
    if identity.get("data", "") != cell.data:
        yield "the data were others"
    if (identity.get("imports") or {}) != dict(cell.imports):
        yield "the code behind IMPORTS was another"


def _older_scheme(place: Path) -> str:
    return (
        f"stale: {place} holds cells whose identity (cell.json, schema {OLD_SCHEMA}) leaves out defaults and contents of "
        "weights, so that nobody can tell whether they are today's; run --retry stale trains them anew beside the old folders, "
        "or choose another --output"
    )
