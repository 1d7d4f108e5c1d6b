"""Hints in messages."""

import pickle

import pytest

from hicl_d2.command.errors import InputError, counted, listing, nearest, nearest_or_known


def test_the_nearest_name_is_suggested_or_the_known_ones_are_listed() -> None:
    assert (
        nearest("shep", ["sheep", "cow"])
        == nearest_or_known("shep", iter(["sheep", "cow"]))
        == "; did you mean sheep?"
    )
    assert nearest("xyz", ["sheep", "cow"]) == ""
    assert nearest_or_known("xyz", iter(["sheep", "cow"])) == "; known: cow, sheep"


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("cell",), "0 cells"),
        (1, ("cell",), "1 cell"),
        (2, ("cell",), "2 cells"),
        (1, ("class has", "classes have"), "1 class has"),
        (2, ("class has", "classes have"), "2 classes have"),
    ],
)
def test_a_count_agrees_with_what_it_counts(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text


def test_a_long_list_is_cut_with_a_count() -> None:
    assert listing("cab", limit=2) == "a, b and 1 more"


def test_what_a_message_quotes_does_not_break_its_line() -> None:
    error = InputError("the key 'a\nb\r\n\x85c' is unknown")
    assert str(error) == "the key 'a b  c' is unknown"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
