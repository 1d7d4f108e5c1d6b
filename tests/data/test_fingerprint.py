"""A data set's digits do not depend on how its files' names are written, nor on where the data root is."""

from pathlib import Path

import pytest

from hicl_d2.d2.data import DatasetCatalog
from hicl_d2.data.fingerprint import fingerprint

NAME = "a_data_set_for_its_fingerprint"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("first", "second/deeper"):
        (tmp_path / folder / "images").mkdir(parents=True)
        (tmp_path / folder / "images" / "a.png").write_bytes(b"abc")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "first"))
    return tmp_path


def _digits(name: str) -> str:
    DatasetCatalog.register(NAME, lambda: [{"file_name": name}])
    try:
        return fingerprint(NAME)
    finally:
        DatasetCatalog.remove(NAME)


@pytest.mark.parametrize(
    "way", ["{}/images/a.png", "{}//images/a.png", "{}/./images//a.png", "{}/images/a.png/"]
)
def test_a_name_counts_from_the_root_however_it_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    expected = _digits(f"{root}/first/images/a.png")
    assert _digits(way.format(root / "first")) == expected
    monkeypatch.setenv("DETECTRON2_DATASETS", f"{root}/second/deeper/")
    assert _digits(way.format(root / "second" / "deeper")) == expected


def test_a_relative_name_counts_as_it_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "first")
    inside = _digits("images/a.png")
    assert inside == _digits("./images/a.png") == _digits(f"{root}/first/images/a.png")
    monkeypatch.chdir(root)
    (root / "images").mkdir()
    (root / "images" / "a.png").write_bytes(b"abc")
    assert _digits("images/a.png") == inside
    (root / "images" / "a.png").write_bytes(b"abcd")
    assert _digits("images/a.png") != inside
    (root / "images" / "a.png").unlink()
    assert _digits("images/a.png") != inside
