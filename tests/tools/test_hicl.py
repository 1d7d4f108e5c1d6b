"""The command hicl: each of its commands is the script of the same purpose; slips are answered before torch is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hicl_d2.command.shipped import CONFIG, MATRIX, is_base, names
from hicl_d2.config import load_config
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.harness.matrix import read_matrix
from hicl_d2.tools import configs, hicl
from hicl_d2.tools.arguments import evaluate_arguments
from tests.support.fixtures import Command

ROOT = Path(__file__).resolve().parents[2]
CONFIG_NAME = "camvid/deeplab_v3_plus_R_18_cpu.yaml"
SCRIPTS = {
    "train": "train_net",
    "predict": "predict",
    "check": "check_dataset",
    "inspect": "inspect_components",
}
NEEDED = {
    "predict": ["--input", "x", "--output", "y"],
    "inspect": ["--output", "y"],
    "export": ["--format", "onnx", "--output", "y"],
}


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        hicl.main(words)
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_every_command_is_listed_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys)
    assert code == 0
    assert call(capsys, "--help") == (0, out, "")
    for name in hicl.COMMANDS:
        assert f"\n  {name} " in out
        code, shown, _ = call(capsys, name, "--help")
        assert code == 0
        assert shown.startswith(f"usage: hicl {name} ")


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "train"), ("exprot", "export"), ("configs2", "configs")]
)
def test_a_wrong_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], word: str, near: str
) -> None:
    assert call(capsys, word) == (2, "", f"hicl: unknown command {word}; did you mean {near}?\n")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from hicl_d2.version import __version__

    assert call(capsys, "--version") == (0, f"hicl-d2 {__version__}\n", "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_have_the_same_options(capsys: pytest.CaptureFixture[str], name: str) -> None:
    _, ours, _ = call(capsys, name, "--help")
    script = str(ROOT / "projects" / "HiCL" / f"{SCRIPTS[name]}.py")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[2:] == ours.split()[3:]


@pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2's config imports torch")
@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "check", "inspect", "export"])
@pytest.mark.parametrize(
    "slip",
    [
        ["--config-file", CONFIG_NAME, "SOLVER.MAX_ITR", "3"],
        ["--config-file", CONFIG_NAME, "SOLVER.MAX_ITER", "many"],
        ["--config-file", "camvid/absent.yaml"],
    ],
)
def test_a_slip_is_answered_before_torch_is_imported(name: str, slip: list[str], tmp_path: Path) -> None:
    words = [name, *NEEDED.get(name, []), *slip]
    code = f"import sys\nfrom hicl_d2.tools.hicl import main\ntry:\n    main({words!r})\nfinally:\n    print(*sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"hicl {name}: ")
    assert not {"torch", "numpy", "transformers", "PIL", "rich"} & set(done.stdout.split())
    assert not list(tmp_path.iterdir())


def test_evaluate_is_train_with_eval_only(command: Command, tmp_path: Path, config: Path) -> None:
    assert command().code == 0
    weights = str(tmp_path / "run" / "model_final.pth")
    args = evaluate_arguments(
        ["--config-file", str(config), "--weights", weights, "SEED", "3", "OUTPUT_DIR", "x"]
    )
    assert args.eval_only
    assert args.opts == ["SEED", "3", "OUTPUT_DIR", "x", "MODEL.WEIGHTS", weights]
    hicl.COMMANDS["evaluate"][0](
        ["--config-file", str(config), "--weights", weights, "OUTPUT_DIR", str(tmp_path / "again")],
        "hicl evaluate",
    )
    found = json.loads((tmp_path / "again" / "evaluation.json").read_text())["metrics"]
    last = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["last"]
    assert found["sem_seg/mIoU"] == last["sem_seg/mIoU"]
    assert evaluate_arguments(["--config-file", "f", "--last"]).resume


@pytest.mark.parametrize(
    ("words", "file", "last"),
    [
        (["evaluate"], "--weights FILE", "--last"),
        (["train", "--eval-only"], "MODEL.WEIGHTS FILE", "--resume"),
    ],
)
def test_weights_are_asked_for_in_the_words_of_the_tool(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], file: str, last: str
) -> None:
    asked = f"hicl {words[0]}: nothing says which weights to evaluate: give {file}"
    words = [*words, "--config-file", CONFIG_NAME, "OUTPUT_DIR", str(tmp_path)]
    assert call(capsys, *words) == (2, "", f"{asked} (OUTPUT_DIR {tmp_path} holds no checkpoint)\n")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert call(capsys, *words) == (2, "", f"{asked}, or {last} for {tmp_path}/model_final.pth\n")


# ---------------------------------------------------------------------------------------------------------------------
# configs


def test_every_config_and_matrix_is_a_line_that_says_something(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "configs")
    listed = dict(line.split(maxsplit=1) for line in out.splitlines())
    wanted = {name for name in names(CONFIG) if not is_base(name)} | {
        f"matrices/{name}" for name in names(MATRIX) if not is_base(name)
    }
    assert set(listed) == wanted
    assert all(len(text) > 10 for text in listed.values())


def test_a_part_of_a_name_or_a_pattern_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "configs", "camvid")
    assert {line.split()[0] for line in out.splitlines()} == {
        name for name in names(CONFIG) if "camvid" in name and not is_base(name)
    } | {f"matrices/{name}" for name in names(MATRIX) if "camvid" in name and not is_base(name)}
    _, out, _ = call(capsys, "configs", "parts/*_hicl.yaml")
    assert [line.split()[0] for line in out.splitlines()] == ["parts/deeplab_v3_plus_R_18_hicl.yaml"]
    code, out, err = call(capsys, "configs", "kamvid/deeplab_v3_plus_R_18_cpu.yaml")
    assert (code, out) == (2, "")
    assert f"did you mean {CONFIG_NAME}?" in err


@pytest.mark.parametrize("name", names(CONFIG))
def test_a_copy_means_the_same_wherever_it_lies(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text(configs.portable(ROOT / "configs" / name))
    assert load_config(copy) == load_config(ROOT / "configs" / name)


@pytest.mark.parametrize("name", [name for name in names(MATRIX) if not is_base(name)])
def test_a_copy_of_a_matrix_has_the_same_cells(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text(configs.portable(ROOT / "benchmark" / "matrices" / name))
    assert read_matrix(copy).cells == read_matrix(ROOT / "benchmark" / "matrices" / name).cells


def test_a_shown_file_can_be_written_by_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "configs", CONFIG_NAME)
    assert yaml.safe_load(out)["_BASE_"] == "camvid/Base-CamVid.yaml"
    _, out, _ = call(capsys, "configs", "matrices/smoke")
    assert yaml.safe_load(out)["name"] == "smoke"


def test_a_copy_takes_no_other_files_place(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "configs", CONFIG_NAME, "--output", "new/mine.yaml")[0] == 0
    before = (tmp_path / "new" / "mine.yaml").read_text()
    (tmp_path / "new" / "mine.yaml").write_text("SEED: 1\n")
    code, _, err = call(capsys, "configs", CONFIG_NAME, "--output", "new/mine.yaml")
    assert (code, err) == (2, "hicl configs: new/mine.yaml is there already; give another --output\n")
    assert call(capsys, "configs", CONFIG_NAME, "--output", "new")[0] == 0
    assert (tmp_path / "new" / "deeplab_v3_plus_R_18_cpu.yaml").read_text() == before
    assert (tmp_path / "new" / "mine.yaml").read_text() == "SEED: 1\n"
    assert call(capsys, "configs", "--output", "mine.yaml")[0] == 2
