"""The bar on a terminal: what it shows, and that it gives way to lines that stay."""

import io
import re
import sys
from pathlib import Path

import pytest

from hicl_d2.command.live import Work, bar, can_draw, draw
from tests.support.terminal import run_on_a_terminal

ROOT = Path(__file__).resolve().parents[2]
COLOUR = re.compile(r"\033\[[0-9;]*m")


class Stream(io.StringIO):
    """A terminal of an encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self.name_of_encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.name_of_encoding

    def isatty(self) -> bool:
        return True


def lines(work: Work, width: int, encoding: str = "utf-8") -> list[str]:
    return [COLOUR.sub("", line) for line in draw(work, width, Stream(encoding))]


WORK = Work(
    "iteration", 30, 120, "0:01:30", [("total_loss", "1.25"), ("loss_hicl", "0.5"), ("memory", "1.20 GiB")]
)


def test_a_bar_says_how_far_the_work_is_and_its_figures_by_name() -> None:
    first, second = lines(WORK, 79)
    assert first.startswith("iteration 30/120 ")
    assert first.rstrip().endswith("25%  ETA 0:01:30")
    assert second.split() == ["total_loss", "1.25", "loss_hicl", "0.5", "memory", "1.20", "GiB"]


@pytest.mark.parametrize("width", [20, 40, 79, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    shown = lines(WORK, width)
    assert all(len(line) <= width for line in shown)
    if width >= 40:
        assert "0.5" in " ".join(shown)


@pytest.mark.parametrize(("encoding", "sign"), [("utf-8", "━"), ("ascii", "-")])
def test_the_filled_part_grows_with_the_work(
    monkeypatch: pytest.MonkeyPatch, encoding: str, sign: str
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")  # with colours the rest of the bar is drawn too, paler
    filled = [lines(Work("step", done, 10), 60, encoding)[0].count(sign) for done in range(11)]
    assert filled == sorted(filled)
    assert filled[0] < filled[5] < filled[10]


def test_a_terminal_without_unicode_gets_ascii() -> None:
    "".join(lines(WORK, 79, "ascii")).replace("\N{NO-BREAK SPACE}", " ").encode("ascii")
    assert bar(0.5, 10, Stream("latin-1")) == "#####....."


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "····"), (1, "████"), (0.5, "██··"), (0.28, "█▏··"), (7, "████")]
)
def test_a_bar_is_drawn_in_eighths(share: float, shown: str) -> None:
    assert bar(share, 4, Stream()) == shown


def test_a_stream_that_cannot_move_its_cursor_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert can_draw(Stream())
    assert not can_draw(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(Stream())


def on_a_terminal(code: str, **environment: str) -> str:
    """Run Python code with a terminal as its output and standard error and return what is written there."""
    shown = run_on_a_terminal([sys.executable, "-c", code], PYTHONPATH=str(ROOT), **environment)
    return shown.replace("\r\n", "\n")


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after ``text``: the part of one that the console uses."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\033\[\d*[A-Za-z]|\r|\n|[^\033\r\n]+|\033\[[0-9;]*m", COLOUR.sub("", text)):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif part.endswith("A"):
            row -= int(part[2:-1] or 1)
        elif part.endswith("K"):
            rows[row] = rows[row][:column]
        elif part.endswith("J"):
            rows[row:] = [rows[row][:column]]
        else:
            rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in rows if line.strip()]


MOVING = """
from hicl_d2.command import console as module
from hicl_d2.command.live import Work
module.SECONDS_BETWEEN_REDRAWS = 0.0
console = module.console
def show(done):
    figures = [("total_loss", f"{1 / done:.2f}"), ("loss_hicl", f"{0.5 / done:.2f}")]
    console.progress(f"iteration {done}/4", is_last=done == 4, work=lambda: Work("iteration", done, 4, "0:00:01", figures))
show(1); show(2)
console.say("a line that stays")
show(3); show(4)
console.show("the result")
"""


def test_the_bar_moves_in_its_place_and_lines_stay_above_it() -> None:
    shown = screen(on_a_terminal(MOVING))
    assert shown[0] == "a line that stays"
    assert shown[1].startswith("iteration 4/4")
    assert "100%" in shown[1]
    assert shown[2].split() == ["total_loss", "0.25", "loss_hicl", "0.12"]
    assert shown[3:] == ["the result"]


def test_without_rich_a_line_moves_in_its_place() -> None:
    hidden = "import sys; sys.modules['rich'] = None\n"
    assert screen(on_a_terminal(hidden + MOVING)) == ["a line that stays", "iteration 4/4", "the result"]
