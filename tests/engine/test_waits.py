"""A whole training step makes the host wait for the device once: for the losses and the norm of the gradients, together."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hicl_d2.contrast.fused import host
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.modeling import build_model
from hicl_d2.d2.structures import ImageList
from hicl_d2.d2.utils import EventStorage
from hicl_d2.engine import step
from hicl_d2.engine.optimizer import build_optimizer
from hicl_d2.engine.step import StepTrainer
from tests.contrast.contrast_tester import ForbidWaiting
from tests.modeling.deeplab.models import deeplab_cfg, make_batch
from tests.modeling.hugging_face.test_segmentor import make_cfg
from tests.modeling.mask_former.models import mask_former_cfg


def _config(architecture: str, clipping: str) -> CfgNode:
    cfg = deeplab_cfg(crop=(64, 64))
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.HICL.BASE = architecture, "SemanticSegmentor"
    cfg.MODEL.HICL.FEATURE = cfg.MODEL.HICL.LOGITS = "sem_seg_head.predictor"
    cfg.MODEL.HICL.WINDOWS, cfg.MODEL.HICL.WARMUP_ITERS = [1, 2], 0
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clipping != "none"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clipping if clipping != "none" else "value"
    return cfg


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return what is brought over, transfer by transfer; models and contrasts work as on a GPU."""
    found: list[list[str]] = []
    as_numbers = step.as_numbers

    def counted(losses: Mapping[str, Tensor]) -> dict[str, float]:
        found.append(list(losses))
        return as_numbers(losses)

    def stacked(tensors: Sequence[Tensor], *args: Any, **kwargs: Any) -> ImageList:
        return ImageList(torch.stack(list(tensors)), [(each.shape[-2], each.shape[-1]) for each in tensors])

    # Detectron2's asks tensors for the images' sizes, in the host's memory on any device.
    monkeypatch.setattr(ImageList, "from_tensors", staticmethod(stacked))
    monkeypatch.setattr(step, "as_numbers", counted)
    monkeypatch.setattr(host, "on_host", lambda tensor: False)
    return found


@pytest.mark.parametrize("loss", ["cross_entropy", "hard_pixel_mining"])
def test_class_weights_make_no_step_wait(loss: str, transfers: list[list[str]]) -> None:
    cfg = _config("SemanticSegmentor", "none")
    head = cfg.MODEL.SEM_SEG_HEAD
    head.LOSS_TYPE, head.CLASS_WEIGHTS = loss, [0.5] * head.NUM_CLASSES
    model = build_model(cfg)
    trainer = StepTrainer(model, [make_batch((64, 64), (64, 64))], build_optimizer(cfg, model), seed=1)
    with EventStorage(), ForbidWaiting():
        trainer.run_step()
    assert len(transfers) == 1


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clipping", ["none", "full_model"])
@pytest.mark.parametrize("architecture", ["SemanticSegmentor", "HiCL"])
def test_a_step_waits_once(
    architecture: str, clipping: str, precision: torch.dtype | None, transfers: list[list[str]]
) -> None:
    cfg = _config(architecture, clipping)
    model = build_model(cfg)
    batch = make_batch((64, 64), (64, 64))
    trainer = StepTrainer(model, [batch] * 3, build_optimizer(cfg, model), seed=1, precision=precision)
    before = [parameter.clone() for parameter in model.parameters()]
    with EventStorage() as storage:
        for trainer.iter in range(2):
            storage.iter = trainer.iter
            with ForbidWaiting():
                trainer.run_step()
    losses = ["loss_sem_seg"] + (["loss_hicl"] if architecture == "HiCL" else [])
    gradient = [] if precision is torch.float16 else [step.GRADIENT]
    assert transfers == [losses + gradient] * 2
    assert any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_only_a_norm_that_is_not_finite_is_looked_at_again(transfers: list[list[str]]) -> None:
    class Model(torch.nn.Linear):
        def forward(self, batch: Any) -> dict[str, Tensor]:
            return {"loss": self.weight.sum() * 1e30}  # whose square overflows

    model = Model(2, 2)
    trainer = StepTrainer(model, [0], torch.optim.SGD(model.parameters(), lr=1e-30), seed=1)
    with EventStorage():
        trainer.run_step()
    assert transfers == [["loss", step.GRADIENT], [step.GRADIENT]]
    assert math.isfinite(model.weight.sum().item())


class ForbidWaitingCopies(TorchFunctionMode):
    """Fail on a copy to a device that makes the host wait; ``count`` the others."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to and any(
            isinstance(each, torch.device | str) for each in (*args, *kwargs.values())
        ):
            assert kwargs.get("non_blocking"), "a copy makes the host wait"
            self.count += 1
        return func(*args, **kwargs)


@pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2's own model waits for its copies")
@pytest.mark.parametrize(
    "config",
    [_config("HiCL", "none"), mask_former_cfg(), make_cfg("segformer")],
    ids=["deeplab", "mask_former", "transformers"],
)
def test_images_and_labels_are_copied_without_waiting(config: CfgNode) -> None:
    model, batch = build_model(config).train(), make_batch((64, 64), (64, 64))
    with EventStorage(), ForbidWaitingCopies() as copies:
        sum(model(batch).values()).backward()
    assert copies.count >= 2 * len(batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", ["SemanticSegmentor", "HiCL"])
def test_a_step_on_a_gpu_waits_once(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_numbers, counted = step.as_numbers, []

    def waiting(losses: Mapping[str, Tensor]) -> dict[str, float]:
        counted.append(len(losses))
        torch.cuda.set_sync_debug_mode("default")
        try:
            return as_numbers(losses)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    cfg = _config(architecture, "full_model")
    cfg.MODEL.DEVICE = "cuda"
    model = build_model(cfg)
    batch = [
        {name: each.pin_memory() if isinstance(each, Tensor) else each for name, each in entry.items()}
        for entry in make_batch((64, 64), (64, 64))
    ]
    trainer = StepTrainer(model, [batch] * 3, build_optimizer(cfg, model), seed=1, precision=torch.bfloat16)
    with EventStorage() as storage:
        trainer.run_step()  # the first step makes what later ones use
        monkeypatch.setattr(step, "as_numbers", waiting)
        storage.iter = trainer.iter = 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.run_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(counted) == 1
