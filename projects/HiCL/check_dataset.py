#!/usr/bin/env python3
"""Audit data sets before training on them; see ``--help``."""

import importlib.util
import os
import sys
from pathlib import Path

if importlib.util.find_spec("hicl_d2") is None:  # not installed: run from the checkout that this script is in
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hicl_d2.command.cli import Parser, parse_with_overrides, run, whole


def main() -> None:
    """Read the command line, audit, and exit with status 1 if training would go wrong."""
    parser = Parser(
        allow_abbrev=False,
        usage="%(prog)s [options] [KEY VALUE ...]",
        prog="check_dataset.py",
        description="Open every file of data sets: counts, sizes, labels, class shares, how many windows of each "
        "size survive each purity, images that occur twice. Exit status 1 where training would go wrong.",
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="check the data sets that a config trains and tests on"
    )
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="NAME", help="or these (repeatable)"
    )
    parser.add_argument(
        "--output", default="output/audit", metavar="DIR", help="for audit.json and pictures [%(default)s]"
    )
    parser.add_argument(
        "--workers", type=whole(0), default=os.cpu_count() or 1, metavar="N", help="processes [%(default)s]"
    )
    parser.add_argument(
        "--windows", type=whole(1), nargs="+", metavar="N", help="window sizes [MODEL.HICL.WINDOWS]"
    )
    parser.add_argument(
        "--stride",
        type=whole(1),
        default=4,
        metavar="N",
        help="pixels per cell of the feature map [%(default)s]",
    )
    parser.add_argument(
        "--pictures", type=whole(0), default=12, metavar="N", help="images on a sheet [%(default)s]"
    )
    args = parse_with_overrides(parser)
    from hicl_d2.tools import check

    if not check.main(args):
        sys.exit(1)


if __name__ == "__main__":
    run("check_dataset", main)
