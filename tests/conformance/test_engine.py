"""The training loop, its hooks, the default trainer and launching are Detectron2's."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.conformance.runtimes import golden, load, needs_detectron2, plain

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


def _trainer_class(runtime: str) -> Any:
    engine, evaluation = load(runtime, "engine"), load(runtime, "evaluation")
    registry = load(runtime, "modeling").META_ARCH_REGISTRY
    if "TinyModel" not in registry:
        registry.register(TinyModel)

    class Evaluator(evaluation.DatasetEvaluator):
        rounds = 0

        def evaluate(self) -> dict[str, Any]:
            Evaluator.rounds += 1
            return {"sem_seg": {"mIoU": 10.0 * Evaluator.rounds, "IoU-a": 1.0}}

    class Tiny(engine.DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg: Any) -> Any:
            return _batches()

        @classmethod
        def build_test_loader(cls, cfg: Any, dataset_name: str) -> Any:
            return [next(_batches())]

        @classmethod
        def build_evaluator(cls, cfg: Any, dataset_name: str) -> Any:
            return Evaluator()

        @classmethod
        def test(cls, cfg: Any, model: Any, evaluators: Any = None) -> Any:
            model.losses = cfg.GLOBAL.HACK
            return super().test(cfg, model, evaluators)

    return Tiny


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
        trainer = _trainer_class(runtime)(cfg)
        trainer.resume_or_load(resume=False)
        returned = trainer.train()
        files = sorted(path.name for path in Path(folder).iterdir() if path.suffix in (".pth", ".json"))
        state = torch.load(Path(folder) / "model_0000009.pth", weights_only=False)
        inner = state["trainer"]
        resumed = _trainer_class(runtime)(cfg)
        (Path(folder) / "last_checkpoint").write_text("model_0000009.pth")
        resumed.resume_or_load(resume=True)
        return {
            "files": files,
            "lines": _lines(folder),
            "returned": returned,
            "iteration": [trainer.iter, trainer.start_iter, trainer.max_iter],
            "checkpoint": {name: sorted(state[name]) for name in ("model", "trainer")},
            "saved iteration": [state["iteration"], inner["iteration"], inner["_trainer"]["iteration"]],
            "states": [sorted(inner["hooks"]), sorted(inner["_trainer"])],
            "resumed": [resumed.start_iter, round(resumed.optimizer.param_groups[0]["lr"], 9)],
            "hooks": [type(hook).__name__ for hook in trainer._hooks],
        }


def _last_checkpoint(runtime: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer_class(runtime)(_config(runtime, folder, 1))
        trainer.resume_or_load()
        trainer.train()
        return (Path(folder) / "last_checkpoint").read_text()


def _hook_order(runtime: str) -> list[str]:
    engine = load(runtime, "engine")
    seen: list[str] = []

    class Loop(engine.TrainerBase):
        def run_step(self) -> None:
            seen.append(f"step {self.iter} {self.storage.iter}")
            self.after_backward()
            if self.max_iter == 3 and self.iter == 1:
                raise ValueError

    class Spy(engine.HookBase):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith(("before", "after")):
                seen.append(f"{name} {object.__getattribute__(self, 'trainer').iter}")
            return super().__getattribute__(name)

    for max_iter in (2, 3):
        loop = Loop()
        callbacks = {
            name: lambda trainer, name=name: seen.append(f"called {name} {trainer.iter}")
            for name in ("before_train", "after_train", "before_step", "after_step")
        }
        loop.register_hooks([Spy(), None, engine.hooks.CallbackHook(**callbacks)])
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


def _best(runtime: str, mode: str) -> list[Any]:
    engine = load(runtime, "engine")
    saved: list[Any] = []
    figures = iter([0.5, float("nan"), 0.7, 0.6, 0.9])

    class Keeper:
        def save(self, name: str, **state: Any) -> None:
            saved.append([name, state])

    class Loop(engine.TrainerBase):
        def run_step(self) -> None:
            pass

    loop = Loop()
    evaluate = engine.hooks.EvalHook(2, lambda: {"sem_seg": {"mIoU": next(figures)}})
    best = engine.hooks.BestCheckpointer(2, Keeper(), "sem_seg/mIoU", mode)
    loop.register_hooks([evaluate, best])
    loop.train(0, 10)
    return [saved, best.best_metric, best.best_iter]


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
    cfg = load(runtime, "config").get_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = reference
    cfg.TEST.EVAL_PERIOD = 999
    cfg.freeze()
    scaled = load(runtime, "engine").DefaultTrainer.auto_scale_workers(cfg, workers)
    keys = ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "WARMUP_ITERS", "STEPS", "CHECKPOINT_PERIOD")
    figures = {key: scaled.SOLVER[key] for key in (*keys, "REFERENCE_WORLD_SIZE")}
    return {**figures, "period": scaled.TEST.EVAL_PERIOD, "frozen": scaled.is_frozen(), "same": scaled is cfg}


def _arguments(runtime: str) -> list[dict[str, Any]]:
    parser = load(runtime, "engine").default_argument_parser()
    overrides = ["--config-file", "f", "--num-gpus", "2", "--resume", "A.B", "1", "--eval-only"]
    given = [vars(parser.parse_args([])), vars(parser.parse_args(overrides))]
    for arguments in given:  # the port is the user's own
        scheme, host, port = arguments["dist_url"].split(":")
        arguments["dist_url"] = [scheme, host, int(port) - hash(os.getuid()) % 2**14]
    return given


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
        "best": [_best(runtime, "max"), _best(runtime, "min")],
        "shown learning rate": _shown_groups(runtime),
        "scaled": [_scaled(runtime, *case) for case in ((8, 16), (8, 4), (8, 8), (0, 3))],
        "arguments": _arguments(runtime),
        "launched": [_launched(runtime, 1), _launched(runtime, 2)],
    }


def _comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Return the figures as JSON gives them back, NaN as text (it does not equal itself)."""
    return json.loads(json.dumps(plain(found)).replace("NaN", '"NaN"'))


def test_lite_trains_as_the_recorded_detectron2() -> None:
    expected = json.loads(json.dumps(golden("engine")).replace("NaN", '"NaN"'))
    found = _comparable(figures("lite"))
    for name, figure in expected.items():
        assert found[name] == figure, name


@needs_detectron2
def test_the_record_is_that_of_the_installed_detectron2() -> None:
    expected = json.loads(json.dumps(golden("engine")).replace("NaN", '"NaN"'))
    assert _comparable(figures("detectron2")) == expected


@needs_detectron2
@pytest.mark.parametrize(("writer", "reader"), [("lite", "detectron2"), ("detectron2", "lite")])
def test_a_run_of_either_runtime_resumes_in_the_other(writer: str, reader: str, tmp_path: Path) -> None:
    first = _trainer_class(writer)(_config(writer, str(tmp_path), 2))
    first.resume_or_load()
    first.train()
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    second = _trainer_class(reader)(_config(reader, str(tmp_path), 2))
    second.resume_or_load()
    saved = torch.load(tmp_path / "model_0000019.pth", weights_only=True)
    assert second.start_iter == 20
    assert torch.equal(second.model.linear.weight, saved["model"]["linear.weight"])
    momentum = saved["trainer"]["_trainer"]["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(second.optimizer.state_dict()["state"][0]["momentum_buffer"], momentum)
    assert second.scheduler.last_epoch == 20
