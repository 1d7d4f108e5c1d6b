"""hicl export: the plain model of every family in every format is the model, and the file says how to use it."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import hicl_d2.modeling.models  # noqa: F401 - registers the models
from hicl_d2.command import extras
from hicl_d2.command.cli import status
from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg, load_config
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.modeling import META_ARCH_REGISTRY, build_model
from hicl_d2.tools import commands

PARTS = "parts/deeplab_v3_plus_R_18.yaml"
SMALL = [
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "8",
    "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "8",
    "MODEL.DEVICE",
    "cpu",
]
HEAD = ["MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "8", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8"]
FPN = """
MODEL:
  META_ARCHITECTURE: SemanticSegmentor
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res2, res3, res4, res5], NORM: BN}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  SEM_SEG_HEAD: {NUM_CLASSES: 5, CONVS_DIM: 32, NORM: GN}
  DEVICE: cpu
INPUT: {FORMAT: BGR, MIN_SIZE_TEST: 64}
"""
SETTINGS = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 8,
}
SEGFORMER = [
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"),
    *(word for key, value in SETTINGS.items() for word in (f"MODEL.TRANSFORMERS.SETTINGS.{key}", str(value))),
]


@pytest.fixture
def fpn(tmp_path: Path) -> str:
    file = tmp_path / "fpn.yaml"
    file.write_text(FPN)
    return str(file)


Export = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Export a fresh model of a config; return the file, with ``expected`` scores of an image beside it."""

    def run(config: str, format_: str, *opts: str, size: tuple[int, int] = (64, 96)) -> Path:
        torch.manual_seed(0)
        model = build_model(load_config(config, opts)).eval()
        for module in model.modules():  # statistics of a fresh norm hide whether they are used
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
        image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(1)).float()
        with torch.no_grad():
            scores = model([{"image": image}])[0]["sem_seg"][None]
        np.savez(tmp_path / "expected.npz", image=image[None].numpy(), scores=scores.numpy())
        output = tmp_path / f"out.{format_}"
        words = ["--config-file", config, "--weights", str(tmp_path / "weights.pth"), "--format", format_]
        words += ["--output", str(output), "--size", *map(str, size), *opts]
        commands.export(words)
        return output

    return run


def expected(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(file.with_name("expected.npz")) as found:
        return torch.from_numpy(found["image"]), torch.from_numpy(found["scores"])


def assert_equal(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


def run_onnx(file: Path, image: torch.Tensor) -> tuple[torch.Tensor, dict[str, str]]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.shape) == ("image", list(image.shape))
    return torch.from_numpy(
        session.run(["scores"], {"image": image.numpy()})[0]
    ), session.get_modelmeta().custom_metadata_map


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["deeplab", "deeplab with the branch", "semantic fpn", "segformer", "mask2former"]
)
def test_onnx_gives_the_scores_of_the_model(export: Export, fpn: str, family: str) -> None:
    pytest.importorskip("onnxscript")
    config, opts = {
        "deeplab": (PARTS, [*SMALL, *HEAD]),
        "deeplab with the branch": ("parts/deeplab_v3_plus_R_18_hicl.yaml", [*SMALL, *HEAD]),
        "semantic fpn": (fpn, []),
        "segformer": ("ade20k/segformer_b0_160k_bs16.yaml", SEGFORMER),
        "mask2former": ("camvid/mask2former_R_18_cpu.yaml", [*SMALL]),
    }[family]
    file = export(config, "onnx", *opts)
    image, scores = expected(file)
    found, said = run_onnx(file, image)
    assert_equal(found, scores)
    cfg = load_config(config, opts)
    assert said["channel_order"] == cfg.INPUT.FORMAT
    assert json.loads(said["mean"]) == list(cfg.MODEL.PIXEL_MEAN)
    assert json.loads(said["std"]) == list(cfg.MODEL.PIXEL_STD)
    assert json.loads(said["ignore_value"]) == 255
    assert len(json.loads(said["classes"])) == scores.shape[1]
    assert not [path.name for path in file.parent.glob("out.*") if path != file]  # weights are in the file
    import onnx

    assert not [each.name for each in onnx.load(file).graph.initializer if "hicl" in each.name]


def test_torchscript_gives_the_scores_of_the_model(export: Export) -> None:
    file = export(PARTS, "torchscript", *SMALL, *HEAD)
    image, scores = expected(file)
    extra = {"metadata.json": ""}
    loaded = torch.jit.load(str(file), _extra_files=extra)
    assert_equal(loaded(image).detach(), scores)
    said = json.loads(extra["metadata.json"])
    assert said["input"]["shape"] == [1, 3, 64, 96]
    assert said["output"]["shape"] == list(scores.shape)
    assert said["size_divisibility"] == 1
    assert said["classes"][0] == load_parts_classes()[0]
    assert not [name for name, _ in loaded.named_parameters() if "hicl" in name]


@pytest.mark.skipif(USES_DETECTRON2, reason="torch.export cannot follow the sizes in Detectron2's ImageList")
def test_a_program_of_torch_export_gives_the_scores_of_the_model(export: Export, fpn: str) -> None:
    file = export(fpn, "torch_export")
    image, scores = expected(file)
    extra = {"metadata.json": ""}
    with file.open("rb") as stream:
        program = torch.export.load(stream, extra_files=extra)
    assert_equal(program.module()(image).detach(), scores)
    said = json.loads(extra["metadata.json"])
    assert (said["channel_order"], said["size_divisibility"]) == ("BGR", 32)
    assert said["classes"] == [f"class {number}" for number in range(5)]


def test_an_image_that_the_model_pads_is_padded_by_the_file_too(export: Export, fpn: str) -> None:
    file = export(fpn, "torchscript", size=(50, 70))
    image, scores = expected(file)
    assert scores.shape[-2:] == (50, 70)
    assert_equal(torch.jit.load(str(file))(image).detach(), scores)


def load_parts_classes() -> list[str]:
    from hicl_d2.d2.data import MetadataCatalog
    from hicl_d2.data.datasets import registry  # noqa: F401

    return list(MetadataCatalog.get("parts_val").stuff_classes)


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_onnx_is_refused_before_anything_is_loaded(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda name: name != module)
    words = ["--config-file", PARTS, "--format", "onnx", "--output", str(tmp_path / "a")]
    assert status("hicl export", lambda: commands.export(words)) == 2
    said = f"this needs {module}, which is not installed: pip install 'hicl-d2[export]'"
    assert capsys.readouterr().err == f"hicl export: {said}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "torchscript", "--output", "."], "is a folder"),
        (["--format", "onyx", "--output", "a"], "invalid choice"),
        (["--output", "a"], "one of the arguments --format --to is required"),
        (["--format", "onnx", "--to", "detectron2", "--output", "a"], "not allowed with"),
        (["--format", "torchscript", "--output", "a"], "give weights"),
        (
            ["--format", "torchscript", "--output", "a", "--weights", "absent.pth"],
            "absent.pth does not exist",
        ),
        (["--format", "torchscript", "--output", "file/b"], "--output file cannot be made"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert status("hicl export", lambda: commands.export(["--config-file", PARTS, *words])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("read", ["weights.pth", "mine.yaml"])
@pytest.mark.parametrize("way", [["--format", "torchscript"], ["--to", "detectron2"]], ids=lambda way: way[1])
def test_what_is_read_is_not_written_over(
    way: list[str],
    read: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    output = Path(read) if "--format" in way else Path("out")
    weights, config = Path("weights.pth"), Path("mine.yaml")
    if "--to" in way:
        output.mkdir()
        if read == "weights.pth":
            weights = output / "model_final.pth"
        else:
            config = output / "config.yaml"
    config.write_text(f"_BASE_: {PARTS}\n")
    torch.save({"model": build_model(load_config(str(config))).state_dict()}, weights)
    before = weights.read_bytes(), config.read_bytes()
    words = ["--config-file", str(config), *way, "--output", str(output)]
    for given in (["--weights", str(weights)], ["MODEL.WEIGHTS", str(weights)]):
        assert status("hicl export", lambda given=given: commands.export([*words, *given])) == 2
        assert "is there already; give another --output" in capsys.readouterr().err
        assert (weights.read_bytes(), config.read_bytes()) == before


@pytest.mark.parametrize(
    ("way", "there"),
    [
        (["--format", "torchscript", "--output", "out"], "out"),
        (["--to", "detectron2", "--output", "out"], "out/model_final.pth"),
        (["--to", "detectron2", "--output", "out"], "out/config.yaml"),
    ],
)
def test_what_is_there_is_not_written_over(
    way: list[str],
    there: str,
    fpn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": build_model(load_config(fpn)).state_dict()}, "weights.pth")
    Path(there).parent.mkdir(exist_ok=True)
    Path(there).write_text("of a run")
    words = ["--config-file", fpn, "--weights", "weights.pth", *way]
    assert status("hicl export", lambda: commands.export(words)) == 2
    assert capsys.readouterr().err == f"hicl export: {there} is there already; give another --output\n"
    assert Path(there).read_text() == "of a run"


def test_a_full_disk_is_one_line_for_detectron2s_checkpoint_too(
    fpn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(content: object, stream: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:  # as torch's zip writer, which hides what the disk said
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    weights, output = tmp_path / "weights.pth", tmp_path / "out"
    torch.save({"model": build_model(load_config(fpn)).state_dict()}, weights)
    monkeypatch.setattr(torch, "save", full)
    words = ["--config-file", fpn, "--weights", str(weights), "--to", "detectron2", "--output", str(output)]
    assert status("hicl export", lambda: commands.export(words)) == 2
    assert "no space left on the disk of" in capsys.readouterr().err.splitlines()[-1]
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("format_", ["torchscript", "torch_export"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    format_: str,
    export: Export,
    fpn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(file: Path, content: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert status("hicl export", lambda: export(fpn, format_)) == 2
    assert "no space left on the disk" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == []


def test_what_the_exporter_cannot_do_is_one_line_and_leaves_nothing(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hicl_d2.tools import formats

    def fails(*_: Any) -> Any:
        raise NotImplementedError("no such\noperator")

    def differs(model: Any, example: Any, file: Path, metadata: Any) -> Any:
        file.write_bytes(b"x")
        return lambda image: torch.zeros_like(model(image))

    for writer, message in (
        (fails, "cannot be exported as torchscript: NotImplementedError: no such operator"),
        (differs, "differs"),
    ):
        monkeypatch.setitem(formats.FORMATS, "torchscript", writer)
        with pytest.raises(InputError, match=message):
            export(PARTS, "torchscript", *SMALL, *HEAD)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".pth", ".npz")]


@META_ARCH_REGISTRY.register()
class AsksForTheSize(torch.nn.Module):
    """A model of one's own that predicts at "height" x "width", as Panoptic-DeepLab does, and has no other size to take."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.predictor = torch.nn.Conv2d(3, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 4, stride=4)

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        (entry,) = batch
        scores = self.predictor(entry["image"][None])
        return [
            {"sem_seg": torch.nn.functional.interpolate(scores, size=(entry["height"], entry["width"]))[0]}
        ]


def test_a_model_that_asks_for_the_size_is_exported(fpn: str, tmp_path: Path) -> None:
    opts = ["MODEL.META_ARCHITECTURE", "AsksForTheSize"]
    model = build_model(load_config(fpn, opts)).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    words = ["--config-file", fpn, "--weights", str(tmp_path / "weights.pth"), "--format", "torchscript"]
    commands.export([*words, "--output", str(tmp_path / "out"), "--size", "32", "40", *opts])
    image = torch.rand(3, 32, 40) * 255
    with torch.no_grad():
        found = torch.jit.load(tmp_path / "out")(image[None])
        assert_equal(found[0], model([{"image": image, "height": 32, "width": 40}])[0]["sem_seg"])


def test_detectron2_gets_its_own_keys_and_the_plain_weights(export: Export, fpn: str, tmp_path: Path) -> None:
    export(fpn, "torchscript")
    folder = tmp_path / "theirs"
    words = ["--config-file", fpn, "--weights", str(tmp_path / "weights.pth"), "--to", "detectron2"]
    commands.export([*words, "--output", str(folder)])
    content = yaml.safe_load((folder / "config.yaml").read_text())
    assert "HICL" not in content["MODEL"]
    assert content["MODEL"]["WEIGHTS"] == str(folder / "model_final.pth")
    ours, theirs = (
        torch.load(tmp_path / name)["model"] for name in ("weights.pth", "theirs/model_final.pth")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and theirs[name].is_contiguous() for name in ours)
    assert set(content["SOLVER"]) < set(get_hicl_cfg().SOLVER)


def test_a_model_that_detectron2_lacks_is_named(tmp_path: Path) -> None:
    model = build_model(load_config(PARTS))
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    words = ["--config-file", PARTS, "--weights", str(tmp_path / "weights.pth"), "--to", "detectron2"]
    with pytest.raises(InputError, match=r"Detectron2 has no build_dilated_resnet_backbone"):
        commands.export([*words, "--output", str(tmp_path / "theirs")])
    assert not (tmp_path / "theirs").exists()


DEEPLAB = [*SMALL, *HEAD, "MODEL.RESNETS.DEPTH", "50"]


def to_detectron2(folder: Path, *opts: str) -> Path:
    """Export a fresh DeepLabV3+ that Detectron2 has, and return its folder."""
    opts = (*DEEPLAB, *opts)
    torch.save({"model": build_model(load_config(PARTS, opts)).state_dict()}, folder / "weights.pth")
    words = ["--config-file", PARTS, "--weights", str(folder / "weights.pth"), "--to", "detectron2"]
    commands.export([*words, "--output", str(folder / "theirs"), *opts])
    return folder / "theirs"


def test_it_is_said_which_images_detectron2s_deeplab_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to_detectron2(tmp_path, "INPUT.CROP.SIZE", "(64, 96)")
    assert "images alone whose sides, as resized, are multiples of 64 x 96 pixels" in capsys.readouterr().out


def test_a_crop_that_detectron2s_deeplab_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training crop \(INPUT.CROP.SIZE\) of 64 x 90, which its stride"):
        to_detectron2(tmp_path, "INPUT.CROP.SIZE", "(64, 90)")
    assert not (tmp_path / "theirs").exists()


def test_a_model_that_pools_the_whole_map_does_so_in_detectron2(tmp_path: Path) -> None:
    folder = to_detectron2(tmp_path, "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", "[0.5, 0.5]")
    assert not yaml.safe_load((folder / "config.yaml").read_text())["INPUT"]["CROP"]["ENABLED"]
