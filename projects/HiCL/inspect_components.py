#!/usr/bin/env python3
"""Draw the candidates of every level, what became of them, and the embedding; see ``--help``."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("hicl_d2") is None:  # not installed: run from the checkout that this script is in
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hicl_d2.command.cli import Parser, parse_with_overrides, run, whole


def main() -> None:
    """Read the command line and draw."""
    parser = Parser(
        allow_abbrev=False,
        usage="%(prog)s [options] [KEY VALUE ...]",
        prog="inspect_components.py",
        description="Draw, for labelled images, the windows of every level (kept in the colour of their class, or why they "
        "were pruned) and the principal directions of the embedding of pixels and components.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config with a Hi-CL branch")
    parser.add_argument("--weights", default="", metavar="FILE", help="checkpoint [MODEL.WEIGHTS]")
    parser.add_argument("--dataset", default="", metavar="NAME", help="[first of DATASETS.TEST]")
    parser.add_argument("--image", nargs="+", default=[], metavar="NAME", help="these images of it")
    parser.add_argument(
        "--count", type=whole(1), default=4, metavar="N", help="or so many, evenly spaced [%(default)s]"
    )
    parser.add_argument("--output", required=True, metavar="DIR")
    args = parse_with_overrides(parser)
    from hicl_d2.tools import inspect

    inspect.main(args)


if __name__ == "__main__":
    run("inspect_components", main)
