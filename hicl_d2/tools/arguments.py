"""The command line of train_net.py. It is read before anything heavy is imported."""

from argparse import Namespace
from collections.abc import Sequence

from hicl_d2.command.cli import Parser, whole
from hicl_d2.command.errors import InputError, nearest


def train_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """Read the command line of train_net.py: Detectron2's flags, before or after the overrides (``opts``)."""
    parser = Parser(
        prog="train_net.py",
        usage="%(prog)s --config-file FILE [options] [KEY VALUE ...]",
        description="Train and evaluate the model of a config file. KEY VALUE pairs override the file.",
        epilog="All output is below OUTPUT_DIR: result.json, pictures, checkpoints, metrics.json, log.txt.",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--config-file", metavar="FILE", help="config file (configs/...)")
    flag(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one"
    )
    flag(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS (with --resume: the last checkpoint)"
    )
    flag(
        "--check",
        action="store_true",
        help="check all that a start checks, say in one line how it would start, and end",
    )
    flag(
        "--check-each",
        metavar="FILE",
        help="the same for many starts: FILE (- is standard input) holds the arguments of one in each line, as a JSON list; "
        "each is answered by a line of JSON; exit status 2 if one cannot start",
    )
    flag(
        "--list-features",
        action="store_true",
        help="show the modules of the model that Hi-CL can read, with channels and stride, and end",
    )
    flag(
        "--num-gpus",
        type=_count,
        default=1,
        metavar="N",
        help="processes on this machine; on the CPU without GPUs",
    )
    flag(
        "--download",
        action="store_true",
        help="fetch MODEL.WEIGHTS from an https address that has no checksum (#sha256=...)",
    )
    flag("--num-machines", type=_count, default=1, metavar="N", help="number of machines")
    flag("--machine-rank", type=whole(0), default=0, metavar="N", help="this machine's number, from 0")
    flag(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where processes meet: tcp://HOST:PORT; auto: a free port",
    )
    args, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("--"):
            hint = nearest(word, parser._option_string_actions)
            raise InputError(f"unknown option {word}{hint}; see --help")
    if not args.config_file and not args.check_each:
        parser.error("the following arguments are required: --config-file")
    args.opts = rest
    return args


def _count(text: str) -> int:
    """Return a number of processes; 0 GPUs means one process on the CPU, as with Detectron2."""
    return max(whole(0)(text), 1)
