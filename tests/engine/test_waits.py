"""A whole training step makes the host wait for the device once: for the losses and the norm of the gradients, together."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hicl_d2.contrast.fused import host
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.modeling import build_model
from hicl_d2.d2.structures import ImageList
from hicl_d2.d2.utils import EventStorage
from hicl_d2.engine import step
from hicl_d2.engine.optimizer import build_optimizer
from hicl_d2.engine.step import StepTrainer
from tests.contrast.contrast_tester import ForbidWaiting
from tests.modeling.deeplab.models import deeplab_cfg, make_batch


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
