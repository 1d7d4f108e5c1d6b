"""How often things are broken, and the tiny training that they are broken in."""

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.fixtures import config, data_root, own_data_root, tiny_root, tools
from tests.support.forks import Child, Ended, Forks
from tests.support.states import run_state

__all__ = ["config", "data_root", "own_data_root", "tiny_root", "tools"]

# Set by tests/robustness/fault_report.py: how often each thing is broken, and how many files are fuzzed.
TRIALS = int(os.environ.get("HICL_FAULT_TRIALS", "5"))
FEW = max(2, TRIALS // 5)
FUZZED = int(os.environ.get("HICL_FAULT_FUZZED", "300"))

# 30 iterations with the branch and its bank: 10 checkpoints, 3 evaluations.
SETTINGS = {
    "MODEL.META_ARCHITECTURE": "HiCL",
    "MODEL.HICL.BANK_SIZE": "8",
    "SOLVER.MAX_ITER": "30",
    "SOLVER.STEPS": "(20,)",
    "SOLVER.CHECKPOINT_PERIOD": "3",
    "TEST.EVAL_PERIOD": "10",
    "TEST.PICTURES": "0",
}


class Runs(NamedTuple):
    """Trainings of one kind in different folders."""

    tools: Forks
    config: Path
    data_root: Path

    def start(
        self, folder: Path, *flags: str, environment: Mapping[str, str] | None = None, **overrides: str
    ) -> Child:
        words = [word for pair in {**SETTINGS, **overrides}.items() for word in pair]
        return self.tools.start(
            *("--config-file", str(self.config), *flags, "OUTPUT_DIR", str(folder), *words),
            DETECTRON2_DATASETS=str(self.data_root),
            **(environment or {}),
        )

    def resume(self, folder: Path, **overrides: str) -> Ended:
        ended = self.start(folder, "--resume", **overrides).wait()
        assert ended.code == 0, ended.err[-2000:]
        return ended


@pytest.fixture
def runs(tools: Forks, config: Path, data_root: Path) -> Runs:
    return Runs(tools, config, data_root)


@pytest.fixture
def undisturbed(runs: Runs, tmp_path: Path) -> dict[str, Any]:
    """What the training comes to when nothing happens to it."""
    assert runs.start(tmp_path / "undisturbed").wait().code == 0
    return run_state(tmp_path / "undisturbed")


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Chance that is the same every time, another for each test."""
    return random.Random(request.node.name)


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str, int, str], None]:
    """Put a row into the table of tests/robustness/fault_report.py: what was broken, how often, what was seen."""

    def report(broken: str, times: int, seen: str) -> None:
        record_property("broken", broken)
        record_property("times", times)
        record_property("seen", seen)

    return report
