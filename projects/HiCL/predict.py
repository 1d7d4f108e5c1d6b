#!/usr/bin/env python3
"""Predict images that need no truth: overlays, label maps and a legend; see ``--help``."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("hicl_d2") is None:  # not installed: run from the checkout that this script is in
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hicl_d2.command.cli import Parser, run, share


def main() -> None:
    """Read the command line, predict, and exit with status 1 if an image failed."""
    parser = Parser(
        prog="predict.py",
        description="Write overlays, label maps (indices with the classes' colours) and a legend for images. An image that "
        "cannot be read or predicted is passed over and listed at the end; the exit status is then 1.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", default="", metavar="FILE", help="checkpoint [MODEL.WEIGHTS]")
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="files, folders or quoted patterns"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="a folder of its own, not an input's and not above one"
    )
    parser.add_argument(
        "--strength",
        type=share,
        default=0.55,
        help="share of the class colour in overlays, 0 to 1 [%(default)s]",
    )
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of the config")
    args = parser.parse_args()
    from hicl_d2.tools import predict

    if not predict.main(args):
        sys.exit(1)


if __name__ == "__main__":
    run("predict", main)
