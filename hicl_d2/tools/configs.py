"""``hicl configs``: the configs and matrices that come with the project, listed, shown or copied."""

import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from hicl_d2.command.cli import Parser
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError
from hicl_d2.command.files import write_text
from hicl_d2.command.shipped import CONFIG, FOLDERS, HOME, MATRIX, find, is_base, names, own_name

BASE = re.compile(r"""^(_BASE_:\s*)(["']?)(?P<base>[^"'\s#]+)\2""", re.MULTILINE)
MATRICES = "matrices/"


def configs_arguments(arguments: Sequence[str] | None, prog: str) -> Namespace:
    """Read the command line of ``hicl configs``."""
    parser = Parser(
        prog=prog,
        allow_abbrev=False,
        description="List the configs and matrices that come with the project, a line each. A name shows the file; a part of a "
        "name or a pattern lists what it matches.",
        epilog="A copy names its base as the project does, so it may lie anywhere.",
    )
    parser.add_argument(
        "name", nargs="?", default="", metavar="NAME", help="camvid, '*_hicl.yaml', matrices/smoke.yaml"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="copy the file NAME here, to start from")
    return parser.parse_args(arguments)


def main(args: Namespace) -> None:
    """Show what ``args`` ask for. Raises InputError for a name that nothing has and an output that is there already."""
    found = _own_file(args.name) if args.name else None
    if args.output is not None:
        if found is None:
            found = find(args.name or "NAME")  # what is wrong with the name
        _copy(found, args.output)
        console.show(f"copied to {args.output}")
    elif found is not None:
        console.show(portable(found).rstrip())
    else:
        console.show("\n".join(_listing(args.name)))


def _own_file(name: str) -> Path | None:
    """Return the file of a name; a matrix is named with its folder, as it is listed."""
    kind = MATRIX if name.startswith((MATRICES, f"{FOLDERS[MATRIX]}/")) else CONFIG
    own = own_name(Path(name), kind)
    return None if own is None else HOME / FOLDERS[kind] / own


def portable(file: Path) -> str:
    """Return the text of a file of the project with its ``_BASE_`` as a name that is found from any folder."""
    text = file.read_text(encoding="utf-8")
    for folder in ((HOME / below).resolve() for below in FOLDERS.values()):
        if file.resolve().is_relative_to(folder):
            return BASE.sub(partial(_named_below, folder, file.parent), text, count=1)
    return text


def _named_below(folder: Path, beside: Path, match: "re.Match[str]") -> str:
    base = (beside / match["base"]).resolve()
    return f'{match[1]}"{base.relative_to(folder).as_posix()}"'


def _copy(file: Path, output: Path) -> None:
    target = output / file.name if output.is_dir() else output
    if target.exists():
        raise InputError(f"{target} is there already; give another --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, portable(file))


def _listing(pattern: str) -> list[str]:
    """Return a line for each config and matrix that ``pattern`` is a part of or matches."""
    everything = [
        *((name, HOME / FOLDERS[CONFIG] / name) for name in names(CONFIG) if not is_base(name)),
        *(
            (f"{MATRICES}{name}", HOME / FOLDERS[MATRIX] / name)
            for name in names(MATRIX)
            if not is_base(name)
        ),
    ]
    chosen = [(name, file) for name, file in everything if pattern in name or fnmatchcase(name, pattern)]
    if not chosen:
        find(pattern)  # what is wrong with the name
    width = max((len(name) for name, _ in chosen), default=0)
    lines = [f"{name:<{width}}  {describe(file)}" for name, file in chosen]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return [line[:room] for line in lines]


def describe(file: Path) -> str:
    """Return the first sentence of the comment that a file begins with, or else of the file that it is based on."""
    text = file.read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    if lines:
        return re.split(r"(?<=[^.\d])\.\s", " ".join(lines), maxsplit=1)[0].rstrip(".")
    base = BASE.search(text)
    return describe(file.parent / base["base"]) if base else ""
