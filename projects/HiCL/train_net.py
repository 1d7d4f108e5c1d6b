#!/usr/bin/env python3
"""Train and evaluate the model of a config file; see ``--help``."""

import sys
from pathlib import Path

if (
    Path(__file__).resolve().parents[2] / "hicl_d2"
).is_dir():  # the package of this checkout, be another installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hicl_d2.command.cli import run
from hicl_d2.tools.commands import train as main

if __name__ == "__main__":
    run("train_net", main)
