"""YAML of strangers is read as plain values or refused in one line with file and line."""

import re
from pathlib import Path

import pytest
import yaml

from hicl_d2.command.errors import InputError
from hicl_d2.command.safe_yaml import flatten, read_chain, read_yaml


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_values_are_those_of_yaml_and_every_key_has_its_line(tmp_path: Path) -> None:
    text = "A: 1\nB:\n  C: [1, two, 3.0]\n  D.x: {E: null, 7: [{on: 2}]}\n"
    document = read_yaml(write(tmp_path, text))
    assert document.content == yaml.safe_load(text)
    assert document.keys == (
        (("A",), 1, "str"),
        (("B",), 2, "str"),
        (("B", "C"), 3, "str"),
        (("B", "D.x"), 4, "str"),
        (("B", "D.x", "E"), 4, "str"),
        (("B", "D.x", "7"), 4, "int"),
        (("B", "D.x", "7", "on"), 4, "bool"),
    )
    assert document.place(("B", "C")) == f"{tmp_path / 'a.yaml'}:3"
    assert document.place(("nowhere",)) == f"{tmp_path / 'a.yaml'}:1"
    assert read_yaml(write(tmp_path, "")).content == {}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: {<<: *a}\n",  # a key of its own and a merged one are not twice the same
        "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: [[[{<<: *b}]]]\n",
        "a: &a [1]\nb: [*a, *a]\n",
    ],
)
def test_what_is_not_given_twice_is_taken(tmp_path: Path, text: str) -> None:
    assert read_yaml(write(tmp_path, text)).content == yaml.safe_load(text)


BOMB = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{{', '.join(f'k{n}: *{old}' for n in range(9))}}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: 1\ny: 2\nx: 3\n", r"a.yaml:3: the key x is given twice"),
        (
            "x:\n  y: 1\n  y: 1\n",
            r"a.yaml:3: the key y is given twice, here and in line 2; put both into one",
        ),
        ("'1': a\n1: b\n", r"a.yaml:2: the key 1 is given twice"),  # one key to whom joins keys by dots
        ("x: [{y: 1,\n y: 2}]\n", r"a.yaml:2: the key y is given twice"),
        ("x: !!python/name:os.system\n", r"a.yaml:1: the tag !!python/name:os.system would run code"),
        ("x: [{y: !!python/object/new:os.x []}]\n", r"a.yaml:1: the tag !!python/object/new:os.x would"),
        ("x:\n  !<tag:yaml.org,2002:python/module:os> ''\n", r"a.yaml:2: the tag !!python/module:os would"),
        ("? !!python/name:os.system\n: 1\n", r"a.yaml:1: the tag !!python/name:os.system would run code"),
        ("x: !mine 1\n", r"a.yaml:1: not valid YAML: could not determine a constructor"),
        ("? [1]\n: 2\n", r"a.yaml:1: not valid YAML: found unhashable key"),
        ("? {a: 1}\n: 2\n", r"a.yaml:1: not valid YAML: found unhashable key"),
        ("x: *nowhere\n", r"a.yaml:1: not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 1\n", r"a.yaml:2: not valid YAML: but found another document"),
        ("- 1\n", r"a.yaml: it must hold keys and values, not a list"),
        ("just text\n", r"a.yaml: it must hold keys and values, not a str"),
        (BOMB, r"a.yaml:\d: the document is too large or nested too deeply"),
        ("x: &x [*x]\n", r"a.yaml:1: the document is too large or nested too deeply"),
        ("x: &x {y: *x}\n", r"a.yaml:1: the document is too large or nested too deeply"),
        ("x: " + "[" * 90_000, r"a.yaml: not valid YAML: it is nested too deeply"),
        ("x: " + "[" * 200 + "]" * 200, r"a.yaml:1: the document is too large or nested too deeply"),
    ],
)
def test_what_is_refused_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_yaml(write(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named_by_its_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"matrix file .*gone\.yaml does not exist"):
        read_yaml(tmp_path / "gone.yaml", "matrix file")
    with pytest.raises(InputError, match=f"config file {re.escape(str(tmp_path))} cannot be read: .*regular"):
        read_yaml(tmp_path)
    (tmp_path / "latin").write_bytes(b"x: \xff\n")
    with pytest.raises(InputError, match="latin cannot be read"):
        read_yaml(tmp_path / "latin")
    with pytest.raises(InputError, match=r"cannot be read|does not exist"):
        read_yaml(tmp_path / ("x" * 300))


@pytest.mark.parametrize("escape", ["\\0", "\\x00", "\\uD800", "\\uDFFF"])
@pytest.mark.parametrize("line", ['_BASE_: "{}"', 'A: ["b", "a{}.pth"]', '"{}": 1', 'A: {{B: "{}c"}}'])
def test_a_character_that_no_path_may_hold_is_refused_with_its_line(
    line: str, escape: str, tmp_path: Path
) -> None:
    file = write(tmp_path, "# first\n" + line.format(escape) + "\n")
    with pytest.raises(
        InputError, match=re.escape(f"{file}:2: a character that no name and no path may hold")
    ):
        read_chain(file)


def test_a_base_of_a_user_who_is_not_there_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"~nobody-of-this-name/base\.yaml does not exist"):
        read_chain(write(tmp_path, "_BASE_: ~nobody-of-this-name/base.yaml\n"))


def test_a_chain_is_read_from_its_last_base_on(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path, "A: 1\n", "below/first.yaml")
    write(tmp_path, "_BASE_: below/first.yaml\nA: 2\n", "second.yaml")
    write(tmp_path, "_BASE_: ../second.yaml\nA: 3\n", "below/third.yaml")
    chain = read_chain(tmp_path / "below/third.yaml")
    assert [document.content for document in chain] == [{"A": 1}, {"A": 2}, {"A": 3}]
    assert [document.path.name for document in chain] == ["first.yaml", "second.yaml", "third.yaml"]


@pytest.mark.parametrize("name", ["a.yaml", "./a.yaml", "link.yaml"])
def test_a_chain_that_leads_back_is_refused(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, f"_BASE_: {name}\n")
    (tmp_path / "link.yaml").symlink_to(file)
    with pytest.raises(InputError, match=r"a\.yaml: _BASE_ leads back to .*; remove the circle"):
        read_chain(file)


@pytest.mark.parametrize("date", ["2026-01-02", "2026-99-99", "2026-01-02T03:04:05Z"])
def test_a_date_is_text(tmp_path: Path, date: str) -> None:
    assert read_yaml(write(tmp_path, f"x: {date}\n{date}: y\n")).content == {"x": date, date: "y"}


def test_an_empty_mapping_is_a_value() -> None:
    assert flatten({"a": {"b": {}, "c": {"d": 1}}, 2: None}) == {"a.b": {}, "a.c.d": 1, "2": None}


def test_a_file_that_is_too_large_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("w") as stream:
        stream.truncate(2**40)
    with pytest.raises(InputError, match=r"large\.yaml cannot be read: it has more than 10 MB"):
        read_yaml(path)
