"""Break trainings, checkpoints, disks and input files, and print the table of what was seen.

``python -m tests.robustness.fault_report`` (``make faults``) runs the tests of this folder (hours, most of them for files
at random; ``--fuzzed 3000``: an hour; ``--shorten``: minutes) and prints a markdown table, a row for each kind of fault. A
fault that was not survived is a row that says so, and exit status 1. ``--save`` keeps the rows for the README's table; with
``--only``, those of the faults that were not tried stay.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from result_tables import Fault, render_faults

from tests.robustness import BENCHMARK

ROOT = BENCHMARK.parent
RESULTS = BENCHMARK / "results" / "faults" / "faults.json"
TESTS = "tests/robustness"
OF_THE_HARNESS = f"{TESTS}/test_load.py"  # has a report of its own


def run(trials: int, fuzzed: int, only: str, output: Path) -> int:
    """Run the tests, write their properties to ``output`` (JUnit's XML), and return pytest's exit status."""
    environment = {
        **os.environ,
        "HICL_FAULT_TRIALS": str(trials),
        "HICL_FAULT_FUZZED": str(fuzzed),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={output}",
        "-o",
        "junit_family=xunit1",
        f"--ignore={OF_THE_HARNESS}",
        *(["-k", only] if only else []),
    ]
    command = [sys.executable, "-m", "pytest", *options, TESTS]
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False).returncode


def rows(results: Path) -> Iterator[tuple[str, Fault]]:
    """Yield name and row of each test in ``results`` that reported something or failed."""
    for case in ElementTree.parse(results).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        found: Fault = {str(item.get("name")): item.get("value") for item in case.iter("property")}
        if case.find("failure") is not None or case.find("error") is not None:
            yield name, {"broken": case.get("name"), "times": None, "seen": "**not survived**"}
        elif "broken" in found:
            yield name, {**found, "times": int(found["times"] or 0)}
        elif (skipped := case.find("skipped")) is not None:
            yield (
                name,
                {"broken": case.get("name"), "times": 0, "seen": f"not tried: {skipped.get('message')}"},
            )


def save(found: dict[str, Fault], *, is_all: bool) -> None:
    """Write the rows to ``RESULTS``, in the place of all that are there or of those of the same names."""
    before = {} if is_all or not RESULTS.is_file() else json.loads(RESULTS.read_text())
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({**before, **found}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50, help="how often training is killed (default: 50)")
    parser.add_argument("--fuzzed", type=int, default=50_000, help="files of each kind (default: 50,000)")
    parser.add_argument("--shorten", action="store_true", help="5 trials and 300 files, for a check")
    parser.add_argument(
        "--only", default="", metavar="EXPRESSION", help="the faults that match, as pytest -k"
    )
    parser.add_argument("--save", action="store_true", help=f"keep the rows in {RESULTS.relative_to(ROOT)}")
    options = parser.parse_args()
    trials, fuzzed = (5, 300) if options.shorten else (options.trials, options.fuzzed)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        status = run(trials, fuzzed, options.only, results)
        if not results.exists():
            return status or 1
        found = dict(rows(results))
    sys.stdout.write(render_faults(found.values()))
    if options.save:
        save(found, is_all=not options.only)
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
