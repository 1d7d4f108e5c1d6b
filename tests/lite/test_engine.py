"""The built-in runtime's engine, where it goes beyond what Detectron2's figures show: precision, the CPU, errors."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from hicl_d2.command.errors import InputError
from hicl_d2.lite.checkpoint import DetectionCheckpointer
from hicl_d2.lite.config import CfgNode, get_cfg
from hicl_d2.lite.engine import (
    AMPTrainer,
    DefaultPredictor,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from hicl_d2.lite.modeling import META_ARCH_REGISTRY
from hicl_d2.lite.utils.events import EventStorage


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        out = self.linear(batch)
        self.dtype = out.dtype
        return {"loss_a": out.square().mean(), "loss_b": out.abs().mean()}


def _trainer(kind: type[SimpleTrainer] = SimpleTrainer, **options: Any) -> SimpleTrainer:
    model = Model()
    return kind(model, [torch.ones(3, 4)] * 10, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def _weight_after(trainer: SimpleTrainer, iterations: int = 3) -> Tensor:
    trainer.train(0, iterations)
    return trainer.model.linear.weight.detach()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_mixed_precision_on_the_cpu_stays_close_to_full(precision: torch.dtype) -> None:
    trainer = _trainer(AMPTrainer, precision=precision)
    assert trainer.grad_scaler.is_enabled() == (precision is torch.float16)
    trainer.grad_scaler = GradScaler("cpu", init_scale=16.0, enabled=precision is torch.float16)
    found = _weight_after(trainer)
    assert trainer.model.dtype is precision
    torch.testing.assert_close(found, _weight_after(_trainer()), atol=2e-2, rtol=0)


def test_the_scale_of_gradients_is_logged_and_resumed() -> None:
    first, second = (_trainer(AMPTrainer, log_grad_scaler=True) for _ in range(2))
    first.train(0, 2)
    assert first.storage.latest()["[metric]grad_scaler"][0] == first.grad_scaler.get_scale()
    second.load_state_dict(first.state_dict())
    assert second.grad_scaler.state_dict() == first.grad_scaler.state_dict()


def test_clearing_gradients_before_or_after_the_forward_pass_is_the_same() -> None:
    before = _weight_after(_trainer(zero_grad_before_forward=True))
    assert torch.equal(before, _weight_after(_trainer()))


def test_losses_are_gathered_every_few_iterations() -> None:
    trainer = _trainer(gather_metric_period=2)
    trainer.train(0, 5)
    assert [iteration for _, iteration in trainer.storage.history("total_loss").values()] == [1, 3]


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    trainer = _trainer()
    trainer.model.linear.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="iteration=0"):
        trainer.train(0, 3)


def test_a_model_in_eval_mode_is_not_trained() -> None:
    trainer = _trainer()
    trainer.model.eval()
    with pytest.raises(AssertionError, match="eval mode"):
        trainer.train(0, 1)


def test_the_loader_can_be_replaced() -> None:
    trainer = _trainer()
    _weight_after(trainer, 1)
    trainer.reset_data_loader(lambda: [torch.zeros(3, 4)])
    assert next(trainer._data_loader_iter).sum() == 0


class Counter(HookBase):
    def __init__(self) -> None:
        self.count = 0

    def after_step(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Loop(TrainerBase):
    def run_step(self) -> None:
        pass


def test_the_state_of_hooks_is_kept_by_class(caplog: pytest.LogCaptureFixture) -> None:
    first, second, bare = Loop(), Loop(), Loop()
    first.register_hooks([Counter()])
    first.train(0, 3)
    second.register_hooks([hooks.IterationTimer(), Counter()])
    state = first.state_dict()
    second.load_state_dict(state)
    assert (second._hooks[1].count, second.iter) == (3, 3)
    with caplog.at_level(logging.WARNING, logger="hicl_d2.lite"):
        bare.load_state_dict(state)
    assert "Cannot find the hook 'Counter'" in caplog.text


def test_an_evaluation_must_give_numbers() -> None:
    loop = Loop()
    loop.register_hooks([hooks.EvalHook(0, lambda: {"a": {"b": "x"}})])
    with pytest.raises(ValueError, match="a/b is 'x'"):
        loop.train(0, 1)


def test_a_metric_that_is_missing_chooses_no_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    loop.register_hooks([hooks.BestCheckpointer(0, None, "sem_seg/mIoU")])
    with caplog.at_level(logging.WARNING, logger="hicl_d2.lite"):
        loop.train(0, 1)
    assert "sem_seg/mIoU was not computed" in caplog.text


def _ddp_gradient(folder: str) -> None:
    rank = torch.distributed.get_rank()
    model = create_ddp_model(nn.Linear(2, 1), broadcast_buffers=False)
    model(torch.full((1, 2), float(rank))).sum().backward()
    gradient = model.module.weight.grad.tolist()
    (Path(folder) / f"{rank}.json").write_text(json.dumps([type(model).__name__, gradient]))


def test_processes_on_the_cpu_share_gradients(tmp_path: Path) -> None:
    launch(_ddp_gradient, 2, dist_url="auto", args=(str(tmp_path),))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found == [["DistributedDataParallel", [[0.5, 0.5]]]] * 2


def test_a_single_process_is_this_one() -> None:
    seen: list[int] = []
    launch(seen.append, 1, args=(7,))
    assert seen == [7]
    model = nn.Linear(1, 1)
    assert create_ddp_model(model) is model


def test_a_free_port_is_for_one_machine() -> None:
    with pytest.raises(InputError, match="tcp://HOST:PORT"):
        launch(print, 2, num_machines=2, dist_url="auto")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--num-gpus 2, but this machine has 1"):
        launch(print, 2)


def test_what_only_detectron2_has_says_so() -> None:
    for ask in (
        lambda: hooks.PreciseBN,
        lambda: hooks.TorchProfiler,
        lambda: _trainer(async_write_metrics=True),
    ):
        with pytest.raises(ImportError, match="this needs Detectron2"):
            ask()
    cfg = get_cfg()
    cfg.TEST.PRECISE_BN.ENABLED = True
    trainer = DefaultTrainer.__new__(DefaultTrainer)
    trainer.cfg = cfg
    with pytest.raises(ImportError, match=r"TEST\.PRECISE_BN\.ENABLED: this needs Detectron2"):
        trainer.build_hooks()


class Brightness(nn.Module):
    """Answers with the mean of each channel of what it is given."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        image = batch[0]["image"]
        return [{"mean": self.scale * image.mean((1, 2)), "shape": tuple(image.shape), **batch[0]}]


@pytest.fixture
def brightness_cfg(tmp_path: Path) -> CfgNode:
    if "Brightness" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(Brightness)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "Brightness", "cpu"
    cfg.INPUT.MIN_SIZE_TEST = 8
    cfg.DATASETS.TEST = ("brightness",)
    weights = Brightness(cfg)
    weights.scale.data.fill_(2.0)
    DetectionCheckpointer(weights, str(tmp_path)).save("weights")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    return cfg


@pytest.mark.parametrize(("order", "means"), [("BGR", [2.0, 4.0, 6.0]), ("RGB", [6.0, 4.0, 2.0])])
def test_the_predictor_resizes_orders_channels_and_loads_weights(
    order: str, means: list[float], brightness_cfg: CfgNode
) -> None:
    brightness_cfg.INPUT.FORMAT = order
    image = np.broadcast_to(np.array([1, 2, 3], np.uint8), (4, 6, 3))
    predictor = DefaultPredictor(brightness_cfg)
    found = predictor(np.ascontiguousarray(image))
    assert found["mean"].tolist() == means
    assert (found["shape"], found["height"], found["width"]) == ((3, 8, 12), 4, 6)
    assert not found["mean"].requires_grad
    assert predictor.metadata.name == "brightness"


def test_setting_up_writes_the_config_and_the_log_and_seeds(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path / "run"), 5
    drawn = []
    for _ in range(2):
        default_setup(cfg, default_argument_parser().parse_args([]))
        drawn.append(torch.rand(2))
    assert torch.equal(*drawn)
    assert (tmp_path / "run/config.yaml").read_text() == cfg.dump()
    assert "Running with full config" in (tmp_path / "run/log.txt").read_text()


def test_the_usual_writers(tmp_path: Path) -> None:
    writers = default_writers(str(tmp_path / "run"), 3)
    with EventStorage() as storage:
        storage.put_scalar("total_loss", 1.0)
        for writer in writers:
            writer.write()
            writer.close()
    names = {path.name.split(".")[0] for path in (tmp_path / "run").iterdir()}
    assert names == {"metrics", "events"}
