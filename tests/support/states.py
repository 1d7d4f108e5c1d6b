"""What a finished run has in it that a stopped and resumed one must have too."""

import json
from pathlib import Path
from typing import Any

import torch

from hicl_d2.engine.hooks import TIMES


def run_state(folder: Path) -> dict[str, Any]:
    """Return what must be equal of two finished runs: parameters, optimiser, schedule, metrics, results."""
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    return {
        "model": checkpoint["model"],
        "optimizer": checkpoint["trainer"]["_trainer"]["optimizer"]["state"],
        "schedule": checkpoint["trainer"]["hooks"]["LRScheduler"],
        "best weights": torch.load(folder / "model_best.pth", weights_only=True)["model"],
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in lines],
        "result": {key: result[key] for key in ("metrics", "class_iou", "iterations", "seed", "config_hash")},
    }


def assert_equal(found: Any, expected: Any, place: str = "") -> None:
    """Compare states bit for bit; ``place`` is where a difference is said to be."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), (place, (found - expected).abs().max())
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_equal(found[key], value, f"{place}/{key}")
    else:
        assert found == expected, place
