"""The command line: ``python -m hicl_d2.data.prepare <dataset> --root DIR [--workers N] [--partial]``."""

import os
from collections.abc import Sequence
from pathlib import Path

from hicl_d2.command.cli import Parser, run, whole
from hicl_d2.command.console import console, counter
from hicl_d2.command.errors import InputError
from hicl_d2.data.datasets.registry import data_root
from hicl_d2.data.prepare import PLANNERS, carry_out
from hicl_d2.data.prepare.plan import check_complete, describe


def main(arguments: Sequence[str] | None = None, prog: str = "python -m hicl_d2.data.prepare") -> None:
    """Plan, check that the download is whole, convert, and show the histogram."""
    parser = Parser(
        prog=prog,
        description="Turn the official download of a data set into the label maps that the loaders read.",
        epilog="Safe to stop and run again: every file is written whole, and what is there is kept.",
    )
    parser.add_argument("dataset", choices=sorted(PLANNERS))
    parser.add_argument(
        "--root",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of all data sets [$DETECTRON2_DATASETS]",
    )
    parser.add_argument(
        "--workers", type=whole(0), default=os.cpu_count() or 1, metavar="N", help="processes [%(default)s]"
    )
    parser.add_argument("--partial", action="store_true", help="go on with a download that lacks files")
    args = parser.parse_args(arguments)
    root = data_root() if args.root is None else args.root.expanduser()
    if not root.is_dir():
        raise InputError(
            f"{root} is no folder; --root (or $DETECTRON2_DATASETS) is the folder of all data sets"
        )
    plan = PLANNERS[args.dataset](root)
    for note in plan.notes:
        console.say(note)
    if not args.partial:
        check_complete(plan)
    advance = counter(f"preparing {args.dataset}", len(plan.items))
    summary = carry_out(plan, root, workers=args.workers, advance=advance)
    console.show("\n".join(describe(plan, summary)))


if __name__ == "__main__":
    run("prepare", main)
