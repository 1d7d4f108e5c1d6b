"""Whether a training or an evaluation can start, without starting it: of one config, or of many in one process."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from hicl_d2.command.address import DOWNLOAD
from hicl_d2.command.cli import explain
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError, one_line
from hicl_d2.config import load_config
from hicl_d2.d2.config import CfgNode
from hicl_d2.data.custom import forget_custom
from hicl_d2.run import processes
from hicl_d2.run.manifest import State
from hicl_d2.run.setup import check_before_start, resolve_device
from hicl_d2.tools.arguments import train_arguments


def checked_config(args: Namespace) -> tuple[CfgNode, State]:
    """Return the config of ``args`` and what starting means for its OUTPUT_DIR. Raises InputError if it cannot start."""
    cfg = load_config(args.config_file, args.opts)
    if args.download:
        os.environ[DOWNLOAD] = "1"  # the other processes inherit it
    if processes.is_restarted():
        args.resume = True
    return cfg, check_before_start(cfg, args)


def check(args: Namespace) -> dict[str, Any]:
    """Return how the start that ``args`` asks for would go: "state" (fresh, resume or finished), "output" and "device".

    Raises InputError if it could not start.
    """
    cfg, state = checked_config(args)
    device = resolve_device(cfg)
    processes.check(args, device)
    return {"state": state, "output": cfg.OUTPUT_DIR, "device": device}


def show(args: Namespace) -> None:
    """Say in one line how the start that ``args`` asks for would go. Raises InputError if it could not start."""
    found = check(args)
    console.show(f"can start: {found['state']} run in {found['output']} on {found['device']}")


def show_each(file: str) -> bool:
    """Check each start that ``file`` holds ("-" is standard input); return whether all can start.

    A line is a JSON list of the arguments of train_net.py. Its answer is a line of JSON: "ok", and either what
    :func:`check` returns or "error", one line. Empty lines are passed over. The answers come as the checks end.
    """
    with ExitStack() as stack:
        if file == "-":
            lines: Iterable[str] = sys.stdin
        else:
            try:
                lines = stack.enter_context(open(file, encoding="utf-8"))
            except OSError as error:
                raise InputError(f"--check-each {file}: {error.strerror}") from None
        answers = [_shown(answer) for answer in _answers(lines)]
    return all(answers)


def _shown(answer: dict[str, Any]) -> bool:
    console.show(json.dumps(answer))
    return bool(answer["ok"])


def _answers(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    before = os.environ.get(DOWNLOAD)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield {"ok": True, **check(_arguments(line, number))}
        except Exception as error:  # of one start: the others are checked all the same
            yield {"ok": False, "error": explain(error) or f"{type(error).__name__}: {one_line(error)}"}
        finally:
            forget_custom()
            _restore(before)


def _arguments(line: str, number: int) -> Namespace:
    try:
        arguments = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"--check-each, line {number}: not JSON ({error.msg})") from None
    if not isinstance(arguments, list) or not all(isinstance(each, str) for each in arguments):
        raise InputError(f"--check-each, line {number}: give a JSON list of strings, one for each argument")
    return train_arguments(arguments)


def _restore(download: str | None) -> None:
    if download is None:
        os.environ.pop(DOWNLOAD, None)
    else:
        os.environ[DOWNLOAD] = download
