"""``result.json``: what came out of a run, written once at its end, and shown as a table."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from hicl_d2.command.address import masked
from hicl_d2.command.digest import with_digest
from hicl_d2.command.files import write_json
from hicl_d2.command.git import git_state
from hicl_d2.command.layout import RESULT, RESULT_SCHEMA
from hicl_d2.command.live import bar
from hicl_d2.d2.config import CfgNode
from hicl_d2.engine.memory import peak_memory_mb
from hicl_d2.evaluation.metrics import finite
from hicl_d2.run import provenance
from hicl_d2.run.manifest import config_hash

MAIN_METRICS = ("mIoU", "mAcc", "fwIoU", "pACC")
CLASS_PREFIX = "IoU-"
BAR_WIDTH = 25
# Below these Detectron2's evaluators report figures of instances.
INSTANCE_TASKS = ("bbox/", "segm/", "keypoints/", "panoptic_seg/")


def training_result(
    cfg: CfgNode,
    *,
    iterations: int,
    metrics: Mapping[str, float | None],
    best: Mapping[str, Any] | None,
    seconds: Mapping[str, float | None],
    parameters: Mapping[str, int],
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Return the content of result.json for a finished training.

    ``cfg`` is the config as the user gave it, ``metrics`` the last evaluation's figures on one level,
    ``best`` the content of best.json. A figure that is not finite (the IoU of a class that the truth does not
    have) becomes None.
    """
    last = {"iteration": iterations, **finite(metrics)}
    best_metrics = {"iteration": best["iteration"], **finite(best["metrics"])} if best else last
    return {
        "schema": RESULT_SCHEMA,
        "status": "finished",
        "dataset": cfg.DATASETS.TEST[0] if len(cfg.DATASETS.TEST) else None,
        "iterations": iterations,
        "metrics": {"last": last, "best": best_metrics},
        "class_iou": class_iou(cfg, metrics),
        "seconds": dict(seconds),
        "peak_memory_mb": peak_memory_mb(device),
        "parameters": dict(parameters),
        "seed": seed,
        "config_hash": config_hash(cfg),
        "versions": provenance.versions(),
        "git": git_state(),
        "device": provenance.device_name(device),
    }


def evaluation_result(
    cfg: CfgNode, metrics: Mapping[str, float | None], weights: str, device: str
) -> dict[str, Any]:
    """Return the content of evaluation.json: the figures of ``weights`` on DATASETS.TEST."""
    return {
        "schema": RESULT_SCHEMA,
        "weights": masked(weights),
        "dataset": cfg.DATASETS.TEST[0],
        "metrics": finite(metrics),
        "class_iou": class_iou(cfg, metrics),
        "config_hash": config_hash(cfg),
        "versions": provenance.versions(),
        "git": git_state(),
        "device": provenance.device_name(device),
    }


def write_result(cfg: CfgNode, result: Mapping[str, Any]) -> Path:
    """Write result.json into OUTPUT_DIR, atomically and with its digest, and return its path."""
    path = Path(cfg.OUTPUT_DIR) / RESULT
    write_json(path, with_digest(result))
    return path


def task(cfg: CfgNode, dataset: str = "") -> str:
    """Return where a test data set's figures (the first's by default) stand in flat metrics: "sem_seg/", or below its name."""
    return f"{dataset or cfg.DATASETS.TEST[0]}/sem_seg/" if len(cfg.DATASETS.TEST) > 1 else "sem_seg/"


def class_iou(
    cfg: CfgNode, metrics: Mapping[str, float | None], dataset: str = ""
) -> dict[str, float | None]:
    """Return the IoU of each class of a test data set (the first by default) in percent, None where the truth lacks it."""
    prefix = task(cfg, dataset) + CLASS_PREFIX
    return {
        name.removeprefix(prefix): value for name, value in finite(metrics).items() if name.startswith(prefix)
    }


def table(cfg: CfgNode, metrics: Mapping[str, float | None], dataset: str = "", *, bars: bool = False) -> str:
    """Return the figures of a test data set (the first by default) as text: a line per class, with a bar if asked for, and
    the means.
    """
    prefix = task(cfg, dataset)
    classes = class_iou(cfg, metrics, dataset)
    rows = [(name, _percent(value), *_bar(value, bars)) for name, value in classes.items()]
    headers = ("class", "IoU", "0 to 100") if bars else ("class", "IoU")
    style: dict[str, Any] = {"tablefmt": "github", "disable_numparse": True}
    means = [
        (name, _percent(metrics.get(prefix + name))) for name in MAIN_METRICS if prefix + name in metrics
    ]
    place = prefix.removesuffix("sem_seg/")
    means += [
        (name.removeprefix(place), _percent(value))
        for name, value in metrics.items()
        # The figures of a single class are called "AP-<class>".
        if name.startswith(tuple(place + each for each in INSTANCE_TASKS))
        and "-" not in name.rpartition("/")[2]
    ]
    parts = [tabulate(rows, headers=headers, **style)] if rows else []
    parts.append(tabulate(means, headers=("mean", "%"), **style))
    return "\n\n".join(parts)


def _bar(value: float | None, is_shown: bool) -> tuple[str, ...]:
    is_known = value is not None and math.isfinite(value)
    return (bar((value or 0.0) / 100 if is_known else 0.0, BAR_WIDTH),) if is_shown else ()


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"
