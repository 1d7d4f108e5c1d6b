"""Which run an output directory holds: ``manifest.json``, written once when a run starts and never changed.

A run is its config. OUTPUT_DIR, the device and the number of loader workers say where it happens and not what
it computes; data roots come from the environment. All of these are left out of the comparison and of the
hash.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hicl_d2.command.address import masked
from hicl_d2.command.errors import InputError, counted
from hicl_d2.command.files import read_json, write_json
from hicl_d2.command.git import git_state
from hicl_d2.command.identity import MISSING, Identity, flat_values, identity_of
from hicl_d2.command.layout import MANIFEST, PLACE_KEYS, RESULT
from hicl_d2.config import flat_defaults, get_hicl_cfg
from hicl_d2.d2.config import CfgNode
from hicl_d2.engine.checkpoint import LAST, named_last, resumable_checkpoints
from hicl_d2.engine.scaling import same_schedule
from hicl_d2.run import provenance

# What a resumed run may change: it is not part of the training's arithmetic.
RESUMABLE_KEYS = ("TEST.", "DATASETS.TEST", "SOLVER.CHECKPOINT_", "MODEL.HICL.LOG_PERIOD", "VIS_PERIOD")
TRACES = (LAST, "metrics.json", "model_final.pth", "model_best.pth")
SHOWN_DIFFERENCES = 3

State = Literal["fresh", "resume", "finished"]


def identity(cfg: CfgNode) -> dict[str, Any]:
    """Return the config as one level of keys and JSON values, without those that only say where it runs."""
    return {key: value for key, value in flat_values(cfg) if key not in PLACE_KEYS}


def run_identity(cfg: CfgNode, data: Mapping[str, str] | None = None) -> Identity:
    """Return what makes the run of ``cfg`` the one that it is (:mod:`hicl_d2.command.identity`).

    ``data`` holds the fingerprint of each data set. Keys that modules of IMPORTS add enter by the code of those modules while
    they have their defaults. Raises InputError for weights that cannot be read.
    """
    flat = dict(flat_values(cfg))
    for key, value in _registered(cfg).items():
        if flat.get(key) == value:
            del flat[key]
    return identity_of(flat, json.dumps(data, sort_keys=True) if data else "")


def _registered(cfg: CfgNode) -> dict[str, Any]:
    """Return the keys that modules of IMPORTS have added to the project's, with their defaults."""
    if not cfg.IMPORTS:
        return {}
    from hicl_d2.contrast.build import registered_defaults

    found = {f"MODEL.HICL.{keyword.upper()}": value for keyword, value in registered_defaults().items()}
    known = _default_keys()
    return {
        key: json.loads(json.dumps(value, default=str)) for key, value in found.items() if key not in known
    }


@cache
def _default_keys() -> frozenset[str]:
    return frozenset(flat_defaults())


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
    cfg: CfgNode,
    seed: int,
    processes: int,
    *,
    device: str | None = None,
    images: int | None = None,
    data: Mapping[str, str] | None = None,
) -> bool:
    """Write the manifest of the run that ``cfg`` describes, unless there is one; return whether it did.

    ``device``: where it runs; ``images``: how many the training data have; ``data``: the fingerprint of each data set.
    """
    path = Path(cfg.OUTPUT_DIR) / MANIFEST
    if path.exists():
        return False
    content = {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [masked(word) for word in sys.argv],
        "config_hash": config_hash(cfg),
        "identity": run_identity(cfg, data).parts(),
        "seed": seed,
        "processes": processes,
        "device": device,
        "images": images,
        "data": dict(data or {}),
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
    _check_same_contents(folder, manifest, cfg)
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


class Standing(NamedTuple):
    """Where a run in an output directory stands: what starting it means, and its newest checkpoint ("" for none)."""

    state: State
    last: str


def standing(cfg: CfgNode, resume: bool) -> Standing:
    """Return where the run of ``cfg`` stands. Raises InputError as :func:`check_output` does."""
    state = check_output(cfg, resume)
    checkpoints = resumable_checkpoints(cfg.OUTPUT_DIR)
    return Standing(state, checkpoints[0].name if checkpoints else "")


def check_standing(cfg: CfgNode, resume: bool, before: Standing) -> None:
    """Raise InputError if the run has gone on since ``before`` was looked at; call it with the directory's lock held.

    Another process may have worked there, and ended, between the check and the lock: what it has left must neither be
    overwritten nor be cut back to the checkpoint that was loaded.
    """
    now = standing(cfg, resume)
    if now != before or now.state == "finished":
        where = "finished it" if now.state == "finished" else f"brought it to {now.last or 'another state'}"
        raise InputError(
            f"another process has worked on the run in {cfg.OUTPUT_DIR} meanwhile and {where}; start again with --resume to "
            "see the result or go on"
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
    is_trained = (folder / RESULT).exists() or (folder / LAST).exists() or resumable_checkpoints(folder)
    advice = (
        "choose another OUTPUT_DIR (--resume goes on with the same config alone)"
        if is_trained
        else "remove that folder, in which nothing was trained yet, or choose another OUTPUT_DIR"
    )
    raise InputError(f"{folder} holds a different run: {differences(changed, before, config)}; {advice}")


def _check_same_contents(folder: Path, manifest: Mapping[str, Any], cfg: CfgNode) -> None:
    """Raise InputError if the weights or the modules of the run that ``folder`` holds had another content.

    Weights that are not there any more are not needed to go on. A manifest of before contents were noted says nothing.
    """
    before = manifest.get("identity")
    if not isinstance(before, dict):
        return
    now = run_identity(cfg)
    known = str(before.get("weights", ""))
    if known != now.weights and not known.startswith(MISSING) and not now.weights.startswith(MISSING):
        raise InputError(
            f"{folder} holds a different run: MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} had another content ({known} there and "
            f"{now.weights} here); choose another OUTPUT_DIR"
        )
    modules = before.get("imports") or {}
    changed = [name for name, content in now.imports.items() if modules.get(name, content) != content]
    if changed:
        raise InputError(
            f"{folder} holds a different run: the code of {', '.join(changed)} (IMPORTS) has changed since it began; choose "
            "another OUTPUT_DIR, or restore the code"
        )


def changes_on_resume(
    manifest: Mapping[str, Any],
    cfg: CfgNode,
    processes: int,
    *,
    device: str,
    images: int,
    data: Mapping[str, str] | None = None,
) -> list[str]:
    """Return in words what is not as it was when the run of ``manifest`` began, and what that means.

    What ``check_output`` lets pass: keys that do not enter the training, the number of processes, the device,
    the versions, test data. Raises InputError for training data of another size or other files (the stream of images would be
    another one), and for another number of processes where the schedule depends on it.
    """
    known_images = manifest.get("images") or images
    if images != known_images:
        raise InputError(
            f"the training data of {cfg.OUTPUT_DIR} had {counted(known_images, 'image')} when the run began and have "
            f"{images} now; restore them, or start anew in another OUTPUT_DIR"
        )
    other_data = _other_data(manifest, cfg, data or {})
    before, now = known_config(manifest), identity(cfg)
    named = [_difference(key, before, now) for key in changed_keys(before, now)]
    named += [f"the files of {name} are others" for name in other_data]
    started = manifest.get("processes", processes)
    if processes != started:
        if not same_schedule(cfg, started, processes):
            raise InputError(
                f"the run in {cfg.OUTPUT_DIR} was started on {counted(started, 'process', 'processes')} and "
                "SOLVER.REFERENCE_WORLD_SIZE "
                f"with SOLVER.SCALE_BY {cfg.SOLVER.SCALE_BY} ties its schedule to their number; resume it on {started}, not on "
                f"{processes}"
            )
        named.append(
            f"{counted(started, 'process', 'processes')} there and {processes} here (the images and their "
            "order are the same; what a process draws at random, and the order of sums, are not)"
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


def _other_data(manifest: Mapping[str, Any], cfg: CfgNode, data: Mapping[str, str]) -> list[str]:
    """Return the data sets whose files are not those of when the run began. Raises InputError if it trains on one."""
    before = manifest.get("data") or {}
    changed = [name for name, found in data.items() if before.get(name, found) != found]
    trained = [name for name in changed if name in cfg.DATASETS.TRAIN]
    if trained:
        raise InputError(
            f"the training data {trained[0]} of {cfg.OUTPUT_DIR} had other files (names or sizes) when the run began; restore "
            "them, or start anew in another OUTPUT_DIR"
        )
    return changed


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ, in order."""
    missing = object()
    return [key for key in sorted({*before, *now}) if before.get(key, missing) != now.get(key, missing)]


def differences(
    keys: Sequence[str],
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    where: tuple[str, str] = ("there", "here"),
) -> str:
    """Return in words how the values of the first few ``keys`` differ, and how many more keys there are."""
    shown = ", ".join(_difference(key, before, now, where) for key in keys[:SHOWN_DIFFERENCES])
    rest = len(keys) - SHOWN_DIFFERENCES
    return shown + (f" and {counted(rest, 'more key differs', 'more keys differ')}" if rest > 0 else "")


def _difference(
    key: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    where: tuple[str, str] = ("there", "here"),
) -> str:
    values = (
        f"{config.get(key, 'not set')!r} {place}" for config, place in zip((before, now), where, strict=True)
    )
    return f"{key} is {' and '.join(values)}"
