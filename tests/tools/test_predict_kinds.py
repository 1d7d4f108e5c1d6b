"""predict.py with the images that people have: whatever one is, the others are predicted, and no input is touched."""

from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.evaluation import MultiScale
from hicl_d2.reading import read_labels
from hicl_d2.tools import predict
from tests.support import encode
from tests.test_reading import refusal

COLOURS = [(10, 20, 30), (200, 0, 90)]


class Bright(nn.Module):
    """Class 1 where the image is bright; images of 13 columns it cannot take."""

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        (record,) = inputs
        if record["image"].shape[2] == 13:
            raise RuntimeError("13 columns\nbring bad luck")
        if record["image"].shape[2] == 17:
            raise InputError("17 columns are too many")
        grey = record["image"].float().mean(dim=0)
        scores = torch.stack([255 - grey, grey])[None]
        size = record["height"], record["width"]
        return [{"sem_seg": nn.functional.interpolate(scores, size, mode="nearest")[0]}]


@pytest.fixture
def run(cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what predicts ``inputs`` into ``output``, and its lines on the console."""
    lines: list[str] = []
    monkeypatch.setattr(predict, "load_model", lambda *_: (cfg, Bright()))
    monkeypatch.setattr(predict, "class_names", lambda _: (["dark", "bright"], COLOURS))
    monkeypatch.setattr(predict.console, "show", lines.append)

    def run(output: Path, *inputs: Path | str, **more: Any) -> tuple[bool, list[str]]:
        lines.clear()
        arguments = {"config_file": "", "weights": "", "opts": [], "strength": 0.5, **more}
        done = predict.main(Namespace(output=str(output), input=[str(i) for i in inputs], **arguments))
        return done, list(lines)

    return run


@pytest.fixture
def cfg() -> CfgNode:
    from hicl_d2.config import get_hicl_cfg

    cfg = get_hicl_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 0, 4000
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def expected(image: np.ndarray) -> np.ndarray:
    grey = image.astype(np.float32).mean(axis=2)
    return (grey > 255 - grey).astype(np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_odd_image_does_not_end_the_others(run: Any, cfg: CfgNode, tmp_path: Path, workers: int) -> None:
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 8, 64  # a strip of 1 x 3000 is resized to nothing
    inputs = tmp_path / "in"
    for name, size in {"a": (8, 8), "z": (16, 8)}.items():
        save(inputs / f"{name}.png", noise(*size))
    save(inputs / "one.png", noise(1, 1))
    save(inputs / "strip1.png", noise(1, 3000))
    save(inputs / "strip2.png", noise(3000, 1))
    save(inputs / "thirteen.png", noise(8, 13))
    save(inputs / "seventeen.png", noise(8, 17))
    Image.fromarray(noise(8, 8)).convert("LAB").save(inputs / "lab.tif")
    Image.fromarray(noise(8, 8)[..., 0].astype(np.float32)).save(inputs / "float.tif")
    (inputs / "empty.png").write_bytes(b"")
    (inputs / "text.jpg").write_text("hello")
    done, lines = run(tmp_path / "out", inputs)
    failed = {"empty", "float", "lab", "seventeen", "strip1", "strip2", "text", "thirteen"}
    assert not done
    assert lines[0].startswith("3 of 11 images")
    assert {Path(line.removeprefix("failed: ").split(": ")[0]).stem for line in lines[1:]} == failed
    assert all("\n" not in line and line.count(str(inputs)) == 1 for line in lines[1:])
    assert any(
        line.endswith("it cannot be predicted (RuntimeError: 13 columns bring bad luck)") for line in lines
    )
    assert sorted(path.stem for path in (tmp_path / "out/labels").iterdir()) == ["a", "one", "z"]
    np.testing.assert_array_equal(read_labels(tmp_path / "out/labels/a.png"), expected(noise(8, 8)))


KINDS = {
    "grey16.png": lambda p: encode.png(p, noise(6, 9)[..., 0].astype(np.uint16) * 257, 16),
    "grey2.png": lambda p: encode.png(p, noise(6, 9)[..., 0] % 4, 2),
    "exif6.jpg": lambda p: Image.fromarray(noise(6, 9)).save(p, exif=_exif(6)),
    "exif8.webp": lambda p: Image.fromarray(noise(6, 9)).save(p, exif=_exif(8), lossless=True),
    "cmyk.jpg": lambda p: Image.fromarray(noise(6, 9)).convert("CMYK").save(p),
    "rgba.png": lambda p: Image.fromarray(noise(6, 9)).convert("RGBA").save(p),
    "palette.png": lambda p: Image.fromarray(noise(6, 9)).convert("P").save(p),
    "bit.bmp": lambda p: Image.fromarray(noise(6, 9)).convert("1").save(p),
    "UP.TIFF": lambda p: Image.fromarray(noise(6, 9)).save(p),
    "Straße 画像 [1].jpg": lambda p: Image.fromarray(noise(6, 9)).save(p),
}


def _exif(tag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_is_predicted_upright(run: Any, tmp_path: Path, name: str) -> None:
    from hicl_d2.reading import read_image

    (tmp_path / "in").mkdir()
    KINDS[name](tmp_path / "in" / name)
    done, lines = run(tmp_path / "out", tmp_path / "in")
    assert done, lines
    image = read_image(tmp_path / "in" / name, "RGB")
    label = tmp_path / "out/labels" / f"{Path(name).stem}.png"
    np.testing.assert_array_equal(read_labels(label), expected(image))
    with Image.open(tmp_path / "out/overlays" / f"{Path(name).stem}.jpg") as overlay:
        assert overlay.size == image.shape[1::-1]


def test_label_maps_show_the_classes_colours(run: Any, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", noise(6, 9))
    run(tmp_path / "out", tmp_path / "in")
    with Image.open(tmp_path / "out/labels/a.png") as label:
        assert label.mode == "P"
        shown = np.asarray(label.convert("RGB"))
    np.testing.assert_array_equal(shown, np.array(COLOURS, dtype=np.uint8)[expected(noise(6, 9))])


def test_more_classes_than_a_palette_holds_make_16_bit_label_maps(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colours = [(n % 256, n // 256, 7) for n in range(300)]
    monkeypatch.setattr(predict, "class_names", lambda _: ([str(n) for n in range(300)], colours))
    save(tmp_path / "in/a.png", noise(6, 9))
    assert run(tmp_path / "out", tmp_path / "in")[0]
    labels = read_labels(tmp_path / "out/labels/a.png")
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, expected(noise(6, 9)))


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (["x.jpg", "sub/x.png"], ["x", "sub/x"]),
        (["x.jpg", "x.png", "y.jpg"], ["x.jpg", "x.png", "y"]),
        (["x.jpg.jpg"], ["x.jpg"]),
        (["x.jpg", "x.jpg.jpg"], ["x", "x.jpg"]),
        (["x.jpg", "x.png", "x.jpg.bmp"], ["x.jpg", "x.png", "x.jpg.bmp"]),
        (["a.b.tif", "a.tif"], ["a.b", "a"]),
    ],
)
def test_outputs_are_called_as_their_images(names: list[str], outputs: list[str]) -> None:
    assert predict.output_names(names) == outputs


def test_two_images_of_one_stem_are_both_kept(run: Any, tmp_path: Path) -> None:
    for name, size in {"x.png": (6, 9), "x.bmp": (5, 7), "x.png.bmp": (4, 4)}.items():
        save(tmp_path / "in" / name, noise(*size))
    assert run(tmp_path / "out", tmp_path / "in")[0]
    sizes = {path.name: read_labels(path).shape for path in (tmp_path / "out/labels").iterdir()}
    assert sizes == {"x.png.png": (6, 9), "x.bmp.png": (5, 7), "x.png.bmp.png": (4, 4)}


@pytest.mark.parametrize("pattern", ["in", "in/**/*.*"])
def test_an_output_below_the_input_is_not_predicted_again(run: Any, tmp_path: Path, pattern: str) -> None:
    for name in ("a.png", "b/c.png"):
        save(tmp_path / "in" / name, noise(6, 9))
    given = tmp_path / pattern
    for _ in range(2):
        done, lines = run(tmp_path / "in/out", given)
        assert done
        assert lines[0].startswith("2 of 2 images")
    written = sorted(p.relative_to(tmp_path / "in").as_posix() for p in (tmp_path / "in").rglob("*.*"))
    stems = ["a", "b/c"] if pattern == "in" else ["a", "c"]
    outputs = [f"out/labels/{stem}.png" for stem in stems] + [f"out/overlays/{stem}.jpg" for stem in stems]
    assert written == sorted(["a.png", "b/c.png", "out/legend.png", *outputs])


@pytest.mark.parametrize(
    ("output", "given"),
    [
        ("in", "in"),
        (".", "in"),
        ("in/../in", "in"),
        ("link", "in"),
        ("in", "link"),
        ("in", "in/labels/a.png"),
        ("in", "in/labels/*.png"),
        ("in", "in/**/*.png"),
    ],
)
def test_an_output_in_or_over_the_input_is_refused(run: Any, tmp_path: Path, output: str, given: str) -> None:
    save(tmp_path / "in/labels/a.png", noise(6, 9))
    save(tmp_path / "in/legend.png", noise(6, 9))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert "which predictions could overwrite" in refusal(lambda: run(tmp_path / output, tmp_path / given))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_nothing_is_written_through_links(run: Any, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", noise(6, 9))
    elsewhere = save(tmp_path / "elsewhere/a.png", noise(3, 3))
    before = elsewhere.read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/labels").symlink_to(tmp_path / "elsewhere")
    assert "is a link out of" in refusal(lambda: run(tmp_path / "out", tmp_path / "in"))
    (tmp_path / "out/labels").unlink()
    (tmp_path / "out/labels").mkdir()
    (tmp_path / "out/labels/a.png").symlink_to(elsewhere)
    (tmp_path / "out/legend.png").symlink_to(elsewhere)
    assert run(tmp_path / "out", tmp_path / "in")[0]
    assert elsewhere.read_bytes() == before
    assert sorted(path.name for path in elsewhere.parent.iterdir()) == ["a.png"]
    assert read_labels(tmp_path / "out/labels/a.png").shape == (6, 9)


def test_files_of_systems_are_no_images(run: Any, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", noise(6, 9))
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "@eaDir/a.png", "__MACOSX/a.png", ".thumbs/a.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    done, lines = run(tmp_path / "out", tmp_path / "in")
    assert done
    assert lines[0].startswith("1 of 1 image:")


def test_the_longest_name_that_a_file_can_have_is_written_too(run: Any, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", noise(6, 9))
    save(tmp_path / "in" / f"{'x' * 250}.png", noise(6, 9))
    done, lines = run(tmp_path / "out", tmp_path / "in")
    assert done
    assert lines[0].startswith("2 of 2 images")
    assert (tmp_path / "out/labels" / f"{'x' * 250}.png").is_file()


def test_a_full_disk_ends_the_run(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path / "in/a.png", noise(6, 9))
    monkeypatch.setattr(predict, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "out", tmp_path / "in")


@pytest.mark.parametrize("several_sizes", [False, True])
def test_every_image_is_decoded_once(
    run: Any, cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several_sizes: bool
) -> None:
    if several_sizes:
        cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = True, (6, 8), 64
    for name in ("a.jpg", "b.png", "c.tif"):
        save(tmp_path / "in" / name, noise(6, 9))
    opened: Counter[str] = Counter()
    decode = Image.open

    def counted(stream: Any, *more: Any) -> Any:
        opened[getattr(stream, "name", str(stream))] += 1
        return decode(stream, *more)

    monkeypatch.setattr(Image, "open", counted)
    assert run(tmp_path / "out", tmp_path / "in")[0]
    assert opened == {str(tmp_path / "in" / name): 1 for name in ("a.jpg", "b.png", "c.tif")}


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_several_sizes_of_a_decoded_image_are_those_of_the_file(
    cfg: CfgNode, tmp_path: Path, image_format: str
) -> None:
    class Channels(nn.Module):
        def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
            size = inputs[0]["height"], inputs[0]["width"]
            return [{"sem_seg": nn.functional.interpolate(inputs[0]["image"][None].float(), size)[0]}]

    path = save(tmp_path / "a.png", noise(6, 9))
    model = MultiScale(Channels(), (6, 8), 64, flip=True, image_format=image_format)
    record = {"file_name": str(path)}
    decoded = {**record, "decoded": torch.from_numpy(noise(6, 9))}
    torch.testing.assert_close(model.scores(decoded), model.scores(record), rtol=0, atol=0)
