#!/usr/bin/env python3
"""Train and evaluate the model of a config file; see ``--help``."""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
if (
    CHECKOUT / "hicl_d2" / "__init__.py"
).is_file():  # the package of this checkout, be another installed or not
    sys.path.insert(0, str(CHECKOUT))

from hicl_d2.command.cli import run
from hicl_d2.tools.commands import train as main

if __name__ == "__main__":
    run("train_net", main)
