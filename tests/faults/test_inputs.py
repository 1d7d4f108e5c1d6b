"""Bad input to every command-line tool: one line on standard error, exit code 2, nothing half-written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.engine.forks import Forks
from tests.engine.test_bad_input import CONFIGS, OVERRIDES
from tests.faults.conftest import Runs

Report = Callable[[str, int, str], None]
pytestmark = pytest.mark.slow

# What is done to a file of the data set, a file and how.
DATA: dict[str, tuple[str, Callable[[Path], object]]] = {
    "image that is cut off": ("images/train/0.png", lambda file: file.write_bytes(file.read_bytes()[:200])),
    "image that is empty": ("images/train/0.png", lambda file: file.write_bytes(b"")),
    "image that is text": ("images/train/0.png", lambda file: file.write_text("no image")),
    "image that is a folder": ("images/train/0.png", lambda file: (file.unlink(), file.mkdir())),
    "image with a billion pixels": ("images/train/0.png", lambda file: file.write_bytes(_huge())),
    "label map that is cut off": ("annotations/train/0.png", lambda f: f.write_bytes(f.read_bytes()[:90])),
    "label map in colours": ("annotations/train/0.png", lambda f: Image.new("RGB", (24, 20)).save(f)),
    "label map of another size": ("annotations/train/0.png", lambda f: Image.new("L", (20, 24)).save(f)),
    "label that is no class": ("annotations/train/0.png", lambda f: Image.new("L", (24, 20), 99).save(f)),
    "label map with a billion pixels": ("annotations/train/0.png", lambda f: f.write_bytes(_huge())),
    "image without a label map": ("annotations/train/3.png", Path.unlink),
    "label map without an image": ("images/val/1.png", Path.unlink),
    "no images": ("images/train", lambda folder: (shutil.rmtree(folder), folder.mkdir())),
    "no folder": ("annotations/val", shutil.rmtree),
}

WEIGHTS: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no weights"),
    "half a zip archive": lambda file: file.write_bytes(b"PK\x03\x04" + bytes(50)),
    "a pickle that runs code": lambda file: file.write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR."),
    "a torch file with a class": lambda file: torch.save({"model": {"w": Path("x")}}, file),
    "a list": lambda file: torch.save([1, 2], file),
    "numbers for tensors": lambda file: torch.save({"model": {"w": 1.0}}, file),
    "another model": lambda file: torch.save({"model": {"w": torch.ones(3)}}, file),
}

MATRICES = {
    "not YAML": "a: [1",
    "a list": "- 1\n",
    "code": "name: !!python/object/apply:os.system ['true']\n",
    "an unknown key": "nmae: x\n",
    "empty": "",
    "bytes": "\x00\x01",
}


def _huge() -> bytes:
    """Return a PNG that claims 40,000 x 40,000 pixels in a few bytes."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(9)))
        + chunk(b"IEND", b"")
    )


def _check(code: int, err: str, folder: Path, what: str) -> None:
    assert code == 2, (what, code, err)
    assert len(err.splitlines()) == 1, (what, err)
    assert "Traceback" not in err
    assert not folder.exists() or not any(folder.iterdir()), (what, list(folder.iterdir()))
    assert not Path("ran").exists()


def test_train_net(
    runs: Runs, own_data_root: Path, tools: Forks, config: Path, tmp_path: Path, report: Report
) -> None:
    folder, kinds = tmp_path / "run", 0

    def run(what: str, *words: str, file: Path = config, root: Path = own_data_root) -> str:
        nonlocal kinds
        kinds += 1
        ended = tools.run(
            *("--config-file", str(file), "OUTPUT_DIR", str(folder), *words), DETECTRON2_DATASETS=str(root)
        )
        _check(ended.code, ended.err, folder, what)
        return ended.err

    for what, (text, _) in CONFIGS.items():
        bad = tmp_path / "bad.yaml"
        bad.write_text(text)
        assert "bad.yaml" in run(what, file=bad) or what == "base that is missing"
    for what, (words, _) in OVERRIDES.items():
        run(what, *words)
    for what, make in WEIGHTS.items():
        weights = tmp_path / ("w.pkl" if what.startswith("a pickle") else "w.pth")
        make(weights)
        assert str(weights) in run(what, "MODEL.WEIGHTS", str(weights))
    for number, (what, (place, spoil)) in enumerate(DATA.items()):
        root = tmp_path / f"root{number}"
        shutil.copytree(own_data_root, root)
        spoil(root / "tiny" / place)
        assert "tiny" in run(what, root=root)
    run("no data root", root=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    run("output below a file", "OUTPUT_DIR", str(tmp_path / "file/below"))
    report("kinds of bad input to train_net.py", kinds, "each one line, exit code 2, nothing written")
    assert kinds >= 40


def test_run_matrix(tools: Forks, tmp_path: Path, report: Report) -> None:
    folder, kinds = tmp_path / "output", 0
    good = Path(__file__).resolve().parents[2] / "benchmark/matrices/smoke.yaml"

    def run(what: str, *words: str) -> None:
        nonlocal kinds
        kinds += 1
        ended = tools.run(*words, tool="run_matrix")
        _check(ended.code, ended.err, folder, what)

    for what, text in MATRICES.items():
        (tmp_path / "bad.yaml").write_text(text)
        run(what, "--matrix", str(tmp_path / "bad.yaml"), "--output", str(folder))
    run("missing", "--matrix", str(tmp_path / "absent.yaml"), "--output", str(folder))
    run("a folder", "--matrix", str(tmp_path), "--output", str(folder))
    run("no output", "--matrix", str(good))
    run("no matrix", "--output", str(folder))
    run("an unknown option", "--matrix", str(good), "--output", str(folder), "--outptu", "x")
    run("an unknown verb", "rum", "--matrix", str(good), "--output", str(folder))
    (tmp_path / "file").write_text("")
    run("output that is a file", "--matrix", str(good), "--output", str(tmp_path / "file"))
    run("output below a file", "--matrix", str(good), "--output", str(tmp_path / "file/below"))
    run("no train script", "--matrix", str(good), "--output", str(folder), "--train-script", "absent.py")
    report("kinds of bad input to run_matrix.py", kinds, "each one line, exit code 2, nothing written")
