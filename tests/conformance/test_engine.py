"""The training loop, its hooks, the scaling rule and launching are Detectron2's; runs go on in either trainer."""

import json
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.engine.scaling import scale_to_processes
from hicl_d2.engine.trainer import Trainer
from tests.conformance.runtimes import golden, load, needs_detectron2, plain
from tests.support import tiny

TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}


class TinyModel(nn.Module):
    """One linear map with one or two losses; registered in either runtime's registry."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)
        self.losses = cfg.GLOBAL.HACK

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        error = self.linear(torch.stack([entry["x"] for entry in batch])).square().mean()
        return {"loss_a": error, "loss_b": 0.5 * error} if self.losses == 2 else {"loss_a": error}


def _batches() -> Any:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield [{"x": torch.randn(3, generator=generator)} for _ in range(2)]


def _evaluator(runtime: str) -> Any:
    """Return an evaluator whose score grows by 10 with every evaluation."""

    class Evaluator(load(runtime, "evaluation").DatasetEvaluator):
        rounds = 0

        def evaluate(self) -> dict[str, Any]:
            self.rounds += 1
            return {"sem_seg": {"mIoU": 10.0 * self.rounds, "IoU-a": 1.0}}

    return Evaluator()


def _default_trainer(cfg: Any) -> Any:
    """Return Detectron2's DefaultTrainer of the tiny model."""
    registry = load("detectron2", "modeling").META_ARCH_REGISTRY
    if "TinyModel" not in registry:
        registry.register(TinyModel)
    evaluator = _evaluator("detectron2")

    class Tiny(load("detectron2", "engine").DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg: Any) -> Any:
            return _batches()

        @classmethod
        def build_test_loader(cls, cfg: Any, dataset_name: str) -> Any:
            return [next(_batches())]

        @classmethod
        def build_evaluator(cls, cfg: Any, dataset_name: str) -> Any:
            return evaluator

    return Tiny(cfg)


class _Lines:
    """The lines that Detectron2's JSONWriter appends to metrics.json."""

    def __init__(self, folder: str, current: Any) -> None:
        self.path, self.current, self.newest = Path(folder) / "metrics.json", current, -1

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in self.current().latest_with_smoothing_hint(20).items():
            if iteration > self.newest:
                lines.setdefault(iteration, {"iteration": iteration})[name] = value
        with self.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines.values())
        self.newest = max(lines, default=self.newest)

    def close(self) -> None:
        pass


def _lite_trainer(cfg: Any) -> Any:
    """Return the same training, put together from lite's loop, hooks, schedule, checkpointer and evaluation."""
    engine, evaluation = load("lite", "engine"), load("lite", "evaluation")
    events = load("lite", "utils.events")
    evaluator = _evaluator("lite")

    class Writer(_Lines, events.EventWriter):
        pass

    class Tiny(engine.TrainerBase):
        def __init__(self) -> None:
            super().__init__()
            self.max_iter = cfg.SOLVER.MAX_ITER
            self.model, self.batches = TinyModel(cfg).train(), _batches()
            groups = load("lite", "solver").get_default_optimizer_params(
                self.model, cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
            )
            self.optimizer = torch.optim.SGD(groups, momentum=cfg.SOLVER.MOMENTUM)
            self.scheduler = load("lite", "solver").build_lr_scheduler(cfg, self.optimizer)
            checkpointer = load("lite", "checkpoint").DetectionCheckpointer
            self.checkpointer = checkpointer(self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
            hooks = engine.hooks
            self.register_hooks(
                [
                    hooks.IterationTimer(),
                    hooks.LRScheduler(),
                    hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD),
                    hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self.evaluate),
                    hooks.PeriodicWriter([Writer(cfg.OUTPUT_DIR, events.get_event_storage)], period=20),
                ]
            )

        def evaluate(self) -> Any:
            return evaluation.inference_on_dataset(self.model, [next(_batches())], evaluator)

        def resume_or_load(self, resume: bool) -> None:
            self.checkpointer.resume_or_load("", resume=resume)
            self.start_iter = self.iter + 1 if resume else 0

        def train(self) -> None:
            super().train(self.start_iter, self.max_iter)

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

        def load_state_dict(self, state_dict: Any) -> None:
            super().load_state_dict(state_dict)
            self.optimizer.load_state_dict(state_dict["optimizer"])

        def run_step(self) -> None:
            losses = self.model(next(self.batches))
            self.optimizer.zero_grad()
            sum(losses.values()).backward()
            values = {name: loss.item() for name, loss in losses.items()}
            self.storage.put_scalars(total_loss=sum(values.values()), **(values if len(values) > 1 else {}))
            self.optimizer.step()

    return Tiny()


def _trainer(runtime: str, cfg: Any) -> Any:
    return _lite_trainer(cfg) if runtime == "lite" else _default_trainer(cfg)


def _config(runtime: str, folder: str, losses: int) -> Any:
    cfg = load(runtime, "config").get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "TinyModel"
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = folder
    cfg.GLOBAL.HACK = float(losses)
    cfg.DATASETS.TEST = ("tiny",)
    cfg.TEST.EVAL_PERIOD = 10
    solver = cfg.SOLVER
    solver.MAX_ITER, solver.CHECKPOINT_PERIOD, solver.WARMUP_ITERS, solver.STEPS = 25, 10, 5, (15,)
    return cfg


def _lines(folder: str) -> list[dict[str, Any]]:
    text = (Path(folder) / "metrics.json").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [{k: round(v, 6) for k, v in line.items() if k not in TIMES} for line in found]


def _training(runtime: str, losses: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        cfg = _config(runtime, folder, losses)
        trainer = _trainer(runtime, cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        files = sorted(path.name for path in Path(folder).iterdir() if path.suffix in (".pth", ".json"))
        state = torch.load(Path(folder) / "model_0000009.pth", weights_only=False)
        resumed = _trainer(runtime, cfg)
        (Path(folder) / "last_checkpoint").write_text("model_0000009.pth")
        resumed.resume_or_load(resume=True)
        return {
            "files": files,
            "lines": _lines(folder),
            "iteration": [trainer.iter, trainer.start_iter, trainer.max_iter],
            "model": sorted(state["model"]),
            "saved iteration": [state["iteration"], state["trainer"]["iteration"]],
            "states": sorted(state["trainer"]["hooks"]),
            "resumed": [resumed.start_iter, round(resumed.optimizer.param_groups[0]["lr"], 9)],
            "hooks": [type(hook).__name__ for hook in trainer._hooks],
        }


def _last_checkpoint(runtime: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(runtime, _config(runtime, folder, 1))
        trainer.resume_or_load(resume=False)
        trainer.train()
        return (Path(folder) / "last_checkpoint").read_text()


def _hook_order(runtime: str) -> list[str]:
    engine = load(runtime, "engine")
    seen: list[str] = []

    class Loop(engine.TrainerBase):
        def run_step(self) -> None:
            seen.append(f"step {self.iter} {self.storage.iter}")
            if self.max_iter == 3 and self.iter == 1:
                raise ValueError

    class Spy(engine.HookBase):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith(("before", "after")):
                seen.append(f"{name} {object.__getattribute__(self, 'trainer').iter}")
            return super().__getattribute__(name)

    class Second(engine.HookBase):
        def before_train(self) -> None:
            seen.append(f"called before_train {self.trainer.iter}")

        def after_train(self) -> None:
            seen.append(f"called after_train {self.trainer.iter}")

        def before_step(self) -> None:
            seen.append(f"called before_step {self.trainer.iter}")

        def after_step(self) -> None:
            seen.append(f"called after_step {self.trainer.iter}")

    for max_iter in (2, 3):
        loop = Loop()
        loop.register_hooks([Spy(), None, Second()])
        try:
            loop.train(0, max_iter)
        except ValueError:
            seen.append("failed")
    return seen


def _evaluations(runtime: str, period: int, max_iter: int, start: int = 0) -> list[int]:
    engine = load(runtime, "engine")
    at: list[int] = []

    class Loop(engine.TrainerBase):
        def run_step(self) -> None:
            pass

    loop = Loop()
    loop.register_hooks([engine.hooks.EvalHook(period, lambda: at.append(loop.storage.iter))])
    loop.train(start, max_iter)
    return at


def _shown_groups(runtime: str) -> list[int]:
    choose = load(runtime, "engine").hooks.LRScheduler.get_best_param_group_id
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(6)]

    def group(*indices: int, lr: float) -> dict[str, Any]:
        return {"params": [parameters[i] for i in indices], "lr": lr}

    cases = [
        [group(0, lr=0.1), group(1, 2, lr=0.2), group(3, 4, lr=0.3)],
        [group(0, lr=0.1), group(1, lr=0.2), group(2, lr=0.2), group(3, lr=0.1), group(4, lr=0.2)],
        [group(0, lr=0.1), group(1, lr=0.2)],
    ]
    return [choose(torch.optim.SGD(groups, lr=1.0)) for groups in cases]


def _scaled(runtime: str, reference: int, workers: int) -> dict[str, Any]:
    """Scale a config by Detectron2's rule, or by the project's own, which is held to it."""
    cfg = get_hicl_cfg() if runtime == "lite" else load(runtime, "config").get_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = reference
    cfg.TEST.EVAL_PERIOD = 999
    cfg.freeze()
    scale = (
        scale_to_processes if runtime == "lite" else load(runtime, "engine").DefaultTrainer.auto_scale_workers
    )
    scaled = scale(cfg, workers)
    keys = ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "WARMUP_ITERS", "STEPS", "CHECKPOINT_PERIOD")
    figures = {key: scaled.SOLVER[key] for key in (*keys, "REFERENCE_WORLD_SIZE")}
    return {**figures, "period": scaled.TEST.EVAL_PERIOD, "frozen": scaled.is_frozen(), "same": scaled is cfg}


def report_rank(runtime: str, folder: str) -> None:
    """Write what one launched process knows of itself and of the others."""
    comm = load(runtime, "utils.comm")
    known = [comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size()]
    everyone = comm.all_gather(10 * comm.get_rank())
    (Path(folder) / f"{comm.get_rank()}.json").write_text(json.dumps([known, everyone]))


def _launched(runtime: str, processes: int) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        load(runtime, "engine").launch(report_rank, processes, dist_url="auto", args=(runtime, folder))
        return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def figures(runtime: str) -> dict[str, Any]:
    return {
        "one loss": _training(runtime, 1),
        "two losses": _training(runtime, 2),
        "last_checkpoint": _last_checkpoint(runtime),
        "hook order": _hook_order(runtime),
        "evaluations": [
            _evaluations(runtime, *case) for case in ((0, 5), (2, 5), (2, 6), (5, 5), (3, 7, 4), (2, 4, 4))
        ],
        "shown learning rate": _shown_groups(runtime),
        "scaled": [_scaled(runtime, *case) for case in ((8, 16), (8, 4), (8, 8), (0, 3))],
        "launched": [_launched(runtime, 1), _launched(runtime, 2)],
    }


def test_lite_trains_as_the_recorded_detectron2() -> None:
    found, expected = plain(figures("lite")), golden("engine")
    for name, figure in expected.items():
        assert found[name] == figure, name


@needs_detectron2
def test_the_record_is_that_of_the_installed_detectron2() -> None:
    assert plain(figures("detectron2")) == golden("engine")


@needs_detectron2
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7, 16, 24, 64])
@pytest.mark.parametrize("reference", [1, 2, 4, 8])
def test_the_scaling_rule_is_detectron2s(reference: int, processes: int) -> None:
    assert _scaled("lite", reference, processes) == _scaled("detectron2", reference, processes)


class _Ours(Trainer):
    """The project's trainer on the tiny model's batches."""

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        return _Batches()


class _Batches:
    num_images, start_iteration = 2, 0

    def __iter__(self) -> Any:
        return _batches()


def _made(writer: str, folder: Path) -> Any:
    cfg = get_hicl_cfg()
    cfg.merge_from_other_cfg(_config("detectron2", str(folder), 2))
    cfg.DATASETS.TEST, cfg.SEED = (), 0
    return _Ours(cfg) if writer == "ours" else _default_trainer(cfg)


@needs_detectron2
@pytest.mark.skipif(not USES_DETECTRON2, reason="the door does not lead to Detectron2 here")
@pytest.mark.parametrize(("writer", "reader"), [("ours", "detectron2"), ("detectron2", "ours")])
def test_a_run_of_detectron2s_trainer_resumes_in_ours_and_back(
    writer: str, reader: str, tmp_path: Path
) -> None:
    first = _made(writer, tmp_path)
    first.resume_or_load(resume=False)
    first.train()
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    second = _made(reader, tmp_path)
    second.resume_or_load()
    saved = torch.load(tmp_path / "model_0000019.pth", weights_only=True)
    assert second.start_iter == 20
    assert torch.equal(second.model.linear.weight, saved["model"]["linear.weight"])
    momentum = saved["trainer"]["_trainer"]["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(second.optimizer.state_dict()["state"][0]["momentum_buffer"], momentum)
    assert second.scheduler.last_epoch == 20


@needs_detectron2
@pytest.mark.skipif(not USES_DETECTRON2, reason="the door does not lead to Detectron2 here")
@pytest.mark.parametrize("norm", ["SyncBN", "naiveSyncBN"])
def test_the_norm_that_processes_on_a_cpu_are_told_to_take_trains(norm: str, tmp_path: Path) -> None:
    tiny.make_data(tmp_path)
    (tmp_path / "config.yaml").write_text(tiny.CONFIG)
    words = [
        "--config-file",
        str(tmp_path / "config.yaml"),
        "--num-gpus",
        "2",
        "MODEL.SEM_SEG_HEAD.NORM",
        norm,
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.tiny", *words, "OUTPUT_DIR", str(tmp_path / "run")],
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if norm == "naiveSyncBN":
        assert ended.returncode == 0, ended.stderr
        return
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert "SyncBN, which torch synchronises on GPUs alone" in line
    assert "naiveSyncBN" in line
    assert not (tmp_path / "run").exists()
