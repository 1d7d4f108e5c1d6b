"""Command lines that a benchmark cannot do are refused in one line, before anything is measured."""

from pathlib import Path
from types import ModuleType

import contrast_speed
import evaluator_speed
import gpu_report
import loader_scale
import loader_speed
import model_speed
import pytest
import step_speed
import torch
from PIL import Image
from speed import arguments

from hicl_d2.command.errors import InputError

PARTS = "configs/parts/deeplab_v3_plus_R_18_hicl.yaml"
ALL = (contrast_speed, evaluator_speed, gpu_report, loader_scale, loader_speed, model_speed, step_speed)
WITH_ROUNDS = (contrast_speed, evaluator_speed, loader_speed, model_speed, step_speed)
WITH_FILES = (contrast_speed, loader_scale, model_speed, step_speed)
WITH_DEVICES = (contrast_speed, gpu_report, model_speed, step_speed)


def refusal(script: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *words])
    threads = torch.get_num_threads()
    try:
        with pytest.raises(InputError) as refused:
            script.main()
    finally:
        torch.set_num_threads(threads)
        if hasattr(script, "console"):
            script.console.silence(False)
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("script", ALL)
def test_an_unknown_option_is_one_line(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--output", "report", "--device", "cpu"] if script is gpu_report else []
    assert "--fast" in refusal(script, [*words, "--fast"], monkeypatch)


@pytest.mark.parametrize("rounds", ["0", "-3", "many"])
@pytest.mark.parametrize("script", WITH_ROUNDS)
def test_rounds_are_one_or_more(script: ModuleType, rounds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1 or more" in refusal(script, ["--rounds", rounds], monkeypatch)


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (contrast_speed, ["--threads", "0"], "1 or more"),
        (evaluator_speed, ["--threads", "0"], "1 or more"),
        (loader_speed, ["--images", "0"], "1 or more"),
        (loader_speed, ["INPUT.FORMAT", "XYZ"], "BGR, RGB"),
        (loader_speed, ["DATASETS.TRAIN", "()"], "DATASETS.TRAIN names no data set"),
        (model_speed, ["--batch", "0"], "1 or more"),
        (model_speed, ["--without-data", "--output", "a.csv"], "leave out --output"),
        (gpu_report, ["--minutes", "nan"], "above 0"),
        (gpu_report, ["--minutes", "-1"], "above 0"),
        (gpu_report, ["--per-gpu", "0"], "1 or more"),
        (gpu_report, ["--device", "cpu", "--matrix", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (step_speed, ["--config-file", PARTS, "--evaluate", "2", "--opts", "DATASETS.TEST", "()"], "DATASETS.TEST"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    script: ModuleType, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*words, "--output", str(tmp_path)] if script is gpu_report else words
    assert message in refusal(script, words, monkeypatch)


@pytest.mark.parametrize("script", WITH_DEVICES)
def test_a_gpu_that_is_not_there_is_one_line(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["--output", "report"] if script is gpu_report else []
    assert "--device cpu" in refusal(script, [*words, "--device", "cuda"], monkeypatch)
    assert "must be cpu, cuda or cuda:N" in refusal(script, [*words, "--device", "tpu"], monkeypatch)


@pytest.mark.parametrize("script", WITH_FILES)
def test_a_file_that_cannot_be_written_is_named_before_anything_is_measured(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert "is a folder" in refusal(script, ["--output", str(tmp_path)], monkeypatch)
    assert "--output" in refusal(script, ["--output", str(tmp_path / "file" / "a.csv")], monkeypatch)
    assert arguments.csv_file(str(tmp_path / "new" / "a.csv")) == tmp_path / "new" / "a.csv"


@pytest.mark.parametrize("script", [loader_speed, step_speed])
def test_a_data_set_of_the_user_s_own_is_measured(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for number in range(2):
            Image.new("RGB" if kind == "images" else "L", (96, 64)).save(tmp_path / kind / f"{number}.png")
    own = f"{{IMAGES: {tmp_path / 'images'}, LABELS: {tmp_path / 'masks'}, CLASSES: [a, b]}}"
    config = tmp_path / "own.yaml"
    datasets = f"DATASETS:\n  CUSTOM: {{{script.__name__}_own: {own}}}\n  TRAIN: [{script.__name__}_own]\n"
    config.write_text(
        f"_BASE_: {PARTS.removeprefix('configs/')}\n{datasets}MODEL: {{SEM_SEG_HEAD: {{NUM_CLASSES: 2}}}}\n"
    )
    words = ["--config-file", str(config), "--rounds", "1", "--opts", "INPUT.CROP.SIZE", "(32,32)"]
    monkeypatch.setattr("sys.argv", ["script", *words, "SOLVER.IMS_PER_BATCH", "2"])
    threads = torch.get_num_threads()
    try:
        assert script.main() == 0
    finally:
        torch.set_num_threads(threads)
        if hasattr(script, "console"):
            script.console.silence(False)
    assert "ours" in (said := capsys.readouterr().out) or "with the branch" in said
