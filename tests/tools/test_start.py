"""--check says whether a run could start, without starting it; --check-each says it of many in one process."""

import json
import sys

import pytest
import yaml

from hicl_d2.command.cli import run
from hicl_d2.config import load_config
from hicl_d2.d2.data import DatasetCatalog
from hicl_d2.data.custom import register_custom
from hicl_d2.tools import start
from hicl_d2.tools.arguments import train_arguments
from projects.HiCL import train_net


@pytest.fixture
def train_net_line(monkeypatch, capsys):
    """Run the script train_net.py in this process; return exit status, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train_net.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run("train_net", train_net.main)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


BRANCH = ("MODEL.META_ARCHITECTURE", "HiCL")


def test_a_run_that_can_start_is_one_line_and_leaves_no_trace(train_net_line, config, tmp_path):
    output = tmp_path / "run"
    code, out, err = train_net_line("--config-file", str(config), "--check", "OUTPUT_DIR", str(output))
    assert (code, err) == (0, "")
    assert out == f"can start: fresh run in {output} on cpu\n"
    assert not output.exists()


@pytest.mark.parametrize("content", ["from a import b\nc = b()", "_BASE_: other.py"])
def test_a_lazy_config_is_named_as_what_it_is(content, train_net_line, tmp_path):
    path = tmp_path / ("mine.yaml" if content.startswith("_BASE_") else "mine.py")
    path.write_text(content)
    (tmp_path / "other.py").write_text("from a import b\nc = b()")
    code, _, err = train_net_line("--config-file", str(path), "--check")
    (line,) = err.splitlines()
    assert code == 2
    assert ".py is Python" in line
    assert "with_hicl" in line


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("DATASETS.TRAIN", "['tiny_trai']"), "'tiny_trai' is not registered; did you mean tiny_train?"),
        (("MODEL.WEIGHTS", "nowhere.pth"), "weights file nowhere.pth (MODEL.WEIGHTS) does not exist"),
        (("MODEL.DEVICE", "tpu9"), "MODEL.DEVICE is 'tpu9'"),
        (("--num-machines", "2"), "--dist-url auto works on one machine"),
        (("SOLVER.OPTIMIZER", "sgdd"), "SOLVER.OPTIMIZER is 'sgdd'"),
        (("SOLVER.LR_SCHEDULER_NAME", "foo"), "SOLVER.LR_SCHEDULER_NAME is 'foo'"),
        (("SOLVER.WARMUP_METHOD", "foo"), "foo"),
        (("SOLVER.SCALE_BY", "foo"), "SOLVER.SCALE_BY is 'foo'; it must be rule or accumulate"),
        (
            ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "foo"),
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE is 'foo'",
        ),
        (("SOLVER.ACCUMULATE", "3"), "which SOLVER.ACCUMULATE 3 cannot divide"),
        (("FLOAT32_PRECISION", "hihg"), "FLOAT32_PRECISION is 'hihg'; did you mean high?"),
        (("DATALOADER.SAMPLER_TRAIN", "foo"), "DATALOADER.SAMPLER_TRAIN is foo"),
        (("MODEL.PIXEL_MEAN", "[1,2]"), "MODEL.PIXEL_MEAN is [1, 2]; it must hold 3 numbers"),
        (("MODEL.PIXEL_STD", "[1]"), "MODEL.PIXEL_STD is [1]; it must hold 3 numbers"),
        ((*BRANCH, "MODEL.HICL.CONTRAST", "pixl"), "MODEL.HICL: no contrast is called 'pixl'"),
        ((*BRANCH, "MODEL.HICL.TEMPERATURE", "0.0"), "MODEL.HICL: temperature must be above 0"),
        ((*BRANCH, "MODEL.HICL.WINDOWS", "[1, 0]"), "MODEL.HICL: windows must be whole numbers"),
        (
            (*BRANCH, "MODEL.HICL.LEVEL_WEIGHTS", "[1, 2, 3, 4, 5]"),
            "MODEL.HICL: level_weights needs one value",
        ),
        ((*BRANCH, "MODEL.HICL.WEIGHT", "-1.0"), "MODEL.HICL: weight must be a number from 0 on"),
        ((*BRANCH, "MODEL.HICL.FEATURE_SIDE", "in"), "MODEL.HICL.FEATURE_SIDE must be input or output"),
    ],
)
def test_one_that_cannot_is_the_line_that_starting_it_gives(
    train_net_line, command, config, tmp_path, overrides, message
):
    output = ("OUTPUT_DIR", str(tmp_path / "run"))
    code, out, err = train_net_line("--config-file", str(config), "--check", *output, *overrides)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert command(*overrides).err == err


def test_each_line_of_a_file_is_answered_and_one_bad_start_does_not_hide_the_others(
    train_net_line, config, tmp_path
):
    good = ["--config-file", str(config), "OUTPUT_DIR", str(tmp_path / "run")]
    lines = [
        json.dumps(good),
        "",
        json.dumps([*good, "SOLVER.MAX_ITER", "0"]),
        "not JSON",
        '"a string"',
        json.dumps([*good, "--nonsense"]),
        json.dumps([*good, "--eval-only"]),
        json.dumps(good),
    ]
    file = tmp_path / "starts"
    file.write_text("\n".join(lines))
    code, out, err = train_net_line("--check-each", str(file))
    assert (code, err) == (2, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["ok"] for answer in answers] == [True, False, False, False, False, False, True]
    assert answers[0] == {"ok": True, "state": "fresh", "output": str(tmp_path / "run"), "device": "cpu"}
    for answer, part in zip(
        answers[1:6],
        (
            "SOLVER.MAX_ITER is 0",
            "line 4: not JSON",
            "line 5: give a JSON list",
            "unknown option --nonsense",
            "nothing says which weights to evaluate",
        ),
        strict=True,
    ):
        assert part in answer["error"]
    file.write_text(json.dumps(good))
    assert train_net_line("--check-each", str(file))[0] == 0


def test_a_file_that_is_not_there_is_one_line(train_net_line, tmp_path):
    code, out, err = train_net_line("--check-each", str(tmp_path / "none"))
    assert (code, out) == (2, "")
    assert "No such file" in err


def test_data_sets_of_one_config_are_not_known_to_the_next(config, tmp_path, data_root, capsys):
    content = yaml.safe_load(config.read_text())
    images, labels = (str(data_root / "tiny" / kind / "train") for kind in ("images", "annotations"))
    content["DATASETS"]["CUSTOM"] = {"own": {"IMAGES": images, "LABELS": labels, "CLASSES": ["a", "b", "c"]}}
    content["DATASETS"]["TRAIN"] = ["own"]
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump(content))
    del content["DATASETS"]["CUSTOM"]
    second.write_text(yaml.safe_dump(content))
    file = tmp_path / "starts"
    output = ["OUTPUT_DIR", str(tmp_path / "run")]
    file.write_text("\n".join(json.dumps(["--config-file", str(each), *output]) for each in (first, second)))
    assert not start.show_each(str(file))
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0]["ok"]
    assert "'own' is not registered" in answers[1]["error"]
    register_custom(load_config(first))
    assert "own" in DatasetCatalog
    start.forget_custom()
    assert "own" not in DatasetCatalog


def test_an_error_of_ours_is_an_answer_too(config, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(start, "check_before_start", broken)
    file = tmp_path / "starts"
    file.write_text(json.dumps(["--config-file", str(config)]))
    assert not start.show_each(str(file))
    assert json.loads(capsys.readouterr().out) == {"ok": False, "error": "RuntimeError: out of luck"}


def test_without_a_config_the_line_names_the_option(train_net_line):
    assert train_net_line()[0] == 2
    assert "--config-file" in train_net_line()[2]
    assert train_arguments(["--check-each", "-"]).check_each == "-"
