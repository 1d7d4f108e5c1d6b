"""One moving line on a terminal, plain lines elsewhere, silence where another process speaks."""

import io
import os
import sys
from collections.abc import Callable

import pytest

from hicl_d2.command import console as module
from hicl_d2.command.console import Console, duration


def _on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_REDRAWS", 0.0)
    monkeypatch.setenv("COLUMNS", "11")


def _not_asked() -> str:
    raise AssertionError("a text that is not shown was asked for")


def test_elsewhere_than_on_a_terminal_a_line_comes_now_and_then(capsys: pytest.CaptureFixture) -> None:
    shown = Console()
    shown.progress("first")
    shown.progress(_not_asked)
    shown.progress(lambda: "last", is_last=True)
    assert capsys.readouterr().err == "first\nlast\n"


def test_a_line_that_stays_takes_the_place_of_the_moving_one(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_a_terminal(monkeypatch)
    shown = Console()
    shown.progress("a line that is too long")
    shown.say("said")
    shown.say("again")
    assert capsys.readouterr().err == "\r\033[Ka line tha\r\033[Ksaid\nagain\n"


def test_a_result_is_not_written_behind_the_moving_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_a_terminal(monkeypatch)
    shown = Console()
    shown.progress("moving")
    shown.show("result")
    assert capsys.readouterr() == ("result\n", "\r\033[Kmoving\r\033[K")


def test_a_moving_screen_is_cleared_on_a_terminal_alone(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Console()
    shown.screen("one", is_moving=True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown.screen("two", is_moving=False)
    shown.screen("three", is_moving=True)
    assert capsys.readouterr().out == "one\ntwo\n\033[H\033[Jthree\n"


@pytest.mark.parametrize(
    "speak",
    [
        lambda shown: shown.say("x"),
        lambda shown: shown.show("x"),
        lambda shown: shown.progress("x", is_last=True),
        lambda shown: shown.screen("x", is_moving=False),
    ],
)
def test_a_silent_console_shows_nothing_until_it_may_again(
    speak: Callable[[Console], None], capsys: pytest.CaptureFixture
) -> None:
    shown = Console()
    shown.silence()
    speak(shown)
    assert capsys.readouterr() == ("", "")
    shown.silence(False)
    speak(shown)
    assert "".join(capsys.readouterr()) == "x\n"


def test_a_standard_error_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", open(writer, "w", buffering=1))  # noqa: SIM115 - its end would raise
        Console().say("nobody hears this")
        Console().progress("nor this", is_last=True)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_what_standard_output_cannot_write_is_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    Console().show("木 ü")
    written = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    expected = {"latin-1": "\\u6728 ü\n", "ascii": "\\u6728 \\xfc\n", "utf-8": "木 ü\n"}
    assert written == expected[encoding]


def test_durations_are_hours_minutes_seconds() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 36_000)] == ["0:00:00", "0:01:01", "10:00:00"]
