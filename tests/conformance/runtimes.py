"""Load the same module from either runtime, so that one function can compute figures from both.

``load("lite", "data.samplers")`` imports ``hicl_d2.lite.data.samplers``; ``load("detectron2", "data.samplers")`` imports
``detectron2.data.samplers``. Golden figures were recorded from the real Detectron2 with ``python -m tests.conformance.record``.
"""

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"
PREFIXES = {"lite": "hicl_d2.lite", "detectron2": "detectron2"}
HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None

needs_detectron2 = pytest.mark.skipif(not HAS_DETECTRON2, reason="Detectron2 is not installed here")


def load(runtime: str, module: str) -> ModuleType:
    """Import ``module`` (a path below the runtime's package, such as ``"utils.comm"``) from ``runtime``."""
    return importlib.import_module(f"{PREFIXES[runtime]}.{module}")


def golden(room: str) -> dict[str, Any]:
    """Return the figures that were recorded from the real Detectron2 for ``room``."""
    return json.loads((GOLDEN / f"{room}.json").read_text())["figures"]


def plain(figures: Any) -> Any:
    """Return ``figures`` as JSON would give them back: tuples as lists, keys as strings."""
    return json.loads(json.dumps(figures))
