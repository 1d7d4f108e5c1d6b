"""The command lines of the tools that work with one config. They are read before anything heavy is imported."""

import os
from argparse import Namespace
from collections.abc import Sequence

from hicl_d2.command.cli import Parser, parse_with_overrides, share, whole

Words = Sequence[str] | None  # None: those of sys.argv

FORMATS = ("onnx", "torchscript", "torch_export")
CONFIG_HELP = "config file, or the name of one of the project's: camvid/deeplab_v3_plus_R_18_cpu.yaml"


def train_arguments(arguments: Words = None, prog: str = "train_net.py") -> Namespace:
    """Read the command line of train_net.py: Detectron2's flags, before or after the overrides (``opts``)."""
    parser = _train_parser(prog)
    args = parse_with_overrides(parser, arguments)
    if not args.config_file and not args.check_each:
        parser.error("the following arguments are required: --config-file")
    return args


def evaluate_arguments(arguments: Words = None, prog: str = "hicl evaluate") -> Namespace:
    """Read the command line of ``hicl evaluate``; what it returns is that of train_net.py --eval-only."""
    parser = _parser(
        prog,
        "Evaluate weights on the test data sets of a config file. KEY VALUE pairs override the file. The result is "
        "OUTPUT_DIR/evaluation.json, with pictures beside it.",
    )
    flag = parser.add_argument
    flag("--config-file", required=True, metavar="FILE", help=CONFIG_HELP)
    flag("--weights", metavar="FILE", help="checkpoint [MODEL.WEIGHTS]")
    flag("--last", action="store_true", help="or the last checkpoint in OUTPUT_DIR")
    flag("--num-gpus", type=whole(0), default=1, metavar="N", help="processes on this machine")
    args = parse_with_overrides(parser, arguments)
    words = ["--config-file", args.config_file, "--eval-only", "--num-gpus", str(args.num_gpus)]
    words += ["--resume"] if args.last else []
    weights = [] if args.weights is None else ["MODEL.WEIGHTS", args.weights]
    found = train_arguments([*words, *args.opts, *weights], prog)
    found.weights_by = ("--weights FILE", "--last")
    return found


def _train_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        usage="%(prog)s --config-file FILE [options] [KEY VALUE ...]",
        description="Train and evaluate the model of a config file. KEY VALUE pairs override the file.",
        epilog="All output is below OUTPUT_DIR: result.json, pictures, checkpoints, metrics.json, log.txt.",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--config-file", metavar="FILE", help=CONFIG_HELP)
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
        "--print-config",
        action="store_true",
        help="write the whole config, bases and overrides in it, to standard output as YAML, and end",
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
    # What the tool calls a file of weights and the last checkpoint, for messages.
    parser.set_defaults(weights_by=("MODEL.WEIGHTS FILE", "--resume"))
    return parser


def predict_arguments(arguments: Words = None, prog: str = "predict.py") -> Namespace:
    """Read the command line of predict.py."""
    parser = _parser(
        prog,
        "Write overlays, label maps (indices with the classes' colours) and a legend for images. An image that "
        "cannot be read or predicted is passed over and listed at the end; the exit status is then 1.",
    )
    flag = parser.add_argument
    flag("--config-file", required=True, metavar="FILE", help=CONFIG_HELP)
    flag("--weights", default="", metavar="FILE", help="checkpoint [MODEL.WEIGHTS]")
    flag("--input", required=True, nargs="+", metavar="PATH", help="files, folders or quoted patterns")
    flag(
        "--output", required=True, metavar="DIR", help="a folder of its own, not an input's and not above one"
    )
    flag(
        "--strength",
        type=share,
        default=0.55,
        help="share of the class colour in overlays, 0 to 1 [%(default)s]",
    )
    return parse_with_overrides(parser, arguments)


def check_arguments(arguments: Words = None, prog: str = "check_dataset.py") -> Namespace:
    """Read the command line of check_dataset.py."""
    parser = _parser(
        prog,
        "Open every file of data sets: counts, sizes, labels, class shares, how many windows of each "
        "size survive each purity, images that occur twice. Exit status 1 where training would go wrong.",
    )
    flag = parser.add_argument
    flag("--config-file", metavar="FILE", help="check the data sets that a config trains and tests on")
    flag("--dataset", action="append", default=[], metavar="NAME", help="or these (repeatable)")
    flag("--output", default="output/audit", metavar="DIR", help="for audit.json and pictures [%(default)s]")
    flag("--workers", type=whole(0), default=os.cpu_count() or 1, metavar="N", help="processes [%(default)s]")
    flag("--windows", type=whole(1), nargs="+", metavar="N", help="window sizes [MODEL.HICL.WINDOWS]")
    flag(
        "--stride",
        type=whole(1),
        default=4,
        metavar="N",
        help="pixels per cell of the feature map [%(default)s]",
    )
    flag("--pictures", type=whole(0), default=12, metavar="N", help="images on a sheet [%(default)s]")
    return parse_with_overrides(parser, arguments)


def inspect_arguments(arguments: Words = None, prog: str = "inspect_components.py") -> Namespace:
    """Read the command line of inspect_components.py."""
    parser = _parser(
        prog,
        "Draw, for labelled images, the windows of every level (kept in the colour of their class, or why they "
        "were pruned) and the principal directions of the embedding of pixels and components.",
    )
    flag = parser.add_argument
    flag("--config-file", required=True, metavar="FILE", help="config with a Hi-CL branch")
    flag("--weights", default="", metavar="FILE", help="checkpoint [MODEL.WEIGHTS]")
    flag("--dataset", default="", metavar="NAME", help="[first of DATASETS.TEST]")
    flag("--image", nargs="+", default=[], metavar="NAME", help="these images of it")
    flag("--count", type=whole(1), default=4, metavar="N", help="or so many, evenly spaced [%(default)s]")
    flag("--output", required=True, metavar="DIR")
    return parse_with_overrides(parser, arguments)


def export_arguments(arguments: Words = None, prog: str = "hicl export") -> Namespace:
    """Read the command line of ``hicl export``; either ``format`` or ``to`` is set."""
    parser = _parser(
        prog,
        "Write the plain model, without the branch, for a runtime that does not know this project. The model takes images "
        "(1, 3, height, width) with values 0 to 255, normalises them itself and gives scores (1, classes, height, width). "
        "What else a user of the file must know is in its metadata.",
    )
    flag = parser.add_argument
    flag("--config-file", required=True, metavar="FILE", help=CONFIG_HELP)
    flag("--weights", default="", metavar="FILE", help="checkpoint [MODEL.WEIGHTS]")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--format", choices=FORMATS, help="a file that runs elsewhere")
    what.add_argument(
        "--to",
        choices=("detectron2",),
        help="a folder with checkpoint and config for Detectron2's own scripts",
    )
    flag("--output", required=True, metavar="PATH", help="the file, or the folder of --to")
    flag(
        "--size",
        type=whole(1),
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images, in pixels; the file takes no other [INPUT.MIN_SIZE_TEST, square]",
    )
    return parse_with_overrides(parser, arguments)


def _parser(prog: str, description: str) -> Parser:
    return Parser(
        allow_abbrev=False,
        usage="%(prog)s [options] [KEY VALUE ...]",
        prog=prog,
        description=description,
    )


def _count(text: str) -> int:
    """Return a number of processes; 0 GPUs means one process on the CPU, as with Detectron2."""
    return max(whole(0)(text), 1)
