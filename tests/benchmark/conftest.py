"""The scripts under benchmark/ import their parts by name."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmark"))


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, Sequence[str]], None]:
    """Return what runs the ``main`` of a script with the given words; threads and console are put back after."""

    def run(script: ModuleType, words: Sequence[str]) -> None:
        monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *words])
        threads = torch.get_num_threads()
        try:
            assert script.main() == 0
        finally:
            torch.set_num_threads(threads)
            script.console.silence(False)

    return run
