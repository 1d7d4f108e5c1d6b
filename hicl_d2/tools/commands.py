"""What each command does: read its command line, answer slips in the config, then import what is heavy and do the work.

The scripts of projects/HiCL and the command ``hicl`` both call these functions. Each takes the words of the command line
(None: those of sys.argv) and the name it was called by, and returns the exit status (None is 0).
"""

from argparse import Namespace
from typing import TYPE_CHECKING

from hicl_d2.command.console import console
from hicl_d2.command.downloads import prepare_arguments
from hicl_d2.command.extras import check_extra
from hicl_d2.tools.arguments import (
    Words,
    check_arguments,
    evaluate_arguments,
    export_arguments,
    inspect_arguments,
    predict_arguments,
    train_arguments,
)

if TYPE_CHECKING:
    from hicl_d2.d2.config import CfgNode


def train(arguments: Words = None, prog: str = "train_net.py") -> int | None:
    """Train and evaluate the model of a config, or only check or show something of it."""
    return _train(train_arguments(arguments, prog))


def evaluate(arguments: Words = None, prog: str = "hicl evaluate") -> int | None:
    """Evaluate the weights of a config: the command line of :func:`train` with --eval-only, and --weights."""
    return _train(evaluate_arguments(arguments, prog))


def _train(args: Namespace) -> int | None:
    if args.check_each:
        from hicl_d2.tools import start

        return 0 if start.show_each(args.check_each) else 2
    cfg = _read_config(args)
    if args.print_config:
        console.show(cfg.dump().rstrip())
    elif args.list_features:
        from hicl_d2.tools import features

        features.main(args)
    elif args.check:
        from hicl_d2.tools import start

        start.show(args)
    else:
        from hicl_d2.tools import train

        train.main(args)
    return None


def predict(arguments: Words = None, prog: str = "predict.py") -> int:
    """Predict images; 1 if one failed."""
    args = predict_arguments(arguments, prog)
    _read_config(args)
    from hicl_d2.tools import predict

    return 0 if predict.main(args) else 1


def check(arguments: Words = None, prog: str = "check_dataset.py") -> int:
    """Audit data sets; 1 if training on them would go wrong."""
    args = check_arguments(arguments, prog)
    if args.config_file:
        _read_config(args)
    from hicl_d2.tools import check

    return 0 if check.main(args) else 1


def inspect(arguments: Words = None, prog: str = "inspect_components.py") -> None:
    """Draw the windows of every level and the embedding."""
    args = inspect_arguments(arguments, prog)
    _read_config(args)
    from hicl_d2.tools import inspect

    inspect.main(args)


def matrix(arguments: Words = None, prog: str = "hicl matrix") -> int:
    """Plan, run and compare the cells of a matrix."""
    from hicl_d2.harness.command import main

    return main(arguments, prog)


def prepare(arguments: Words = None, prog: str = "hicl prepare") -> None:
    """Convert the official download of a data set."""
    args = prepare_arguments(arguments, prog)
    from hicl_d2.data.prepare.__main__ import convert

    convert(args)


def configs(arguments: Words = None, prog: str = "hicl configs") -> None:
    """List, show or copy the configs and matrices of the project."""
    from hicl_d2.tools import configs

    configs.main(configs.configs_arguments(arguments, prog))


def export(arguments: Words = None, prog: str = "hicl export") -> None:
    """Write the plain model for another runtime."""
    args = export_arguments(arguments, prog)
    _read_config(args)
    if args.format == "onnx":
        check_extra("export")
    from hicl_d2.tools import export

    export.main(args)


def _read_config(args: Namespace) -> "CfgNode":
    """Read the config before anything that imports torch, so that a slip in it is answered at once."""
    from hicl_d2.command.safe_yaml import read_chain

    read_chain(args.config_file)  # Detectron2's keys, where it is installed, take seconds to load
    from hicl_d2.config import load_config

    return load_config(args.config_file, args.opts)
