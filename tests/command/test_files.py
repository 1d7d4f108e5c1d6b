"""Files are whole or as they were."""

from pathlib import Path

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.command.files import atomic_open, read_json, write_json


def test_a_reader_sees_the_old_content_until_all_of_the_new_is_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with atomic_open(file) as stream:
        stream.write("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def _write_half(file: Path) -> None:
    with atomic_open(file, "wb") as stream:
        stream.write(b"half")
        raise KeyboardInterrupt


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _write_half(file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, None]})
    assert read_json(tmp_path / "a.json") == {"x": [1, None]}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff"])
def test_damaged_json_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
