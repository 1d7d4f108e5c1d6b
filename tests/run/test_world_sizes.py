"""1, 2 and 4 processes with the same global batch do the same, as torchrun would start them."""

import json
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from hicl_d2.d2 import USES_DETECTRON2
from tests.support import tiny
from tests.support.forks import Child, Ended, Forks
from tests.support.waiting import wait_for

# What a rank draws at random is its own: without dropout nothing is drawn.
SETTINGS = {
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": "0.0",
    "SOLVER.IMS_PER_BATCH": "4",
    "SOLVER.MAX_ITER": "4",
    "SOLVER.STEPS": "()",
    "SOLVER.WARMUP_ITERS": "0",
    "TEST.EVAL_PERIOD": "2",
    "TEST.PICTURES": "0",
}
# Every cell and window is taken, on each process all of its own, and the ring is large enough for all of them.
BRANCH = {
    "MODEL.META_ARCHITECTURE": "HiCL",
    "MODEL.HICL.PURITY": "[0.0]",
    "MODEL.HICL.COVERAGE": "[0.0]",
    "MODEL.HICL.WARMUP_ITERS": "0",
    "MODEL.HICL.HARD_SHARE": "0.0",
    "MODEL.HICL.ANCHORS": "256",
    "MODEL.HICL.COMPONENTS": "320",
    "MODEL.HICL.GATHER": "True",
    "MODEL.HICL.BANK_SIZE": "1300",
    "MODEL.HICL.LOG_PERIOD": "1",
}
CASES: dict[str, dict[str, str]] = {
    "plain": {},
    "branch": BRANCH,
    "norm over processes": {"MODEL.SEM_SEG_HEAD.NORM": "SyncBN"},
}
needs_no_gpu_norm = pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2's SyncBN is for GPUs alone")
Start = Callable[..., list[Child]]


@pytest.fixture
def start(tools: Forks, config: Path, data_root: Path) -> Start:
    """Start ``world`` processes of one run with the environment that torchrun gives them; the one that ``halts`` goes no
    further than 30 steps, and some have overrides of their ``own``, or other ``roots`` of the data."""
    stores: list[dist.Store] = []  # open until the test ends

    def start(
        world: int,
        folder: Path,
        *flags: str,
        restarts: int = 0,
        root: Path = data_root,
        halts: int | None = None,
        own: Mapping[int, Sequence[str]] | None = None,
        roots: Mapping[int, Path] | None = None,
        **overrides: str,
    ) -> list[Child]:
        words = [word for pair in {**SETTINGS, **overrides}.items() for word in pair]
        # As torchrun does: its own process opens the place, on whichever port is free.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        stores.append(store)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        children = []
        here = 1 if roots else world  # other data are those of another machine
        for rank in range(world):
            numbers = {"RANK": rank, "LOCAL_RANK": rank % here, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": here}
            elastic = {
                "TORCHELASTIC_RUN_ID": "test",
                "TORCHELASTIC_RESTART_COUNT": str(restarts),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            halt = {tiny.HALT: "31"} if rank == halts else {}
            environment = {
                **halt,
                **meeting,
                **elastic,
                **{name: str(value) for name, value in numbers.items()},
            }
            children.append(
                tools.start(
                    *("--config-file", str(config), *flags, "OUTPUT_DIR", str(folder), *words),
                    *(own or {}).get(rank, ()),
                    **environment,
                    DETECTRON2_DATASETS=str((roots or {}).get(rank, root)),
                )
            )
        return children

    return start


def _ends(children: list[Child]) -> list[Ended]:
    ended = [child.wait() for child in children]
    assert all(end.code == 0 for end in ended), [end.err[-1500:] for end in ended]
    return ended


def _found(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.json").open()]
    result = json.loads((folder / "result.json").read_text())
    return {
        "model": torch.load(folder / "model_final.pth", weights_only=True)["model"],
        "losses": [
            {k: v for k, v in line.items() if k.startswith(("total", "loss", "lr"))} for line in lines
        ],
        "evaluations": [{k: v for k, v in line.items() if k.startswith("sem_seg")} for line in lines],
        "last": result["metrics"]["last"],
        "hash": result["config_hash"],
    }


def _assert_rings_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare the banks as sets: processes write their rows in another order."""
    written = expected["hicl.bank.written"]
    assert torch.equal(found["hicl.bank.written"], written)
    assert torch.equal(found["hicl.bank.pointer"], expected["hicl.bank.pointer"])
    assert written.sum() == 4 * 4 * 80  # iterations x images x windows
    for ring, count in enumerate(written.flatten().tolist()):
        one, other = (bank["hicl.bank.rows"].flatten(0, 1)[ring][:count] for bank in (found, expected))
        distances = torch.cdist(one.double(), other.double())
        assert not count or distances.min(1).values.max() < 1e-4
        assert not count or distances.min(0).values.max() < 1e-4


@pytest.mark.parametrize(
    "case", ["plain", "branch", pytest.param("norm over processes", marks=needs_no_gpu_norm)]
)
def test_processes_do_what_one_does(case: str, start: Start, tmp_path: Path) -> None:
    worlds = (1, 2, 4)
    for world in worlds:
        _ends(start(world, tmp_path / str(world), **CASES[case]))
    one = _found(tmp_path / "1")
    assert len(one["losses"]) > 0
    assert one["losses"][-2].get("loss_hicl", 1.0) > 0
    for world in worlds[1:]:
        several = _found(tmp_path / str(world))
        assert several["hash"] == one["hash"]
        for name, value in one["model"].items():
            if not name.startswith("hicl.bank."):
                torch.testing.assert_close(several["model"][name], value, atol=2e-6, rtol=1e-4, msg=name)
        if case == "branch":
            _assert_rings_equal(several["model"], one["model"])
        for line, expected in zip(several["losses"], one["losses"], strict=True):
            assert line == pytest.approx(expected, rel=1e-4)
        # A pixel between two classes may fall to either side.
        for line, expected in zip(several["evaluations"], one["evaluations"], strict=True):
            assert line == pytest.approx(expected, abs=0.5)


def test_evaluation_is_equal_also_where_a_process_has_no_image(start: Start, tmp_path: Path) -> None:
    _ends(start(1, tmp_path / "run"))
    weights = {"MODEL.WEIGHTS": str(tmp_path / "run/model_final.pth")}
    found = []
    for world in (1, 2, 4):  # 3 images: 3; 2 and 1; 1, 1, 1 and none
        _ends(start(world, tmp_path / str(world), "--eval-only", **weights))
        evaluation = json.loads((tmp_path / str(world) / "evaluation.json").read_text())
        counts = (tmp_path / str(world) / "inference/sem_seg_confusion.csv").read_text()
        found.append((evaluation["metrics"], counts))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("case", ["plain", "branch"])
def test_a_process_without_labelled_pixels_does_not_harm_the_others(
    case: str, start: Start, own_data_root: Path, tmp_path: Path
) -> None:
    # Of 6 images 4 are void, so that in most iterations one of the processes has void images alone.
    for number in range(4):
        file = own_data_root / f"tiny/annotations/train/{number}.png"
        Image.fromarray(np.full_like(np.asarray(Image.open(file)), 255)).save(file)
    _ends(start(4, tmp_path / "run", root=own_data_root, **CASES[case]))
    found = _found(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in found["model"].values())
    losses = [line["total_loss"] for line in found["losses"] if "total_loss" in line]
    assert np.isfinite(losses).all()
    assert max(losses) > 0


@pytest.mark.parametrize(
    "recipe", [{}, {"SOLVER.REFERENCE_WORLD_SIZE": "2", "SOLVER.SCALE_BY": "accumulate"}]
)
def test_a_run_goes_on_with_another_number_of_processes_and_says_so(
    recipe: dict[str, str], start: Start, tmp_path: Path
) -> None:
    _ends(start(1, tmp_path / "undisturbed", **recipe))
    _ends(start(2, tmp_path / "run", **recipe))
    run = tmp_path / "run"
    (run / "result.json").unlink()
    (run / "last_checkpoint").unlink()
    (run / "model_final.pth").unlink()
    assert (run / "model_0000002.pth").exists()
    ended = _ends(start(1, run, "--resume", **recipe))[0]
    assert "changed since the run began: 2 processes there and 1 here" in ended.err
    found, expected = _found(run), _found(tmp_path / "undisturbed")
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, atol=2e-6, rtol=1e-4, msg=name)


def test_a_schedule_that_depends_on_the_processes_is_not_resumed_on_others(
    start: Start, tmp_path: Path
) -> None:
    scaled = {"SOLVER.REFERENCE_WORLD_SIZE": "1"}
    _ends(start(2, tmp_path / "run", **scaled))
    (tmp_path / "run/result.json").unlink()
    ended = start(1, tmp_path / "run", "--resume", **scaled)[0].wait()
    assert ended.code == 2
    assert "resume it on 2, not on 1" in ended.err


def test_a_group_that_lost_a_process_is_started_again_and_goes_on_exactly(
    start: Start, tmp_path: Path
) -> None:
    folder, long = tmp_path / "run", {"SOLVER.MAX_ITER": "60", "TEST.EVAL_PERIOD": "0"}
    _ends(start(2, tmp_path / "undisturbed", **long))
    children = start(2, folder, halts=1, **long)
    wait_for((folder / "last_checkpoint").exists, while_running=children[1].status)
    children[1].kill(signal.SIGKILL)
    children[0].kill(signal.SIGTERM)  # torchrun stops those that are left ...
    children[0].wait()
    assert not (folder / "result.json").exists()
    _ends(start(2, folder, restarts=1, **long))  # ... and starts the same command again
    found, expected = _found(folder), _found(tmp_path / "undisturbed")
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name
    assert found["losses"] == expected["losses"]


def test_a_command_that_is_not_a_restart_does_not_resume_by_itself(start: Start, tmp_path: Path) -> None:
    _ends(start(1, tmp_path / "run"))
    (tmp_path / "run/result.json").unlink()
    ended = start(1, tmp_path / "run")[0].wait()
    assert ended.code == 2
    assert "add --resume" in ended.err


def test_torchrun_and_num_gpus_are_not_mixed(start: Start, tmp_path: Path) -> None:
    ended = start(1, tmp_path / "run", "--num-gpus", "2")[0].wait()
    assert ended.code == 2
    assert "leave out --num-gpus" in ended.err


@pytest.mark.parametrize("case", ["plain", "branch"])
def test_a_loss_that_is_not_finite_on_one_process_is_skipped_by_all(
    case: str, start: Start, own_data_root: Path, tmp_path: Path
) -> None:
    image = own_data_root / "tiny/images/train/2.png"
    Image.new("RGB", (24, 20)).save(image)  # of one colour: the model divides by its deviation
    limit = {"SOLVER.NONFINITE_LIMIT": "9"}
    ended = _ends(start(2, tmp_path / "run", root=own_data_root, **limit, **CASES[case]))
    assert all(torch.isfinite(value).all() for value in _found(tmp_path / "run")["model"].values())
    saved = [torch.load(file, weights_only=True) for file in (tmp_path / "run/nonfinite").iterdir()]
    bad = [any(entry["file_name"] == str(image) for entry in batch["batch"]) for batch in saved]
    iterations = {batch["iteration"] for batch in saved}
    assert (
        {batch["iteration"] for batch, is_bad in zip(saved, bad, strict=True) if is_bad}
        == iterations
        != set()
    )
    assert case == "branch" or all(bad)  # the branch gathers what the other process made of the image
    warnings = [line for line in ended[0].err.splitlines() if "the iteration is skipped" in line]
    assert len(warnings) == len(iterations)
    assert all("loss_sem_seg is nan" in line and str(image) in line for line in warnings)
    checkpoint = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    assert checkpoint["trainer"]["_trainer"]["skipped"] == len(iterations)
    if case == "branch":
        assert checkpoint["model"]["hicl.bank.updates"] == 4 - len(iterations)

    ended = [child.wait() for child in start(2, tmp_path / "strict", root=own_data_root, **CASES[case])]
    assert [end.code for end in ended] == [2, 2]
    assert all("loss_sem_seg is nan" in end.err and str(image) in end.err for end in ended)


def test_processes_of_different_configs_are_no_run(start: Start, tmp_path: Path) -> None:
    """A mistake on one of several machines, or another run's process that met this one at the same port."""
    ended = [child.wait() for child in start(2, tmp_path / "run", own={1: ("SOLVER.BASE_LR", "0.5")})]
    assert [end.code for end in ended] == [2, 2]
    for end in ended:
        (line,) = end.err.splitlines()
        assert "different configs: SOLVER.BASE_LR is 0.05 in process 0 and 0.5 in process 1; give all" in line
    assert not (tmp_path / "run").exists()


def test_processes_may_differ_in_how_many_workers_load(start: Start, tmp_path: Path) -> None:
    _ends(start(2, tmp_path / "run", own={1: ("DATALOADER.NUM_WORKERS", "1")}))


@pytest.mark.parametrize("split", ["train", "val"])
def test_machines_with_other_files_are_refused(
    split: str, start: Start, data_root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "copy"
    shutil.copytree(data_root, other)
    with open(other / "tiny" / "images" / split / "0.png", "ab") as image:
        image.write(b"0")
    ended = [child.wait() for child in start(2, tmp_path / "run", roots={1: other})]
    assert [end.code for end in ended] == [2, 2]
    said = f"the files of tiny_{split} (names or sizes) are others in process 1 than in process 0; give all machines"
    assert all(said in end.err for end in ended)
    assert not (tmp_path / "run").exists()
    if split == "val":
        _ends(start(1, tmp_path / "run"))
        words = ("--eval-only", "--resume")
        ended = [child.wait() for child in start(2, tmp_path / "run", *words, roots={1: other})]
        assert all(said in end.err for end in ended)
