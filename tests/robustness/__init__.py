"""Runs, inputs and the harness broken on purpose.

``python -m tests.robustness.fault_report`` and ``python -m tests.robustness.load_report`` print what was seen.
"""

from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmark"
