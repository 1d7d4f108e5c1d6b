#!/usr/bin/env python3
"""Train and evaluate the model of a config file; see ``--help``."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("hicl_d2") is None:  # not installed: run from the checkout that this script is in
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hicl_d2.command.cli import run
from hicl_d2.command.console import console
from hicl_d2.tools.arguments import train_arguments


def main() -> None:
    """Read the command line and the config, then import what is heavy and do the work."""
    args = train_arguments()
    if not args.check_each:
        from hicl_d2.config import load_config

        cfg = load_config(args.config_file, args.opts)  # a slip in it is answered before torch is imported
        if args.print_config:
            console.show(cfg.dump().rstrip())
            return
    if args.list_features:
        from hicl_d2.tools import features

        features.main(args)
        return
    if args.check or args.check_each:
        from hicl_d2.tools import start

        if args.check_each:
            sys.exit(0 if start.show_each(args.check_each) else 2)
        start.show(args)
        return
    from hicl_d2.tools import train

    train.main(args)


if __name__ == "__main__":
    run("train_net", main)
