"""Train and compare the cells of a matrix: ``python benchmark/run_matrix.py --matrix FILE --output DIR``."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # the package of this checkout, be another installed or not

from hicl_d2.harness.command import main

if __name__ == "__main__":
    sys.exit(main())
