"""Every bad input is one line on standard error and exit status 2, and nothing is written for it."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hicl_d2.engine.trainer import Trainer
from tests.support.fixtures import Command


@pytest.fixture
def nothing_written(tmp_path: Path) -> Iterator[None]:
    yield
    assert not (tmp_path / "run").exists()


CONFIGS = {
    "not YAML": ("MODEL: [1", ["bad.yaml:1"]),
    "not a mapping": ("- 1\n- 2\n", ["keys and values"]),
    "unknown key": ("MODEL:\n  DEVISE: cpu\n", ["bad.yaml:2", "MODEL.DEVISE", "did you mean MODEL.DEVICE"]),
    "wrong type": ("SOLVER:\n  MAX_ITER: many\n", ["bad.yaml:2", "SOLVER.MAX_ITER", "whole number"]),
    "code in YAML": ("X: !!python/object/apply:os.system ['true']\n", ["bad.yaml:1", "python/object/apply"]),
    "base in a circle": ("_BASE_: bad.yaml\n", ["bad.yaml", "circle"]),
    "base that is missing": ("_BASE_: absent.yaml\n", ["absent.yaml", "does not exist"]),
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("kind", CONFIGS)
def test_config_file(kind: str, command: Command, tmp_path: Path) -> None:
    text, words = CONFIGS[kind]
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    line = command(config_file=file).line
    assert all(word in line for word in words), line


@pytest.mark.usefixtures("nothing_written")
def test_config_file_that_is_missing(command: Command, tmp_path: Path) -> None:
    assert "absent.yaml does not exist" in command(config_file=tmp_path / "absent.yaml").line


OVERRIDES = {
    "unknown key": (["SOLVER.MAXITER", "3"], ["SOLVER.MAXITER", "did you mean SOLVER.MAX_ITER"]),
    "key without a value": (["SOLVER.MAX_ITER"], ["'SOLVER.MAX_ITER' has no partner"]),
    "unknown option": (["--resum"], ["--resum", "did you mean --resume"]),
    "model": (["MODEL.META_ARCHITECTURE", "TinySegmenter"], ["did you mean TinySegmentor", "known: "]),
    "base model": (
        ["MODEL.META_ARCHITECTURE", "HiCL", "MODEL.HICL.BASE", "Nothing"],
        ["MODEL.HICL.BASE 'Nothing'", "TinySegmentor"],
    ),
    "backbone": (
        ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.BACKBONE.NAME", "build_resnet"],
        ["MODEL.BACKBONE.NAME", "build_resnet_backbone"],
    ),
    "head": (
        ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME", "DeepLabHead"],
        ["MODEL.SEM_SEG_HEAD.NAME", "DeepLabV3PlusHead"],
    ),
    "features of the head": (
        ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res9']"],
        ["MODEL.SEM_SEG_HEAD.IN_FEATURES names res9", "res4"],
    ),
    "precision": (["SOLVER.AMP.DTYPE", "float15"], ["SOLVER.AMP.DTYPE", "bfloat16"]),
    "optimiser": (["SOLVER.OPTIMIZER", "SDG"], ["SOLVER.OPTIMIZER", "SGD"]),
    "schedule": (["SOLVER.LR_SCHEDULER_NAME", "Warmup"], ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"]),
    "device": (["MODEL.DEVICE", "gpu"], ["MODEL.DEVICE is 'gpu'", "cuda"]),
    "data set": (["DATASETS.TRAIN", "('tiny_trian',)"], ["tiny_trian", "did you mean tiny_train"]),
    "number of classes": (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"], ["3 classes", "NUM_CLASSES is 4"]),
    "no iterations": (["SOLVER.MAX_ITER", "0"], ["SOLVER.MAX_ITER is 0"]),
    "uneven batch": (["--num-gpus", "3"], ["SOLVER.IMS_PER_BATCH is 2", "3 processes"]),
    "parts of a batch": (["SOLVER.ACCUMULATE", "3"], ["2 images of a batch", "SOLVER.ACCUMULATE 3"]),
    "no parts": (["SOLVER.ACCUMULATE", "0"], ["SOLVER.ACCUMULATE is 0", "1 or more"]),
    "checkpoints to keep": (["SOLVER.CHECKPOINT_KEEP", "-1"], ["SOLVER.CHECKPOINT_KEEP is -1", "0 or more"]),
    "steps to skip": (["SOLVER.NONFINITE_LIMIT", "-1"], ["SOLVER.NONFINITE_LIMIT is -1", "0 or more"]),
    "loader workers": (
        ["DATALOADER.NUM_WORKERS", "-1"],
        ["DATALOADER.NUM_WORKERS is -1", "0 or more"],
    ),
    "windows of the branch": (["MODEL.HICL.WINDOWS", "[1, 2.5]"], ["MODEL.HICL.WINDOWS", "list of int"]),
    "steps": (["SOLVER.STEPS", "('x',)"], ["SOLVER.STEPS", "list of int"]),
    "features of the backbone": (["MODEL.RESNETS.OUT_FEATURES", "[4]"], ["OUT_FEATURES", "list of str"]),
    "name of a data set": (["DATASETS.TEST", "[4]"], ["DATASETS.TEST must be a list of str", "quote each"]),
    "width of the branch": (["MODEL.HICL.HIDDEN_DIM", "0"], ["MODEL.HICL.HIDDEN_DIM is 0", "1 or more"]),
    "log of the branch": (["MODEL.HICL.LOG_PERIOD", "0"], ["MODEL.HICL.LOG_PERIOD is 0", "1 or more"]),
    "processes of the recipe": (["SOLVER.REFERENCE_WORLD_SIZE", "-1"], ["REFERENCE_WORLD_SIZE is -1"]),
    "longest side": (["INPUT.MAX_SIZE_TRAIN", "0"], ["INPUT.MAX_SIZE_TRAIN is 0", "1 or more"]),
    "size in the test": (["INPUT.MIN_SIZE_TEST", "-1"], ["INPUT.MIN_SIZE_TEST is -1", "0 or more"]),
    "longest side in the test": (
        ["INPUT.MIN_SIZE_TEST", "16", "INPUT.MAX_SIZE_TEST", "0"],
        ["INPUT.MAX_SIZE_TEST is 0", "1 or more"],
    ),
    "seed": (["SEED", "4294967296"], ["SEED is 4294967296", "2147483647 or less"]),
    "all warm-up": (
        ["SOLVER.RESCALE_INTERVAL", "True", "SOLVER.WARMUP_ITERS", "6"],
        ["SOLVER.RESCALE_INTERVAL", "SOLVER.WARMUP_ITERS 6"],
    ),
    "windows of the test": (["TEST.WINDOW", "[0, 0]"], ["TEST.WINDOW is (0, 0)"]),
    "scorer": (["TEST.CITYSCAPES_SCORER", "True"], ["TEST.CITYSCAPES_SCORER is on", "not Cityscapes"]),
    "expected results": (
        ["TEST.EXPECTED_RESULTS", "[['mIoU', 71.5]]"],
        ["TEST.EXPECTED_RESULTS", "tolerance"],
    ),
    "memory": (
        ["MODEL.META_ARCHITECTURE", "HiCL", "MODEL.HICL.DIM", "1048576", "MODEL.HICL.HIDDEN_DIM", "1048576"],
        ["no memory"],
    ),
    "width of the embedding": (
        ["MODEL.META_ARCHITECTURE", "HiCL", "MODEL.HICL.DIM", "1000000000000"],
        ["MODEL.HICL.DIM is 1000000000000", "1048576 or less"],
    ),
    "infinite rate": (["SOLVER.BASE_LR", "1e999"], ["SOLVER.BASE_LR is inf", "finite"]),
    "rate of 400 digits": (["SOLVER.BASE_LR", "1" + 400 * "0"], ["SOLVER.BASE_LR must be a number"]),
    "rate beyond float32": (["SOLVER.BASE_LR", "1e300"], ["SOLVER.BASE_LR is 1e+300", "1e+15 or less"]),
    "negative rate": (["SOLVER.BASE_LR", "-0.1"], ["SOLVER.BASE_LR is -0.1", "0 or more"]),
    "infinite temperature": (["MODEL.HICL.TEMPERATURE", "1e999"], ["MODEL.HICL.TEMPERATURE is inf"]),
    "endless training": (["SOLVER.MAX_ITER", str(10**20)], [f"SOLVER.MAX_ITER is {10**20}"]),
    "endless batch": (["SOLVER.IMS_PER_BATCH", str(10**20)], [f"SOLVER.IMS_PER_BATCH is {10**20}"]),
    "endless workers": (["DATALOADER.NUM_WORKERS", str(10**20)], ["DATALOADER.NUM_WORKERS is 1000"]),
    "negative seed": (["SEED", str(-(10**20))], [f"SEED is {-(10**20)}", "-2147483647 or more"]),
    "endless crop": (["INPUT.CROP.SIZE", f"[{10**20}, 4]"], ["INPUT.CROP.SIZE is 1000", "1048576 or less"]),
    "output without a name": (["OUTPUT_DIR", ""], ["OUTPUT_DIR is ''"]),
    "output None": (["OUTPUT_DIR", "None"], ["OUTPUT_DIR is 'None'"]),
    "output in two lines": (["OUTPUT_DIR", "a\nb"], [r"OUTPUT_DIR is 'a\nb'", "line breaks"]),
    "output that is no text": (["OUTPUT_DIR", "a\udcff"], [r"OUTPUT_DIR is 'a\udcff'", "UTF-8"]),
    "output with a name that is too long": (["OUTPUT_DIR", 300 * "x"], ["OUTPUT_DIR xxx", "too long"]),
    "output with a path that is too long": (["OUTPUT_DIR", 2000 * "y/"], ["OUTPUT_DIR y/y", "too long"]),
    "weights that are no text": (["MODEL.WEIGHTS", "a\udcff"], [r"MODEL.WEIGHTS is 'a\udcff'", "UTF-8"]),
    "weights with a name that is too long": (["MODEL.WEIGHTS", 300 * "x"], ["xxx", "too long"]),
    "weights that are a device": (["MODEL.WEIGHTS", "/dev/zero"], ["/dev/zero"]),
    "weights with a password": (
        ["MODEL.WEIGHTS", "http://me:s3cret@a.example/w.pth"],
        ["weights http://***@a.example/w.pth"],
    ),
    "weights over http": (["MODEL.WEIGHTS", "http://a.example/w.pth"], ["only https is fetched, not http"]),
    "weights over ftp": (["MODEL.WEIGHTS", "ftp://a.example/w.pth"], ["only https is fetched, not ftp"]),
    "weights without a checksum": (["MODEL.WEIGHTS", "https://a.example/w.pth"], ["#sha256=", "--download"]),
    "weights with half a checksum": (
        ["MODEL.WEIGHTS", "https://a.example/w.pth#sha256=12ab"],
        ["sha256= and 64 hexadecimal digits"],
    ),
    "several machines": (["--num-machines", "2"], ["--dist-url auto"]),
    "rank of the machine": (["--machine-rank", "1"], ["--machine-rank 1"]),
    "number of processes": (["--num-gpus", "few"], ["--num-gpus", "whole number"]),
    "nothing to evaluate": (["--eval-only"], ["MODEL.WEIGHTS FILE"]),
    "weights that are missing": (["MODEL.WEIGHTS", "absent.pth"], ["absent.pth", "does not exist"]),
    "feature module": (
        ["MODEL.META_ARCHITECTURE", "HiCL", "MODEL.HICL.FEATURE", "sem_seg_head.predictr"],
        ["MODEL.HICL.FEATURE", "predictr", "sem_seg_head.predictor"],
    ),
    "no feature module": (
        ["MODEL.META_ARCHITECTURE", "HiCL", "MODEL.HICL.FEATURE", ""],
        ["MODEL.HICL.FEATURE", "candidates below the model: backbone"],
    ),
    "contrast": (
        ["MODEL.META_ARCHITECTURE", "HiCL", "MODEL.HICL.CONTRAST", "hickle"],
        ["hickle", "hicl"],
    ),
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("kind", OVERRIDES)
def test_command_line(kind: str, command: Command) -> None:
    arguments, words = OVERRIDES[kind]
    line = command(*arguments).line
    assert all(word in line for word in words), line


# Modules that exist and do not pass what is read: known in the first step, after the folder was made.
MODULES = {
    "logits of other classes": (["MODEL.HICL.LOGITS", "norm"], "logits must be (2, 3, h, w)"),
    "logits that are no map": (
        ["MODEL.HICL.LOGITS", "loss"],
        "the output of the module loss must be a (B, C",
    ),
    "logits that nobody calls": (["MODEL.HICL.LOGITS", "sem_seg_head"], "sem_seg_head was not called"),
    "images that nobody calls": (["MODEL.HICL.IMAGE", "sem_seg_head"], "sem_seg_head was not called"),
    "images that are features": (["MODEL.HICL.IMAGE", "norm"], "not the batch of images"),
    "features without a gradient": (
        ["MODEL.HICL.FEATURE", "backbone", "MODEL.HICL.FEATURE_SIDE", "input"],
        "carries no gradient",
    ),
}


@pytest.mark.parametrize("kind", MODULES)
def test_module_that_does_not_pass_what_the_branch_reads(kind: str, command: Command) -> None:
    words, said = MODULES[kind]
    outcome = command("MODEL.META_ARCHITECTURE", "HiCL", "MODEL.HICL.WARMUP_ITERS", "0", *words)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith("train_net: MODEL.HICL: ")
    assert said in outcome.err.splitlines()[-1]


def test_memory_that_runs_out_in_a_step(command: Command) -> None:
    outcome = command("INPUT.CROP.SIZE", "[1048576, 1048576]")
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert "no memory" in outcome.err.splitlines()[-1]


@pytest.mark.usefixtures("nothing_written")
def test_data_root_that_is_missing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    line = command().line
    assert "/nowhere/tiny/images/train" in line
    assert "tiny/annotations" in line  # the expected tree


@pytest.mark.usefixtures("nothing_written")
def test_data_root_that_is_empty(own_data_root: Path, command: Command) -> None:
    for file in (own_data_root / "tiny/images/train").iterdir():
        file.unlink()
    assert "tiny/images/train" in command().line


def _spoil(root: Path, how: str) -> Path:
    """Spoil the first training image or its label map; return the file that the message must name."""
    image, label = root / "tiny/images/train/0.png", root / "tiny/annotations/train/0.png"
    if how == "truncated image":
        image.write_bytes(image.read_bytes()[:200])
        return image
    if how == "no image":
        image.write_text("this is text")
        return image
    labels = np.array(Image.open(label))
    if how == "label value":
        labels[3, 4] = 17
    else:
        labels = labels[:-1]
    Image.fromarray(labels).save(label)
    return label


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("how", ["truncated image", "no image", "label value", "label size"])
def test_files_that_the_check_before_the_start_reads(how: str, own_data_root: Path, command: Command) -> None:
    file = _spoil(own_data_root, how)
    line = command().line
    assert str(file) in line
    assert how != "label value" or "17" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_goes_bad_while_training_is_named(
    workers: int, own_data_root: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in sorted((own_data_root / "tiny/images/train").iterdir()):
        file.write_bytes(file.read_bytes()[:200])
    monkeypatch.setattr("hicl_d2.run.setup.check_datasets", lambda cfg, train: None)
    outcome = command("DATALOADER.NUM_WORKERS", str(workers))
    assert outcome.code == 2
    line = outcome.err.splitlines()[-1]
    assert line.startswith("train_net: ")
    assert "tiny/images/train/" in line
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_vanish_after_they_were_listed_are_named(
    workers: int, own_data_root: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Trainer.train

    def without_files(self: Trainer) -> object:
        for file in (own_data_root / "tiny/images/train").iterdir():
            file.unlink()
        return train(self)

    monkeypatch.setattr(Trainer, "train", without_files)
    outcome = command("DATALOADER.NUM_WORKERS", str(workers))
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert "tiny/images/train/" in outcome.err.splitlines()[-1]


def test_a_file_that_goes_bad_in_the_evaluation_leaves_a_checkpoint_of_what_was_trained(
    own_data_root: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = own_data_root / "tiny/images/val/1.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:200])
    monkeypatch.setattr("hicl_d2.run.setup.check_datasets", lambda cfg, train: None)
    outcome = command()
    assert outcome.code == 2
    assert str(bad) in outcome.err.splitlines()[-1]
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000001.pth"  # the first evaluation's
    bad.write_bytes(content)
    assert command("--resume").code == 0


# ----------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.usefixtures("nothing_written")
def test_weights_of_another_model(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"model": {f"layer{i}.weight": torch.zeros(3) for i in range(5)}}, file)
    line = command("MODEL.WEIGHTS", str(file)).line
    assert "0 of the model's 4 tensors fit" in line
    assert "4 are missing" in line
    assert "5 of the file are left over" in line


@pytest.mark.usefixtures("nothing_written")
def test_weights_of_another_shape(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "wide.pth"
    shapes = {
        "backbone.weight": (16, 3, 3, 3),
        "backbone.bias": (16,),
        "sem_seg_head.predictor.weight": (3, 16, 1, 1),
    }
    torch.save({"model": {name: torch.zeros(shape) for name, shape in shapes.items()}}, file)
    line = command("MODEL.WEIGHTS", str(file)).line
    assert "1 are missing" in line
    assert "3 have another shape" in line


def test_an_evaluation_needs_all_of_the_model(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "backbone.pth"
    torch.save({"model": {"backbone.weight": torch.zeros(8, 3, 3, 3), "backbone.bias": torch.zeros(8)}}, file)
    assert "2 of the model's 4 tensors fit" in command("--eval-only", "MODEL.WEIGHTS", str(file)).line
    assert not (tmp_path / "run").exists()
    assert (
        command("MODEL.WEIGHTS", str(file), "SOLVER.MAX_ITER", "1").code == 0
    )  # training may start from a part


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut off"])
def test_weights_that_cannot_be_read(content: bytes, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "damaged.pth"
    file.write_bytes(content)
    assert str(file) in command("MODEL.WEIGHTS", str(file)).line


def test_a_checkpoint_that_cannot_be_read_is_named(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last_checkpoint").write_text("model_0000001.pth")
    assert "model_0000001.pth, which is not there" in command("--resume").line
    (run / "model_0000001.pth").write_bytes(b"damaged")
    assert "model_0000001.pth" in command("--resume").line


WEIGHT = torch.ones(8, 3, 3, 3)
KINDS_OF_TENSORS = {
    "sparse": lambda: WEIGHT.to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8),
    "without values (meta)": lambda: WEIGHT.to("meta"),
    "of torch.int8": lambda: WEIGHT.to(torch.int8),
    "of torch.complex64": lambda: WEIGHT.to(torch.complex64),
    "of torch.bool": lambda: WEIGHT > 0,
    "of torch.float8_e4m3fn": lambda: WEIGHT.to(torch.float8_e4m3fn),
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("kind", KINDS_OF_TENSORS)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_a_kind_that_no_model_trains_with(kind: str, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "odd.pth"
    torch.save({"model": {"backbone.weight": KINDS_OF_TENSORS[kind]()}}, file)
    assert f"odd.pth: backbone.weight is a tensor that is {kind}" in command("MODEL.WEIGHTS", str(file)).line


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_floating_point_are_taken(
    dtype: torch.dtype, command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "other.pth"
    torch.save({"model": {"backbone.weight": WEIGHT.to(dtype)}}, file)
    assert command("MODEL.WEIGHTS", str(file), "SOLVER.MAX_ITER", "5").code == 0


@pytest.mark.usefixtures("nothing_written")
def test_weights_with_names_that_are_no_text(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "numbered.pth"
    torch.save({"model": {0: WEIGHT}}, file)
    assert "a tensor is called 0, of type int" in command("MODEL.WEIGHTS", str(file)).line


def test_a_password_is_in_no_file_and_on_no_console(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cache/w.pth"
    file.parent.mkdir()
    torch.save({"model": {"backbone.weight": WEIGHT}}, file)
    monkeypatch.setenv("FVCORE_CACHE", str(file.parent))
    address = "https://me:s3cret@a.example/w.pth"
    outcome = command("--download", "MODEL.WEIGHTS", address, "SOLVER.MAX_ITER", "5")
    assert outcome.code == 0, outcome.err
    assert "s3cret" not in outcome.out + outcome.err
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"manifest.json", "config.yaml", "log.txt"} <= {path.name for path in written}
    for path in written:
        assert b"s3cret" not in path.read_bytes(), path
    assert "***@a.example/w.pth" in (tmp_path / "run/manifest.json").read_text()


def _checkpoint(command: Command, folder: Path) -> dict:
    assert command("DATASETS.TEST", "()").code == 0
    (folder / "result.json").unlink()
    return torch.load(folder / "model_0000005.pth", weights_only=True)


STATES = {
    "without the training": (lambda state: state.pop("trainer"), "holds weights alone"),
    "without an optimizer": (lambda state: state["trainer"]["_trainer"].pop("optimizer"), "KeyError"),
    "with another optimizer": (
        lambda state: state["trainer"]["_trainer"]["optimizer"]["param_groups"].pop(),
        "ValueError",
    ),
    "with text for the trainer": (lambda state: state.update(trainer="text"), "TypeError"),
    "without an iteration": (lambda state: state["trainer"].pop("iteration"), "KeyError"),
    "after a text": (lambda state: state.update(iteration="many"), "after the iteration 'many'"),
    "after less than none": (lambda state: state.update(iteration=-7), "after the iteration -7"),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_checkpoint_that_holds_no_whole_training(kind: str, command: Command, tmp_path: Path) -> None:
    spoil, said = STATES[kind]
    state = _checkpoint(command, tmp_path / "run")
    spoil(state)
    torch.save(state, tmp_path / "run/model_final.pth")
    before = sorted((tmp_path / "run").iterdir())
    line = command("--resume", "DATASETS.TEST", "()").line
    assert "model_final.pth" in line
    assert said in line
    assert sorted((tmp_path / "run").iterdir()) == before


CODE = {
    "GLOBAL": b"cposix\nsystem\n(S'touch ran'\ntR.",
    "INST": b"(S'touch ran'\niposix\nsystem\n.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x09touch ran\x85R.",
}


@pytest.mark.parametrize("way", CODE)
def test_a_checkpoint_that_would_run_code_is_refused_by_name_and_not_passed_over(
    way: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _checkpoint(command, tmp_path / "run")
    (tmp_path / "run/model_final.pth").write_bytes(CODE[way])
    line = command("--resume", "DATASETS.TEST", "()").line
    assert "run/model_final.pth ask for posix.system" in line
    assert not (tmp_path / "ran").exists()


# ----------------------------------------------------------------------------------------------------------
# The output directory


def test_output_that_is_a_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = command("OUTPUT_DIR", str(tmp_path / "file/below")).line
    assert "is not a directory" in line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here (this needs root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_output_without_write_permission(small_disk: Path, command: Command) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "no permission to write" in command("OUTPUT_DIR", str(small_disk / "run")).line


def test_permission_that_is_refused_later(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def refuse(self: Path, **options: bool) -> None:
        if self.name == "run":  # not what the check before the start makes beside it
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        make(self, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "no permission to use" in command().line


def test_full_disk(small_disk: Path, command: Command) -> None:
    (small_disk / "filler").write_bytes(b"x" * 30_000)
    outcome = command("OUTPUT_DIR", str(small_disk / "run"), "DATASETS.TEST", "()")
    assert outcome.code == 2
    assert "no space left" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err
    assert not list((small_disk / "run").glob(".*.tmp"))
    for file in (small_disk / "run").glob("*.json"):
        texts = file.read_text().splitlines() if file.name == "metrics.json" else [file.read_text()]
        assert all(json.loads(text) for text in texts), file


def test_disk_that_is_full_at_a_checkpoint_leaves_the_one_before(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def until_full(content: dict, stream: object) -> None:
        if content.get("iteration") != 5:
            save(content, stream)
            return
        try:
            stream.write(b"PK")
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed writing file") from None  # as torch does

    monkeypatch.setattr(torch, "save", until_full)
    outcome = command()
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert "no space left" in last
    assert "model_0000005.pth" in last
    assert "Traceback" not in outcome.err
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000002.pth"
    left = sorted(path.name for path in (tmp_path / "run").glob("*.pth*"))
    assert left == ["model_0000002.pth", "model_best.pth"]
    assert not list((tmp_path / "run").glob(".*.tmp"))
    monkeypatch.undo()


def test_a_folder_in_which_nothing_was_trained_may_go(command: Command, tmp_path: Path) -> None:
    assert command("SOLVER.MAX_ITER", "1").code == 0
    for path in (tmp_path / "run").iterdir():
        if path.name != "manifest.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    line = command("SOLVER.MAX_ITER", "2").line
    assert (
        "SOLVER.MAX_ITER is 1 there and 2 here; remove that folder, in which nothing was trained yet, or"
        in line
    )
    assert (tmp_path / "run/manifest.json").exists()


def test_output_of_a_different_run(command: Command, tmp_path: Path) -> None:
    assert command("SOLVER.MAX_ITER", "1").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    line = command("SOLVER.MAX_ITER", "2").line
    assert "holds a different run" in line
    assert "SOLVER.MAX_ITER is 1 there and 2 here" in line
    assert "holds a different run" in command("SOLVER.MAX_ITER", "2", "--resume").line
    assert "choose another OUTPUT_DIR (--resume goes on" in line
    assert "finished" in command("SOLVER.MAX_ITER", "1").line
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_output_of_another_tool(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last_checkpoint").write_text("model_0000001.pth")
    assert "did not start" in command().line


def test_damaged_manifest(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/manifest.json").write_text('{"config": ')
    assert "manifest.json is damaged" in command().line


def test_output_of_a_run_that_is_going_on(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run/.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    assert "another process is running in" in command().line
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    other.communicate(b"\n")
    assert command().code == 0
