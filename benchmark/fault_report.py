"""Break trainings, checkpoints, disks and input files, and print the table of what was seen.

``python benchmark/fault_report.py`` runs tests/faults (half an hour on two idle cores; ``--shorten``: minutes) and prints
a markdown table, a row for each kind of fault. A fault that was not survived is a row that says so, and exit status 1.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "| what was broken | times | what was seen |\n|---|---:|---|"


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
        *(["-k", only] if only else []),
    ]
    command = [sys.executable, "-m", "pytest", *options, "tests/faults"]
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False).returncode


def rows(results: Path) -> Iterator[str]:
    """Yield a row of the table for each test in ``results`` that reported something or failed."""
    for case in ElementTree.parse(results).iter("testcase"):
        found = {item.get("name"): item.get("value") for item in case.iter("property")}
        if "broken" in found:
            yield f"| {found['broken']} | {int(found['times'] or 0):,} | {found['seen']} |"
        elif case.find("failure") is not None or case.find("error") is not None:
            yield f"| {case.get('name')} | | **not survived** |"
        elif (skipped := case.find("skipped")) is not None:
            yield f"| {case.get('name')} | 0 | not tried: {skipped.get('message')} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50, help="how often training is killed (default: 50)")
    parser.add_argument("--fuzzed", type=int, default=10_000, help="files of each kind (default: 10,000)")
    parser.add_argument("--shorten", action="store_true", help="5 trials and 300 files, for a check")
    parser.add_argument(
        "--only", default="", metavar="EXPRESSION", help="the faults that match, as pytest -k"
    )
    options = parser.parse_args()
    trials, fuzzed = (5, 300) if options.shorten else (options.trials, options.fuzzed)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        status = run(trials, fuzzed, options.only, results)
        if not results.exists():
            return status or 1
        sys.stdout.write("\n".join([HEADER, *rows(results)]) + "\n")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
