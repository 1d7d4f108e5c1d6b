"""A run that was stopped anywhere and resumed is the run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hicl_d2.command.digest import with_digest
from hicl_d2.engine.trainer import Trainer
from tests.support.fixtures import Command
from tests.support.states import assert_equal, run_state
from tests.support.waiting import wait_for

# 12 iterations, so that there are evaluations after 4, 8 and 12 and checkpoints after 5, 10 and 12.
SCHEDULE = (
    "SOLVER.MAX_ITER",
    "12",
    "SOLVER.STEPS",
    "(9,)",
    "SOLVER.CHECKPOINT_PERIOD",
    "5",
    "TEST.EVAL_PERIOD",
    "4",
)


class Killed(BaseException):
    """What ends a run in these tests as abruptly as a signal that cannot be handled."""


def _arguments(folder: Path, *more: str) -> tuple[str, ...]:
    return ("OUTPUT_DIR", str(folder), *SCHEDULE, *more)


def _at_step(monkeypatch: pytest.MonkeyPatch, iteration: int, action: Callable[[], None]) -> None:
    """Act in the middle of ``iteration``, once."""
    run_step = Trainer.run_step

    def step(trainer: Trainer) -> None:
        if trainer.iter == iteration:
            monkeypatch.setattr(Trainer, "run_step", run_step)
            action()
        run_step(trainer)

    monkeypatch.setattr(Trainer, "run_step", step)


def _kill() -> None:
    raise Killed


@pytest.fixture
def undisturbed(command: Command, tmp_path: Path) -> dict[str, Any]:
    assert command(*_arguments(tmp_path / "undisturbed")).code == 0
    return run_state(tmp_path / "undisturbed")


def test_metrics_hold_each_iteration_once_and_all_evaluations(undisturbed: dict[str, Any]) -> None:
    iterations = [line["iteration"] for line in undisturbed["metrics"]]
    assert iterations == [3, 7, 11, 12]
    assert [line["iteration"] for line in undisturbed["metrics"] if "sem_seg/mIoU" in line] == [3, 7, 12]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on_exactly(
    signum: int,
    undisturbed: dict[str, Any],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "stopped"
    _at_step(monkeypatch, 6, lambda: os.kill(os.getpid(), signum))
    outcome = command(*_arguments(folder))
    assert outcome.code == 128 + signum
    assert "Traceback" not in outcome.err
    assert (folder / "last_checkpoint").read_text() == "model_0000006.pth"
    assert command(*_arguments(folder, "--resume")).code == 0
    assert_equal(run_state(folder), undisturbed)


@pytest.mark.parametrize("iteration", [0, 5, 9, 11])
def test_a_run_killed_in_an_iteration_goes_on_exactly(
    iteration: int,
    undisturbed: dict[str, Any],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "killed"
    _at_step(monkeypatch, iteration, _kill)
    with pytest.raises(Killed):
        command(*_arguments(folder))
    assert not (folder / "result.json").exists()
    assert command(*_arguments(folder, "--resume")).code == 0
    assert_equal(run_state(folder), undisturbed)


@pytest.mark.parametrize("evaluation", [1, 2, 3])
def test_a_run_killed_in_an_evaluation_does_it_again(
    evaluation: int,
    undisturbed: dict[str, Any],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "killed"
    period = ("SOLVER.CHECKPOINT_PERIOD", "4")  # a checkpoint right before every evaluation
    done = 0

    def build(cls: type, cfg: Any, name: str) -> Any:
        nonlocal done
        done += 1
        if done == evaluation:
            raise Killed
        return original(cfg, name)

    original = Trainer.build_test_loader
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "build_test_loader", classmethod(build))
        with pytest.raises(Killed):
            command(*_arguments(folder, *period))
    assert command(*_arguments(folder, *period, "--resume")).code == 0
    found = run_state(folder)
    for name in ("model", "optimizer", "best weights", "metrics"):
        assert_equal(found[name], undisturbed[name], name)
    assert found["result"]["metrics"] == undisturbed["result"]["metrics"]


def test_medians_after_a_resume_are_those_of_the_undisturbed_run(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = ("SOLVER.MAX_ITER", "25", "SOLVER.CHECKPOINT_PERIOD", "7", "TEST.EVAL_PERIOD", "0")
    assert command(*_arguments(tmp_path / "undisturbed", *longer)).code == 0
    _at_step(monkeypatch, 17, _kill)
    with pytest.raises(Killed):
        command(*_arguments(tmp_path / "killed", *longer))
    assert command(*_arguments(tmp_path / "killed", *longer, "--resume")).code == 0
    assert_equal(run_state(tmp_path / "killed"), run_state(tmp_path / "undisturbed"))


@pytest.mark.parametrize("setting", [("BANK_SIZE", "8"), ("WEIGHT_OF", "gradient")], ids=lambda pair: pair[0])
def test_resuming_with_the_branch_is_exact_too(
    setting: tuple[str, str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = ("MODEL.META_ARCHITECTURE", "HiCL", f"MODEL.HICL.{setting[0]}", setting[1])
    assert command(*_arguments(tmp_path / "undisturbed", *branch)).code == 0
    _at_step(monkeypatch, 8, _kill)
    with pytest.raises(Killed):
        command(*_arguments(tmp_path / "killed", *branch))
    assert command(*_arguments(tmp_path / "killed", *branch, "--resume")).code == 0
    found = run_state(tmp_path / "killed")
    assert any(name.startswith("hicl.") for name in found["model"])
    assert_equal(found, run_state(tmp_path / "undisturbed"))


def test_a_half_written_line_of_metrics_is_dropped(
    undisturbed: dict[str, Any], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    _at_step(monkeypatch, 7, _kill)
    with pytest.raises(Killed):
        command(*_arguments(folder))
    with (folder / "metrics.json").open("a") as stream:
        stream.write('{"iteration": 3, "sem_seg/mIoU": 99.0, "tot')
    assert command(*_arguments(folder, "--resume")).code == 0
    assert_equal(run_state(folder), undisturbed)


def test_what_a_killed_writer_left_is_removed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    _at_step(monkeypatch, 7, _kill)
    with pytest.raises(Killed):
        command(*_arguments(folder))
    (folder / f".hicl_d2-{16 * '1'}-model_0000004.pth.tmp").write_bytes(b"half")
    (folder / ".mine.tmp").write_text("stays")
    assert command(*_arguments(folder, "--resume")).code == 0
    assert sorted(path.name for path in folder.glob(".*")) == [".lock", ".mine.tmp"]


def test_an_unfinished_run_is_neither_overwritten_nor_resumed_unasked(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    _at_step(monkeypatch, 6, _kill)
    with pytest.raises(Killed):
        command(*_arguments(folder))
    line = command(*_arguments(folder)).line
    assert "model_0000004.pth" in line
    assert "--resume" in line


def test_a_drawn_seed_is_kept_over_a_resume(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    _at_step(monkeypatch, 6, _kill)
    with pytest.raises(Killed):
        command(*_arguments(folder, "SEED", "-1"))
    drawn = json.loads((folder / "manifest.json").read_text())["seed"]
    assert command(*_arguments(folder, "SEED", "-1", "--resume")).code == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["seed"] == drawn
    assert with_digest(result) == result
    assert command(*_arguments(tmp_path / "same", "SEED", str(drawn))).code == 0
    assert_equal(run_state(folder)["model"], run_state(tmp_path / "same")["model"])


def test_what_a_resumed_run_may_change(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    _at_step(monkeypatch, 6, _kill)
    with pytest.raises(Killed):
        command(*_arguments(folder))
    refused = command(*_arguments(folder, "SOLVER.BASE_LR", "0.1", "--resume")).line
    assert "SOLVER.BASE_LR is 0.05 there and 0.1 here" in refused
    allowed = ("TEST.PICTURES", "0", "SOLVER.CHECKPOINT_PERIOD", "6", "DATALOADER.NUM_WORKERS", "1")
    assert command(*_arguments(folder, *allowed, "--resume")).code == 0


def test_a_finished_run_shows_its_result_again(
    undisturbed: dict[str, Any], command: Command, tmp_path: Path
) -> None:
    outcome = command(*_arguments(tmp_path / "undisturbed", "--resume"))
    assert outcome.code == 0
    assert f"{undisturbed['result']['metrics']['last']['sem_seg/mIoU']:.2f}" in outcome.out
    assert "nothing to do" in outcome.err


# ----------------------------------------------------------------------------------------------------------
# Damaged checkpoints


def _stop_at(
    iteration: int, command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> None:
    _at_step(monkeypatch, iteration, _kill)
    with pytest.raises(Killed):
        command(*_arguments(folder, *more))


def _flip_a_bit_of_a_weight(file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = content.index(torch.load(file, weights_only=True)["model"]["backbone.weight"].numpy().tobytes())
    content[place + 9] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-700]),
    "empty": lambda file: file.write_bytes(b""),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "one bit": _flip_a_bit_of_a_weight,
    "lost": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    damage: str,
    undisturbed: dict[str, Any],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "killed"
    _stop_at(11, command, folder, monkeypatch)
    DAMAGES[damage](folder / "model_0000009.pth")
    outcome = command(*_arguments(folder, "--resume"))
    assert outcome.code == 0, outcome.err
    assert "last_checkpoint names 'model_0000009.pth': going on from model_0000004.pth instead" in outcome.err
    assert damage == "lost" or "model_0000009.pth cannot be read" in outcome.err
    assert_equal(run_state(folder), undisturbed)


@pytest.mark.parametrize("content", ["", "\0\0\0", "../else.pth", "model_9999999.pth", None])
def test_a_last_checkpoint_file_that_is_damaged_or_lost_is_done_without(
    content: str | None,
    undisturbed: dict[str, Any],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "killed"
    _stop_at(7, command, folder, monkeypatch)
    if content is None:
        (folder / "last_checkpoint").unlink()
        assert "holds this run up to model_0000004.pth; add --resume" in command(*_arguments(folder)).line
    else:
        (folder / "last_checkpoint").write_text(content)
    outcome = command(*_arguments(folder, "--resume"))
    assert outcome.code == 0, outcome.err
    assert "going on from model_0000004.pth instead" in outcome.err
    assert_equal(run_state(folder), undisturbed)


@pytest.mark.parametrize("final", ["never written", "damaged"])
def test_a_final_checkpoint_that_is_lost_is_written_again(
    final: str, command: Command, tmp_path: Path
) -> None:
    """The last iteration's own checkpoint was written, and the process killed before the final one."""
    folder = tmp_path / "finished"
    assert command(*_arguments(folder, "SOLVER.CHECKPOINT_PERIOD", "4")).code == 0
    undisturbed = run_state(folder)
    whole = torch.load(folder / "model_final.pth", weights_only=True)
    (folder / "result.json").unlink()
    if final == "damaged":
        (folder / "model_final.pth").write_bytes(b"PK")
    else:
        (folder / "model_final.pth").unlink()
        (folder / "last_checkpoint").write_text("model_0000011.pth")
    assert command(*_arguments(folder, "SOLVER.CHECKPOINT_PERIOD", "4", "--resume")).code == 0
    assert_equal(run_state(folder), undisturbed)
    again = torch.load(folder / "model_final.pth", weights_only=True)
    assert again["iteration"] == whole["iteration"]
    assert again["trainer"]["iteration"] == whole["trainer"]["iteration"]
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_weights_alone_are_no_checkpoint_to_resume(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command().code == 0
    (run / "result.json").unlink()
    (run / "last_checkpoint").write_text("model_best.pth")
    line = command("--resume").line
    assert "model_best.pth holds weights alone" in line


def test_old_checkpoints_go_when_only_the_newest_are_to_stay(
    undisturbed: dict[str, Any], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    keep = ("SOLVER.CHECKPOINT_KEEP", "2", "SOLVER.CHECKPOINT_PERIOD", "2")
    _stop_at(9, command, folder, monkeypatch, *keep)
    assert {path.name for path in folder.glob("model_*")} == {
        *("model_0000005.pth", "model_0000007.pth"),
        "model_best.pth",
    }
    assert command(*_arguments(folder, *keep, "--resume")).code == 0
    assert {path.name for path in folder.glob("model_*")} == {
        *("model_0000009.pth", "model_0000011.pth"),
        *("model_best.pth", "model_final.pth"),
    }
    assert_equal(run_state(folder)["model"], undisturbed["model"])


# ----------------------------------------------------------------------------------------------------------
# What is changed on resume: exact, refused, or named


def test_an_override_that_enters_the_training_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    _stop_at(6, command, folder, monkeypatch)
    for key, value, was in (
        ("SOLVER.IMS_PER_BATCH", "4", "2"),
        ("SOLVER.ACCUMULATE", "2", "1"),
        ("INPUT.CROP.SIZE", "[12, 12]", r"[16, 16]"),
        ("SEED", "8", "7"),
    ):
        assert (
            f"{key} is {was} there and {value} here"
            in command(*_arguments(folder, key, value, "--resume")).line
        )
    longer = command(*_arguments(folder), "SOLVER.MAX_ITER", "24", "--resume").line
    assert "SOLVER.MAX_ITER is 12 there and 24 here" in longer


@pytest.mark.parametrize("workers", ["1", "2"])
def test_another_number_of_loader_workers_is_exact(
    workers: str,
    undisturbed: dict[str, Any],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "killed"
    _stop_at(6, command, folder, monkeypatch, "DATALOADER.NUM_WORKERS", "2" if workers == "1" else "0")
    outcome = command(*_arguments(folder, "--resume", "DATALOADER.NUM_WORKERS", workers))
    assert outcome.code == 0
    assert "changed since the run began" not in outcome.err
    assert_equal(run_state(folder), undisturbed)


def test_another_output_directory_is_exact(
    undisturbed: dict[str, Any], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stop_at(6, command, tmp_path / "killed", monkeypatch)
    (tmp_path / "killed").rename(tmp_path / "moved")
    assert command(*_arguments(tmp_path / "moved", "--resume")).code == 0
    assert_equal(run_state(tmp_path / "moved"), undisturbed)


def test_what_does_not_enter_the_training_is_named(
    undisturbed: dict[str, Any], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    _stop_at(6, command, folder, monkeypatch)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"]["torch"] = "0.4.1"
    manifest["device"] = "cuda"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    outcome = command(*_arguments(folder, "TEST.PICTURES", "0", "--resume"))
    assert outcome.code == 0
    for said in (
        "changed since the run began: TEST.PICTURES is 1 there and 0 here",
        "changed since the run began: torch is 0.4.1 there and " + torch.__version__,
        "changed since the run began: the device is cuda there and cpu here",
    ):
        assert said in outcome.err
        assert said in (folder / "log.txt").read_text()
    assert_equal(run_state(folder)["model"], undisturbed["model"])


def test_training_data_of_another_size_are_refused(
    own_data_root: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    _stop_at(6, command, folder, monkeypatch)
    for kind in ("images", "annotations"):
        (own_data_root / "tiny" / kind / "train/5.png").unlink()
    assert "had 6 images when the run began and have 5 now" in command(*_arguments(folder, "--resume")).line


def test_keys_that_are_newer_than_the_run_do_not_matter_while_they_change_nothing(
    undisturbed: dict[str, Any], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    _stop_at(6, command, folder, monkeypatch)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["config"]["SOLVER.ACCUMULATE"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused = command(*_arguments(folder, "SOLVER.ACCUMULATE", "2", "--resume")).line
    assert "SOLVER.ACCUMULATE is 1 there and 2 here" in refused
    assert command(*_arguments(folder, "--resume")).code == 0
    assert_equal(run_state(folder)["model"], undisturbed["model"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_resuming_in_mixed_precision_with_accumulation_is_exact(
    dtype: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype, "SOLVER.ACCUMULATE", "2")
    assert command(*_arguments(tmp_path / "undisturbed", *options)).code == 0
    _stop_at(8, command, tmp_path / "killed", monkeypatch, *options)
    assert command(*_arguments(tmp_path / "killed", *options, "--resume")).code == 0
    assert_equal(run_state(tmp_path / "killed"), run_state(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_sigkill(undisturbed: dict[str, Any], command: Command, tmp_path: Path, config: Path) -> None:
    folder = tmp_path / "killed"
    arguments = [
        sys.executable,
        "-m",
        "tests.support.tiny",
        "--config-file",
        str(config),
        *_arguments(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process: sums depend on it
    process = subprocess.Popen(
        arguments, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    wait_for((folder / "last_checkpoint").exists, while_running=process.poll)
    process.kill()
    process.wait()
    assert command(*_arguments(folder, "--resume")).code == 0
    assert_equal(run_state(folder), undisturbed)
