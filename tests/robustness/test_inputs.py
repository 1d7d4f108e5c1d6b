"""Bad input to every command-line tool: one line on standard error, exit code 2, nothing half-written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import hicl_d2.modeling.models  # noqa: F401 - registers HiCL
from hicl_d2.config import load_config
from hicl_d2.d2.modeling import build_model
from tests.robustness.conftest import Runs
from tests.support.forks import Forks
from tests.tools.test_bad_input import CONFIGS, OVERRIDES

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

# What predict.py, inspect_components.py and check_dataset.py are told: words for their command lines.
ANY_TOOL = {
    "an unknown option": ["--outptu", "x"],
    "no config": ["--config-file", "absent.yaml"],
    "a folder for a config": ["--config-file", "."],
    "output that is a file": ["--output", "FILE"],
    "output below a file": ["--output", "FILE/below"],
}
# The same for those that load a model.
MODEL_TOOLS = {
    "an unknown key": ["--opts", "MODEL.DEVISE", "cpu"],
    "a key without a value": ["--opts", "MODEL.DEVICE"],
    "a wrong type": ["--opts", "INPUT.MIN_SIZE_TEST", "small"],
    "an unknown device": ["--opts", "MODEL.DEVICE", "gpu"],
    "an unknown model": ["--opts", "MODEL.META_ARCHITECTURE", "TinySegmenter"],
    "an unknown layout": ["--opts", "INPUT.FORMAT", "RBG"],
    "another number of classes": ["--opts", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"],
    "no weights": ["--weights", "absent.pth"],
    "weights over http": ["--weights", "http://a.example/w.pth"],
    "weights without a checksum": ["--weights", "https://a.example/w.pth"],
}
OWN = {
    "predict": {
        "no such input": ["--input", "absent"],
        "input without images": ["--input", "EMPTY"],
        "a pattern that fits nothing": ["--input", "EMPTY/*.png"],
        "two images of one name": ["--input", "DATA/images/train/0.png", "DATA/images/val/0.png"],
        "a strength that is no number": ["--strength", "strong"],
        "a strength above 1": ["--strength", "2"],
        "a negative number of workers": ["--opts", "DATALOADER.NUM_WORKERS", "-1"],
    },
    "inspect_components": {
        "an unknown data set": ["--dataset", "tiny_vla"],
        "an unknown image": ["--image", "absent"],
        "no image": ["--count", "0"],
        "half an image": ["--count", "0.5"],
        "no branch": ["--opts", "MODEL.META_ARCHITECTURE", "TinySegmentor"],
        "an unknown contrast": ["--opts", "MODEL.HICL.CONTRAST", "hickle"],
        "an unknown feature": ["--opts", "MODEL.HICL.FEATURE", "sem_seg_head.predictr"],
        "windows of no cells": ["--opts", "MODEL.HICL.WINDOWS", "[0]"],
    },
    "check_dataset": {
        "an unknown data set": ["--dataset", "tiny_vla"],
        "windows of no cells": ["--windows", "0"],
        "a stride of no pixels": ["--stride", "0"],
        "a negative number of workers": ["--workers", "-1"],
        "half a picture": ["--pictures", "0.5"],
        "an unknown key": ["MODEL.DEVISE", "cpu"],
        "a key without a value": ["MODEL.DEVICE"],
    },
}
PREPARE = {
    "an unknown data set": ["pascal"],
    "no data set": [],
    "no root": ["ade20k", "--root", "absent"],
    "a root that is a file": ["ade20k", "--root", "FILE"],
    "a root without the download": ["ade20k", "--root", "EMPTY"],
    "Cityscapes that are not there": ["cityscapes", "--root", "EMPTY"],
    "COCO-Stuff that is not there": ["coco_stuff_10k", "--root", "EMPTY"],
    "a negative number of workers": ["ade20k", "--root", "EMPTY", "--workers", "-1"],
    "an unknown option": ["ade20k", "--root", "EMPTY", "--fast"],
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


def _fill(words: list[str], tmp_path: Path, data: Path) -> list[str]:
    """Return ``words`` with the places filled in that they name."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir(exist_ok=True)
    places = {"FILE": tmp_path / "file", "EMPTY": tmp_path / "empty", "DATA": data / "tiny"}
    filled = []
    for word in words:
        name, *below = word.split("/", 1)
        filled.append(str(places[name].joinpath(*below)) if name in places else word)
    return filled


@pytest.mark.parametrize("tool", OWN)
def test_other_tools(
    tool: str, tools: Forks, config: Path, own_data_root: Path, tmp_path: Path, report: Report
) -> None:
    with_branch = config.read_text().replace("META_ARCHITECTURE: TinySegmentor", "META_ARCHITECTURE: HiCL")
    config.write_text(with_branch)
    good, folder, kinds = tmp_path / "good.pth", tmp_path / "out", 0
    torch.save({"model": build_model(load_config(config)).state_dict()}, good)

    def run(what: str, *words: str, file: Path = config, weights: Path = good) -> str:
        nonlocal kinds
        kinds += 1
        whole = ["--config-file", str(file), "--output", str(folder)]
        if tool != "check_dataset":
            whole += ["--weights", str(weights)]
        if tool == "predict":
            whole += ["--input", str(own_data_root / "tiny/images/val")]
        words = tuple(_fill(list(words), tmp_path, own_data_root))
        ended = tools.run(*whole, *words, tool=tool, DETECTRON2_DATASETS=str(own_data_root))
        _check(ended.code, ended.err, folder, f"{tool}: {what}")
        return ended.err

    for what, (text, _) in CONFIGS.items():
        bad = tmp_path / "bad.yaml"
        bad.write_text(text)
        assert "bad.yaml" in run(what, file=bad) or what == "base that is missing"
    with_model = tool != "check_dataset"
    for what, words in {**ANY_TOOL, **(MODEL_TOOLS if with_model else {}), **OWN[tool]}.items():
        run(what, *words)
    for what, make in WEIGHTS.items() if with_model else ():
        weights = tmp_path / ("w.pkl" if what.startswith("a pickle") else "w.pth")
        make(weights)
        assert str(weights) in run(what, weights=weights)
    report(f"kinds of bad input to {tool}.py", kinds, "each one line, exit code 2, nothing written")


def test_prepare(tools: Forks, data_root: Path, tmp_path: Path, report: Report) -> None:
    for what, words in PREPARE.items():
        ended = tools.run(*_fill(words, tmp_path, data_root), tool="prepare")
        _check(ended.code, ended.err, tmp_path / "empty", what)
    report(
        "kinds of bad input to hicl_d2.data.prepare",
        len(PREPARE),
        "each one line, exit code 2, nothing written",
    )


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
    run("output without a name", "--matrix", str(good), "--output")
    run("matrix without a name", "--output", str(folder), "--matrix")
    run("an unknown option", "--matrix", str(good), "--output", str(folder), "--outptu", "x")
    run("an unknown verb", "rum", "--matrix", str(good), "--output", str(folder))
    (tmp_path / "file").write_text("")
    run("output that is a file", "--matrix", str(good), "--output", str(tmp_path / "file"))
    run("output below a file", "--matrix", str(good), "--output", str(tmp_path / "file/below"))
    run(
        "no train script",
        "run",
        "--matrix",
        str(good),
        "--output",
        str(folder),
        "--train-script",
        "absent.py",
    )
    report("kinds of bad input to run_matrix.py", kinds, "each one line, exit code 2, nothing written")
