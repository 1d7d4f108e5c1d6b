"""The command line: ``python -m hicl_d2.data.prepare <dataset> --root DIR [--workers N] [--partial]``."""

from argparse import Namespace
from collections.abc import Sequence

from hicl_d2.command.cli import run
from hicl_d2.command.console import console, counter
from hicl_d2.command.downloads import prepare_arguments
from hicl_d2.data.prepare import PLANNERS, carry_out
from hicl_d2.data.prepare.plan import check_complete, describe


def main(arguments: Sequence[str] | None = None, prog: str = "python -m hicl_d2.data.prepare") -> None:
    """Read the command line and do what it asks."""
    convert(prepare_arguments(arguments, prog))


def convert(args: Namespace) -> None:
    """Plan, check that the download is whole, convert, and show the histogram."""
    root = args.root
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
