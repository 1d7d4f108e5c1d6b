"""Files are whole or as they were, whatever is in their place, and locks touch nothing."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.command.files import (
    UNFINISHED,
    atomic_open,
    atomic_path,
    check_writable,
    expanded,
    occupied,
    open_lock,
    read_json,
    remove_unfinished,
    unfinished,
    write_json,
    write_text,
)


def test_a_reader_sees_the_old_content_until_all_of_the_new_is_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with atomic_open(file) as stream:
        stream.write("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("write", [atomic_open, atomic_path])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path, write) -> None:
    file = tmp_path / "file.png"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), write(file):
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_text_is_utf8_with_its_newlines_and_bytes_are_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "ä\r\nb\n")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa4\r\nb\n"
    with atomic_open(tmp_path / "bytes", "wb") as stream:
        stream.write(b"\x00\r\n")
    assert (tmp_path / "bytes").read_bytes() == b"\x00\r\n"


@pytest.mark.parametrize(("suffix", "form"), [(".png", "PNG"), (".jpg", "JPEG")])
def test_a_library_that_goes_by_the_suffix_gets_a_path_with_it(
    tmp_path: Path, suffix: str, form: str
) -> None:
    with atomic_path(tmp_path / f"picture{suffix}") as temporary:
        Image.new("RGB", (2, 3)).save(temporary)
        assert not (tmp_path / f"picture{suffix}").exists()
    assert [path.name for path in tmp_path.iterdir()] == [f"picture{suffix}"]
    with Image.open(tmp_path / f"picture{suffix}") as picture:
        assert (picture.format, picture.size) == (form, (2, 3))


def test_a_file_is_made_as_open_makes_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "ours", "")
        (tmp_path / "pythons").write_text("")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "pythons")]
    assert modes == [0o640, 0o640]


@pytest.mark.parametrize("target", ["there", "not there"])
def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path, target: str) -> None:
    (tmp_path / "there").write_text("somebody's")
    (tmp_path / "link").symlink_to(tmp_path / target)
    write_text(tmp_path / "link", "ours")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "ours"
    assert (tmp_path / "there").read_text() == "somebody's"
    assert not (tmp_path / "not there").exists()


def test_a_name_as_long_as_file_systems_take_can_be_written(tmp_path: Path) -> None:
    name = "ä" * 125 + ".json"  # 255 bytes
    write_text(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("no/file", errno.ENOENT),
        ("folder", errno.EISDIR),
        ("file/below", errno.ENOTDIR),
        ("ä" * 128, errno.ENAMETOOLONG),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path: Path, place: str, number: int) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the number is looked at
        write_text(tmp_path / place, "x")
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path / place))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from hicl_d2.command.files import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_text(sys.argv[1], 'x' * 100_000)\n"
        "except OSError as error:\n"
        "    print(error.filename)\n"
    )
    place = str(tmp_path / "file")
    done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == place
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from hicl_d2.command.files import atomic_open, atomic_path\n"
        "with atomic_open(sys.argv[1] + '/a.json'), atomic_path(sys.argv[1] + '/b\\n.png'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    left = list(tmp_path.iterdir())
    assert len(left) == 2
    assert sorted(left) == unfinished(tmp_path)
    foreign = (".x.1.tmp", ".hicl_d2-x.tmp", f".hicl_d2-{16 * 'g'}-x.tmp", f".hicl_d2-{16 * 'a'}-x", "a.tmp")
    for name in foreign:
        (tmp_path / name).write_text("")
    of_link, of_folder = (tmp_path / f".hicl_d2-{16 * letter}-x.tmp" for letter in "ab")
    of_link.symlink_to(tmp_path / "a.tmp")
    of_folder.mkdir()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*foreign, of_link.name, of_folder.name}
    assert unfinished(tmp_path / "absent") == unfinished(tmp_path / "a.tmp") == []


def test_a_temporary_name_is_never_taken_for_a_result(tmp_path: Path) -> None:
    with atomic_open(tmp_path / "0.json"):
        (temporary,) = tmp_path.iterdir()
        assert UNFINISHED.fullmatch(temporary.name)
        assert not list(tmp_path.glob("*.json"))


def test_one_process_has_a_folder_and_the_lock_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from hicl_d2.command.files import occupied\n"
        "with occupied(sys.argv[1], 'busy'):\n"
        "    print('in', flush=True)\n"
        "    time.sleep(100)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    with pytest.raises(InputError, match="somebody is there"), occupied(tmp_path, "somebody is there"):
        pass
    holder.kill()
    holder.communicate()
    with occupied(tmp_path, "busy"):
        pass


def test_a_lock_file_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("a note")
    with occupied(tmp_path, "busy"):
        pass
    assert (tmp_path / ".lock").read_text() == "a note"


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    (path.parent / "precious").write_text("content")
    path.symlink_to(path.parent / "precious")


@pytest.mark.parametrize("make", [_link, _pipe, Path.mkdir])
def test_a_lock_that_is_no_regular_file_is_refused_and_stays(tmp_path: Path, make) -> None:
    make(tmp_path / ".lock")
    with pytest.raises(InputError, match=r"\.lock must be a regular file"):
        open_lock(tmp_path / ".lock")
    if make is _link:
        assert (tmp_path / "precious").read_text() == "content"


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, None]})
    assert read_json(tmp_path / "a.json") == {"x": [1, None]}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff", "[" * 100_000])
def test_damaged_json_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_home_folders_are_written_out_and_those_of_nobody_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/a") == Path("/somewhere/a")
    assert expanded(Path("a/~/b")) == Path("a/~/b")
    assert expanded("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")


@pytest.mark.skipif(
    not os.access("/proc", os.W_OK), reason="only root may write there, as far as permissions go"
)
def test_a_folder_that_takes_nothing_whatever_its_permissions_say_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"OUTPUT_DIR /proc/x: nothing can be made in /proc \(.*\); choose another"
    ):
        check_writable("/proc/x", "OUTPUT_DIR")


def test_looking_whether_a_folder_can_be_written_in_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "there/new/er"):
        check_writable(tmp_path / name, "OUTPUT_DIR")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
