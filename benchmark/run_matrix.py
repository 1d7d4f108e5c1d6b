"""Train and compare the cells of a matrix: ``python benchmark/run_matrix.py --matrix FILE --output DIR``."""

import sys

from harness.command import main

if __name__ == "__main__":
    sys.exit(main())
