"""What makes a run the run that it is, and checksums that are not computed twice."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from hicl_d2.command import checksums
from hicl_d2.command.errors import InputError
from hicl_d2.command.identity import Identity, config_digest, identity_of, weights_content


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HICL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _aged(path: Path, content: bytes) -> Path:
    """Write a file that was changed a while ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - 100, time.time() - 100))
    return path


@pytest.mark.parametrize("other", [{"A.B": 2}, {"A.B": 1, "C": 0}, {}, {"A.C": 1}])
def test_every_key_and_value_counts(other: dict[str, int]) -> None:
    assert config_digest({"A.B": 1}) != config_digest(other)


def test_spellings_and_order_and_places_do_not_count() -> None:
    one = {"A": (1, 2.0), "B": "1e-4", "C": "(1, 'x')", "D": {}, "OUTPUT_DIR": "a", "MODEL.DEVICE": "cpu"}
    two = {"C": [1, "x"], "B": 0.0001, "A": [1, 2], "OUTPUT_DIR": "b", "DATALOADER.NUM_WORKERS": 3}
    assert config_digest(one) == config_digest(two)


def test_each_part_counts() -> None:
    base = Identity("c", 1, "w", "d", {"m": "1"})
    others = [
        Identity("x", 1, "w", "d", {"m": "1"}),
        Identity("c", 2, "w", "d", {"m": "1"}),
        Identity("c", 1, "x", "d", {"m": "1"}),
        Identity("c", 1, "w", "x", {"m": "1"}),
        Identity("c", 1, "w", "d", {"m": "2"}),
        Identity("c", 1, "w", "d", {}),
        Identity("c", 1, "d", "w", {"m": "1"}),
    ]
    assert len({each.digest for each in [base, *others]}) == len(others) + 1
    assert Identity("c", 1, "w", "d", {"m": "1"}).digest == base.digest
    assert len(base.digest) == 12


def test_weights_are_known_by_their_content(tmp_path: Path) -> None:
    first, second = _aged(tmp_path / "a/w.pth", b"1"), _aged(tmp_path / "b/w.pth", b"2")
    assert weights_content(str(first)) == f"sha256:{hashlib.sha256(b'1').hexdigest()[:32]}"
    assert weights_content(str(first)) != weights_content(str(second))
    assert weights_content(f"{first}?matching_heuristics=True") not in (
        weights_content(str(first)),
        weights_content(str(second)),
    )
    assert weights_content("https://x/w.pth#sha256=12345678") == "https://x/w.pth#sha256=12345678"
    assert weights_content("") == ""
    assert weights_content("a/gone.pth") != weights_content("b/gone.pth")


def test_a_folder_of_weights_is_known_by_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    _aged(folder / "config.json", b"{}")
    weights = _aged(folder / "deep" / "model.bin", b"1")
    before = weights_content(str(folder))
    _aged(weights, b"2")
    changed = weights_content(str(folder))
    weights.rename(folder / "deep" / "other.bin")
    assert len({before, changed, weights_content(str(folder))}) == 3


def test_a_checksum_is_computed_once_for_a_file_that_stays(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _aged(tmp_path / "w.pth", b"1" * 3_000_000)
    first = checksums.content_checksum(file)
    assert first == hashlib.sha256(b"1" * 3_000_000).hexdigest()

    def fails(*_: object) -> None:
        raise AssertionError("hashed again")

    with monkeypatch.context() as patch:
        patch.setattr(checksums.hashlib, "sha256", fails)
        assert checksums.content_checksum(file) == first
    about = file.stat()
    file.write_bytes(b"2" * 3_000_000)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))  # size and time are those of before
    assert checksums.content_checksum(file) == hashlib.sha256(b"2" * 3_000_000).hexdigest()


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"1")
    checksums.content_checksum(file)
    assert not (cache / "checksums.json").exists()


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 3}', "[" * 100_000, "\0"])
def test_a_damaged_cache_costs_time_alone(tmp_path: Path, cache: Path, content: str) -> None:
    cache.mkdir()
    (cache / "checksums.json").write_text(content)
    file = _aged(tmp_path / "w.pth", b"1")
    assert checksums.content_checksum(file) == hashlib.sha256(b"1").hexdigest()
    assert list(json.loads((cache / "checksums.json").read_text()).values()) == [
        hashlib.sha256(b"1").hexdigest()
    ]


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("HICL_CACHE", str(blocker / "below"))
    file = _aged(tmp_path / "w.pth", b"1")
    assert checksums.content_checksum(file) == hashlib.sha256(b"1").hexdigest()


def test_a_user_without_a_home_folder_keeps_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HICL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # as where neither HOME nor the user is known
    monkeypatch.chdir(tmp_path)
    file = _aged(tmp_path / "a.pth", b"1")
    assert checksums.content_checksum(file) == hashlib.sha256(b"1").hexdigest()
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_pipe_is_no_weights_file_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pth")
    assert checksums.content_checksum(tmp_path / "w.pth") is None


def test_a_module_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match="IMPORTS names no_such_module"):
        identity_of({"IMPORTS": ["no_such_module"]})
