"""What is fetched, what counts as whole, and that nothing in the project runs a shell."""

import ast
import hashlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hicl_d2.command.address import DOWNLOAD, check_address, checksum, place_of
from hicl_d2.command.errors import InputError
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.weights import (
    DamagedError,
    check_content,
    check_whole,
    read_torch,
)

ROOT = Path(__file__).resolve().parent.parent
DIGITS = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "path", ["", "a.pth", "/a/b.pkl?matching_heuristics=True", "detectron2://DeepLab/R-103.pkl"]
)
def test_files_and_the_zoo_are_taken(path: str) -> None:
    check_address(path)
    assert checksum(path) is None


@pytest.mark.parametrize("scheme", ["http", "ftp", "file", "s3", "gs"])
def test_other_ways_than_https_are_refused_even_with_a_checksum(scheme: str) -> None:
    with pytest.raises(InputError, match=f"only https is fetched, not {scheme}"):
        check_address(f"{scheme}://a.example/w.pth#sha256={DIGITS}")


def test_https_needs_a_checksum_or_the_users_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DOWNLOAD, raising=False)
    check_address(f"https://a.example/w.pth#sha256={DIGITS.upper()}")
    assert checksum(f"https://a.example/w.pth#sha256={DIGITS.upper()}") == DIGITS
    with pytest.raises(InputError, match="have no checksum; add #sha256="):
        check_address("https://a.example/w.pth")
    monkeypatch.setenv(DOWNLOAD, "1")
    check_address("https://a.example/w.pth")


def test_a_file_of_a_package_is_never_removed(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"another version")
    with pytest.raises(InputError, match="install its package anew"):
        check_content(file, "0" * 64, "package://w", is_fetched=False)
    assert file.read_bytes() == b"another version"


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_what_is_fetched_has_the_checksum_that_was_named(algorithm: str, tmp_path: Path) -> None:
    file, digits = tmp_path / "w", hashlib.new(algorithm, b"abc").hexdigest()
    ends = [digits, digits.upper(), *([digits[:8], digits[:20]] if algorithm == "sha256" else [])]
    for end in ends:
        file.write_bytes(b"abc")
        address = f"https://a.example/w.pth?matching_heuristics=True#{algorithm}={end}"
        check_address(address)
        expected = checksum(address)
        assert expected == end.lower()
        check_content(file, expected, address)
        assert file.exists()
        file.write_bytes(b"abd")
        with pytest.raises(
            InputError, match=rf"has the {algorithm.upper().replace('SHA', 'SHA-')} [0-9a-f]+; it was"
        ):
            check_content(file, expected, address)
        assert not file.exists()


def test_without_a_connection_the_file_and_its_folder_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))

    def unreachable(path: str, **options: object) -> str:
        raise OSError("name or service not known")

    for address, place in (
        (f"https://a.example/b/w.pth?matching_heuristics=True#sha256={DIGITS}", "b"),
        ("detectron2://DeepLab/w.pth", "detectron2/DeepLab"),
    ):
        checkpoints = Checkpoints(nn.Linear(2, 2))
        monkeypatch.setattr(type(checkpoints.path_manager), "__getattr__", lambda self, name: unreachable)
        with pytest.raises(InputError, match="name or service not known") as caught:
            checkpoints.load_weights(address, whole=True)
        assert str(caught.value).endswith(f"fetch w.pth elsewhere and put it into {tmp_path / place}")


def test_a_file_that_was_put_there_by_hand_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    model, source = nn.Linear(2, 2), nn.Linear(2, 2)
    for address in ("https://a.example/b/c/w.pth", "detectron2://DeepLab/w.pth"):
        file = place_of(address)
        file.parent.mkdir(parents=True)
        torch.save({"model": source.state_dict()}, file)
        right = hashlib.sha256(file.read_bytes()).hexdigest()
        nn.init.zeros_(model.weight)
        Checkpoints(model).load_weights(
            address + (f"#sha256={right}" if "https" in address else ""), whole=True
        )
        assert torch.equal(model.weight, source.weight)


CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))


def test_the_configs_name_the_checksums_that_are_published() -> None:
    """Those of torchvision's files stand in their names; Swin-T's is in OpenVINO's model zoo."""
    addresses = {
        line.partition("WEIGHTS:")[2].strip().strip('"')
        for file in CONFIGS
        for line in file.read_text().splitlines()
        if "https://" in line and "WEIGHTS:" in line
    }
    with_one = set()
    for address in addresses:
        name, digits = address.rsplit("/", 1)[1].partition("?")[0], checksum(address)
        published = re.search(r"-([0-9a-f]{8})\.pth", name)
        if published:
            assert digits == published[1]
        if digits is not None:
            with_one.add(name.partition("#")[0])
    assert with_one == {"resnet101-63fe2227.pth", "swin_tiny_patch4_window7_224.pth"}


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_s_numbers_and_arrays_are_read_in_torch_s_files(zipped: bool, tmp_path: Path) -> None:
    codes = [code for code in np.typecodes["All"] if code not in "OVMm"]
    content = {
        "numbers": [np.ones(1, code)[0] for code in codes],
        "arrays": [np.ones((2, 3), code) for code in codes],
        "other order": np.arange(3, dtype=">i4"),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 2)),
        "time": np.datetime64("2020-01-02"),
        "fields": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        "objects": np.array(["a", None], dtype=object),
        "rest": [b"", b"x", {1}, frozenset({2}), 3j, np.float64(0.5)],
    }
    file = tmp_path / "w.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    read = read_torch(str(file))
    assert read["rest"] == content["rest"]
    for name in ("numbers", "arrays"):
        for found, wanted in zip(read[name], content[name], strict=True):
            assert isinstance(found, np.generic if name == "numbers" else np.ndarray)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
    for name in ("other order", "columns", "empty", "time", "fields", "objects"):
        np.testing.assert_array_equal(read[name], content[name])


class _Calls:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


@pytest.mark.parametrize(
    ("evil", "asked"),
    [
        (_Calls(os.system, "touch ran"), r"posix\.system"),
        (_Calls(eval, "open('ran', 'w')"), r"eval"),
        (_Calls(open, "ran", "w"), r"open"),
        (_Calls(np.load, "ran"), r"numpy\.load"),
        (_Calls(np.fromfile, "ran"), r"fromfile"),
        (_Calls(subprocess.Popen, ["touch", "ran"]), r"(subprocess|commands)\.Popen"),
        (np.array([_Calls(open, "ran", "w")], dtype=object), r"open"),
    ],
)
def test_a_torch_file_beside_numpy_s_still_runs_nothing(
    evil: Any, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": torch.ones(1)}, "a": np.float64(1), "b": evil}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=asked) as caught:
        read_torch(str(tmp_path / "w.pth"))
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "end",
    ["#sha256=12", "#sha384=" + "0" * 95, "#sha256=" + "0" * 65, "#md5=" + "0" * 32, "#sha256=" + "g" * 64],
)
def test_a_checksum_that_is_none_is_refused(end: str) -> None:
    with pytest.raises(InputError, match="must be sha256= and 64 hexadecimal digits"):
        check_address(f"https://a.example/w.pth{end}")


def test_a_damaged_file_is_named_with_what_is_wrong_and_without_advice_to_trust_it(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"PK")
    with pytest.raises(DamagedError, match="Unsupported operand 80") as error:
        read_torch(str(file))
    assert "weights_only" not in str(error.value)


def test_what_is_fetched_must_be_what_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = nn.Linear(2, 2), nn.Linear(2, 2)
    file = tmp_path / "w.pth"
    torch.save({"model": source.state_dict()}, file)
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    checkpoints = Checkpoints(model)
    asked: list[str] = []

    def local(path: str, **options: object) -> str:
        asked.append(path)
        return str(file) if "://" in path else path

    monkeypatch.setattr(type(checkpoints.path_manager), "__getattr__", lambda self, name: local)
    checkpoints.load_weights(f"https://a.example/w.pth#sha256={right}", whole=True)
    assert asked[0] == "https://a.example/w.pth"
    assert torch.equal(model.weight, source.weight)
    with pytest.raises(InputError, match=f"has the SHA-256 {right}; it was removed again"):
        checkpoints.load_weights(f"https://a.example/w.pth#sha256={DIGITS}", whole=True)
    assert not file.exists()


def test_content_is_compared_by_its_checksum(tmp_path: Path) -> None:
    file = tmp_path / "w"
    file.write_bytes(b"abc")
    check_content(file, hashlib.sha256(b"abc").hexdigest(), "https://a.example/w")
    assert file.exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_an_archive_that_is_cut_off_is_damaged(share: float, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"model": nn.Linear(3, 2).state_dict()}, file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(DamagedError):
        check_whole(file)


def test_other_formats_are_left_to_their_readers(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"model": nn.Linear(3, 2).state_dict()}, file, _use_new_zipfile_serialization=False)
    check_whole(file)


UNSAFE = {
    *("eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "shelve.open", "np.load"),
}


def _calls(file: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]


# Records that a loader has packed itself and keeps in memory, never a file.
OWN = "hicl_d2/data/packed.py"
SOURCES = sorted(
    file
    for room in ("hicl_d2", "benchmark", "projects")
    for file in (ROOT / room).rglob("*.py")
    if file.is_file()
)


def test_no_shell_and_no_reader_that_runs_code() -> None:
    assert len(SOURCES) > 100
    for file in SOURCES:
        for call in _calls(file):
            place = f"{file.relative_to(ROOT)}:{call.lineno}"
            is_own = place.startswith(OWN) and ast.unparse(call.func) == "pickle.loads"
            assert is_own or ast.unparse(call.func) not in UNSAFE, place
            options = {option.arg: option.value for option in call.keywords}
            assert "shell" not in options, place
            if ast.unparse(call.func) == "torch.load":
                assert ast.unparse(options["weights_only"]) == "True", place


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    """Every bit of a small file, the archive's own tables among them: named, or without effect."""
    file = tmp_path / "model.pth"
    weight, bias = torch.arange(6.0).reshape(3, 2), torch.linspace(-1, 1, 8)
    torch.save({"weight": weight, "bias": bias, "iteration": 29}, file)
    content = file.read_bytes()
    named = 0
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            check_whole(file)
            found = read_torch(str(file))
        except InputError:
            named += 1
            continue
        assert found.keys() == {"weight", "bias", "iteration"}, bit
        assert found["iteration"] == 29, bit
        assert torch.equal(found["weight"], weight), bit
        assert torch.equal(found["bias"], bias), bit
    assert named > 8 * (weight.nbytes + bias.nbytes)
