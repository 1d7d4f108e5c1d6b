"""Runs, inputs and the harness broken on purpose.

``python -m tests.robustness.fault_report`` and ``python -m tests.robustness.load_report`` print what was seen.
"""

import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmark"
sys.path.insert(0, str(BENCHMARK))  # its scripts import each other by name
