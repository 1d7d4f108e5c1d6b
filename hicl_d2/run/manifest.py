"""Which run an output directory holds: ``manifest.json``, written once when a run starts and never changed.

A run is its config. OUTPUT_DIR, the device and the number of loader workers say where it happens and not what
it computes; data roots come from the environment. All of these are left out of the comparison and of the
hash.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hicl_d2.command.address import masked
from hicl_d2.command.errors import InputError
from hicl_d2.command.files import read_json, write_json
from hicl_d2.command.git import git_state
from hicl_d2.command.layout import PLACE_KEYS, RESULT
from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2.config import CfgNode
from hicl_d2.engine.checkpoint import LAST, named_last, resumable_checkpoints
from hicl_d2.engine.scaling import same_schedule
from hicl_d2.run import provenance

MANIFEST = "manifest.json"
# What a resumed run may change: it is not part of the training's arithmetic.
RESUMABLE_KEYS = ("TEST.", "DATASETS.TEST", "SOLVER.CHECKPOINT_", "MODEL.HICL.LOG_PERIOD", "VIS_PERIOD")
TRACES = (LAST, "metrics.json", "model_final.pth", "model_best.pth")
SHOWN_DIFFERENCES = 3

State = Literal["fresh", "resume", "finished"]


def identity(cfg: CfgNode) -> dict[str, Any]:
    """Return the config as one level of keys and JSON values, without those that only say where it runs."""
    return {key: value for key, value in _flat(cfg) if key not in PLACE_KEYS}


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in sorted(node):
        value = node[key]
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(masked(json.dumps(value, default=str)))


def config_hash(cfg: CfgNode) -> str:
    """Return twelve hexadecimal digits that are the same for the same run."""
    text = json.dumps(identity(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_manifest(output_dir: str | Path) -> dict[str, Any] | None:
    """Return the manifest of ``output_dir``, None if there is none; InputError if it is damaged."""
    path = Path(output_dir) / MANIFEST
    if not path.exists():
        return None
    manifest = read_json(path)
    if not isinstance(manifest.get("config"), dict) or not isinstance(manifest.get("seed"), int):
        raise InputError(f"{path} is damaged (config or seed is missing); move it away")
    return manifest


def write_manifest(
    cfg: CfgNode, seed: int, processes: int, *, device: str | None = None, images: int | None = None
) -> bool:
    """Write the manifest of the run that ``cfg`` describes, unless there is one; return whether it did.

    ``device``: where it runs; ``images``: how many the training data have.
    """
    path = Path(cfg.OUTPUT_DIR) / MANIFEST
    if path.exists():
        return False
    content = {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [masked(word) for word in sys.argv],
        "config_hash": config_hash(cfg),
        "seed": seed,
        "processes": processes,
        "device": device,
        "images": images,
        "versions": provenance.versions(),
        "git": git_state(),
        "config": identity(cfg),
    }
    write_json(path, content)
    return True


def check_output(cfg: CfgNode, resume: bool) -> State:
    """Return what starting the run of ``cfg`` in its OUTPUT_DIR means, without touching anything.

    "fresh": nothing to go on from; "resume": a checkpoint of this run is there and ``resume`` asks for it;
    "finished": so is its result. Raises InputError if the directory holds a different run, or this one and
    ``resume`` is not asked: nothing that was trained is ever overwritten.
    """
    folder = Path(cfg.OUTPUT_DIR)
    manifest = read_manifest(folder)
    if manifest is None:
        return _check_without_manifest(folder, resume)
    _check_same_run(folder, known_config(manifest), identity(cfg), resume)
    if (folder / RESULT).exists():
        if resume:
            return "finished"
        raise InputError(
            f"{folder} holds this run, finished (see {RESULT}); choose another OUTPUT_DIR to repeat it"
        )
    checkpoints = resumable_checkpoints(folder)
    if not checkpoints and not (folder / LAST).exists():
        return "fresh"
    if resume:
        return "resume"
    last = checkpoints[0].name if checkpoints else named_last(folder)
    raise InputError(
        f"{folder} holds this run up to {last}; add --resume to go on, or choose another OUTPUT_DIR"
    )


def _check_without_manifest(folder: Path, resume: bool) -> State:
    traces = [name for name in TRACES if (folder / name).exists()]
    if traces and not resume:
        raise InputError(
            f"{folder} holds a run that this tool did not start ({', '.join(traces)}); choose another "
            "OUTPUT_DIR, or add --resume to go on from its last checkpoint"
        )
    return "resume" if LAST in traces else "fresh"


def known_config(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a manifest, with the defaults of keys that did not exist when it was written."""
    return {**identity(get_hicl_cfg()), **manifest["config"]}


def _check_same_run(folder: Path, before: Mapping[str, Any], config: dict[str, Any], resume: bool) -> None:
    changed = changed_keys(before, config)
    if resume:
        changed = [key for key in changed if not key.startswith(RESUMABLE_KEYS)]
    if not changed:
        return
    shown = ", ".join(_difference(key, before, config) for key in changed[:SHOWN_DIFFERENCES])
    rest = len(changed) - SHOWN_DIFFERENCES
    more = f" and {rest} more keys differ" if rest > 0 else ""
    raise InputError(
        f"{folder} holds a different run: {shown}{more}; choose another OUTPUT_DIR (--resume goes on with "
        "the same config alone)"
    )


def changes_on_resume(
    manifest: Mapping[str, Any], cfg: CfgNode, processes: int, *, device: str, images: int
) -> list[str]:
    """Return in words what is not as it was when the run of ``manifest`` began, and what that means.

    What ``check_output`` lets pass: keys that do not enter the training, the number of processes, the device,
    the versions. Raises InputError for training data of another size (the stream of images would be another
    one), and for another number of processes where the schedule depends on it.
    """
    known_images = manifest.get("images") or images
    if images != known_images:
        raise InputError(
            f"the training data of {cfg.OUTPUT_DIR} had {known_images} images when the run began and have "
            f"{images} now; restore them, or start anew in another OUTPUT_DIR"
        )
    before, now = known_config(manifest), identity(cfg)
    named = [_difference(key, before, now) for key in changed_keys(before, now)]
    started = manifest.get("processes", processes)
    if processes != started:
        if not same_schedule(cfg, started, processes):
            raise InputError(
                f"the run in {cfg.OUTPUT_DIR} was started on {started} processes and SOLVER.REFERENCE_WORLD_SIZE "
                f"with SOLVER.SCALE_BY {cfg.SOLVER.SCALE_BY} ties its schedule to their number; resume it on {started}, not on "
                f"{processes}"
            )
        named.append(
            f"{started} processes there and {processes} here (the images and their order are the same; what a "
            "process draws at random, and the order of sums, are not)"
        )
    known_device = manifest.get("device") or device
    if device != known_device:
        named.append(f"the device is {known_device} there and {device} here")
    versions = manifest.get("versions", {})
    named += [
        f"{name} is {versions[name]} there and {version} here"
        for name, version in provenance.versions().items()
        if versions.get(name, version) != version
    ]
    return named


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ, in order."""
    missing = object()
    return [key for key in sorted({*before, *now}) if before.get(key, missing) != now.get(key, missing)]


def _difference(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return f"{key} is {before.get(key, 'not set')!r} there and {now.get(key, 'not set')!r} here"
