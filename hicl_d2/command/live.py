"""How far a piece of work is, drawn for a terminal: a bar and figures. rich, which an extra brings, draws it."""

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from hicl_d2.command.extras import is_installed

BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Work:
    """A piece of work of ``total`` steps: what a step is, how many are done, what is left in the words of a clock, and
    figures by name.
    """

    what: str
    done: int
    total: int
    left: str = ""
    figures: Sequence[tuple[str, str]] = ()


def can_draw(stream: IO[str]) -> bool:
    """Return whether ``stream`` is a terminal that a bar can be drawn on."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb" and is_installed("rich")


def draw(work: Work, width: int, stream: IO[str]) -> list[str]:
    """Return the lines of ``work``, each at most ``width`` columns, with the colours that ``stream`` shows."""
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2), expand=True)
    for _ in range(2):
        row.add_column(no_wrap=True)
    row.add_column(no_wrap=True, justify="right")
    row.columns[1].ratio = 1
    end = f"{work.done / max(work.total, 1):4.0%}" + (f"  ETA {work.left}" if work.left else "")
    row.add_row(f"{work.what} {work.done}/{work.total}", ProgressBar(max(work.total, 1), work.done), end)
    figures = Text()
    for name, value in work.figures:
        part = Text.assemble((f"{name} ", "dim"), (value.replace(" ", "\N{NO-BREAK SPACE}"), "bold"))
        figures.append("   " if figures else "").append(part)
    buffer = _Buffer(stream)
    console = Console(file=buffer, width=width, force_terminal=True, highlight=False, legacy_windows=False)
    console.print(row, end="")
    if work.figures:
        console.print(figures)
    return [line for line in buffer.getvalue().splitlines() if line]


class _Buffer(io.StringIO):
    """Text in memory that says it has the encoding of ``stream``, so that a bar is drawn in characters it can show."""

    encoding = "utf-8"

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self.encoding = getattr(stream, "encoding", None) or "utf-8"


def bar(share: float, width: int, stream: IO[str] | None = None) -> str:
    """Return a bar of ``width`` characters that is full at ``share`` 1; in # where ``stream`` has no blocks."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    share = min(max(share, 0.0), 1.0)
    if not encoding.lower().startswith("utf"):
        return ("#" * round(share * width)).ljust(width, ".")
    whole, rest = divmod(round(share * width * 8), 8)
    return (BLOCKS[-1] * whole + (BLOCKS[rest] if rest else "")).ljust(width, "·")
