"""The command ``hicl``: one name for all tools, ``hicl train --config-file ...``. Nothing heavy is imported here."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from hicl_d2.command.cli import run
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError, nearest_or_known
from hicl_d2.tools import commands
from hicl_d2.version import __version__

TOOL = "hicl"
COMMANDS: dict[str, tuple[Callable[..., int | None], str]] = {
    "train": (commands.train, "train and evaluate the model of a config"),
    "evaluate": (commands.evaluate, "evaluate weights on the test data sets of a config"),
    "predict": (commands.predict, "write overlays and label maps for images"),
    "check": (commands.check, "audit data sets before training on them"),
    "inspect": (commands.inspect, "draw which windows are kept, which are pruned and why"),
    "matrix": (commands.matrix, "plan, run, watch and compare many trainings"),
    "prepare": (commands.prepare, "turn the official download of a data set into label maps"),
    "configs": (commands.configs, "list the configs and matrices of the project, show or copy one"),
    "export": (commands.export, "write the plain model for ONNX, TorchScript, torch.export or Detectron2"),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the first word names, and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        name = f"{TOOL} {words[0]}"
        run(name, partial(COMMANDS[words[0]][0], words[1:], name))
    run(TOOL, partial(_answer, words))


def _answer(words: Sequence[str]) -> None:
    """Answer a command line without a command."""
    if not words or words[0] in ("-h", "--help", "help"):
        console.show(_help())
    elif words[0] in ("-V", "--version"):
        console.show(f"hicl-d2 {__version__}")
    else:
        what = "option" if words[0].startswith("-") else "command"
        raise InputError(f"unknown {what} {words[0]}{nearest_or_known(words[0], COMMANDS)}")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hicl COMMAND [options]",
            "",
            "Hierarchical contrastive learning for semantic segmentation.",
            "",
            *lines,
            "",
            "hicl COMMAND --help says more about each; hicl --version shows the version.",
        ]
    )


if __name__ == "__main__":
    main()
