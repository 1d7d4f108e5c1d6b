"""Configs and matrices are found by name from any folder, a file of the user's own first."""

import contextlib
from pathlib import Path

import pytest

from hicl_d2.command import shipped
from hicl_d2.command.errors import InputError
from hicl_d2.command.safe_yaml import flatten, read_chain
from hicl_d2.command.shipped import CONFIG, MATRIX, find, locate, names

ROOT = Path(__file__).resolve().parents[2]
NAME = "camvid/deeplab_v3_plus_R_18_cpu.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "written", [NAME, f"configs/{NAME}", f"./configs/{NAME}", NAME.removesuffix(".yaml")]
)
def test_a_name_is_found_from_any_folder(written: str) -> None:
    assert find(written).samefile(ROOT / "configs" / NAME)


@pytest.mark.parametrize(
    "written", ["smoke", "smoke.yaml", "matrices/smoke.yaml", "benchmark/matrices/smoke.yaml"]
)
def test_a_matrix_is_found_from_any_folder(written: str) -> None:
    assert find(written, MATRIX).samefile(ROOT / "benchmark" / "matrices" / "smoke.yaml")


def test_all_names_are_those_of_the_folders() -> None:
    for kind, folder in ((CONFIG, "configs"), (MATRIX, "benchmark/matrices")):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert [(ROOT / folder / name) for name in names(kind)] == sorted(files)


def test_a_file_of_the_users_own_comes_first(elsewhere: Path) -> None:
    own = elsewhere / NAME
    own.parent.mkdir()
    own.write_text("SEED: 5\n")
    assert find(NAME).samefile(own)
    assert read_chain(NAME)[-1].content == {"SEED": 5}
    assert find(f"configs/{NAME}").samefile(ROOT / "configs" / NAME)


def test_home_is_found(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    (elsewhere / "mine.yaml").write_text("SEED: 1\n")
    assert find("~/mine.yaml") == elsewhere / "mine.yaml"


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("camvid/deeplab_v3_plus_R18_cpu.yaml", NAME),
        ("configs/camvid/deeplab_v3_plus_R18_cpu.yaml", NAME),
        ("deeplab_v3_plus_R_18_cpu_hicl.yaml", "camvid/deeplab_v3_plus_R_18_cpu_hicl.yaml"),
        ("/elsewhere/configs/parts/deeplab_v3_plus_R_18_hicl.yaml", "parts/deeplab_v3_plus_R_18_hicl.yaml"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(written: str, near: str) -> None:
    with pytest.raises(InputError) as raised:
        find(written)
    assert str(raised.value) == f"config file {written} does not exist; did you mean {near}?"


@pytest.mark.parametrize(
    "written", ["nothing-like-it", "", "x" * 5000, "a\0b", "..", "../configs/no.yaml", "ü/ß.yaml"]
)
def test_whatever_is_written_is_found_or_refused(written: str) -> None:
    with contextlib.suppress(InputError):
        assert find(written).exists()


def test_a_name_does_not_leave_the_folder_of_its_kind() -> None:
    assert locate("../benchmark/expected.yaml") is None
    assert locate("../../README.md") is None
    assert locate("smoke.yaml") is None


def test_a_base_is_looked_for_beside_its_file_and_then_among_the_projects(elsewhere: Path) -> None:
    (elsewhere / "below").mkdir()
    mine = elsewhere / "below" / "mine.yaml"
    mine.write_text(f"_BASE_: {NAME}\nSEED: 9\n")
    chain = read_chain(mine)
    assert chain[-2].path.samefile(ROOT / "configs" / NAME)
    other = elsewhere / "camvid"  # in the current folder, which bases are not looked for in
    other.mkdir()
    (elsewhere / NAME).write_text("SEED: 1\n")
    assert [each.path for each in read_chain(mine)] == [each.path for each in chain]
    beside = elsewhere / "below" / NAME
    beside.parent.mkdir()
    beside.write_text("SEED: 2\n")
    assert read_chain(mine)[0].path == beside


def test_a_base_that_is_nowhere_is_named_with_its_place(elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text("_BASE_: camvid/absent.yaml\n")
    with pytest.raises(InputError, match=r"config file camvid/absent.yaml does not exist"):
        read_chain("mine.yaml")


def test_an_installed_package_looks_inside_itself(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / "package" / "configs" / "a").mkdir(parents=True)
    (elsewhere / "package" / "configs" / "a" / "one.yaml").write_text("SEED: 3\n")
    monkeypatch.setattr(shipped, "HOME", elsewhere / "package")
    names.cache_clear()
    try:
        assert names() == ("a/one.yaml",)
        (document,) = read_chain("a/one")
        assert flatten(document.content) == {"SEED": 3}
    finally:
        monkeypatch.undo()
        names.cache_clear()
