"""Schedules against their formulas, groups against a loop, clipping against its definition."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.lite import solver
from hicl_d2.lite.config import CfgNode, get_cfg
from hicl_d2.lite.projects.deeplab import WarmupPolyLR
from hicl_d2.lite.projects.deeplab import build_lr_scheduler as build_deeplab_scheduler
from hicl_d2.lite.projects.deeplab_config import add_deeplab_config


def _config(**options: Any) -> CfgNode:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.SOLVER.MAX_ITER = 100
    cfg.SOLVER.WARMUP_ITERS = 10
    cfg.SOLVER.WARMUP_FACTOR = 0.1
    for key, value in options.items():
        cfg.merge_from_list([f"SOLVER.{key.replace('__', '.')}", value])
    return cfg


def _rates(cfg: CfgNode) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build_deeplab_scheduler(cfg, optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(cfg.SOLVER.MAX_ITER):  # as the trainer, which also steps after the last iteration
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def _warmup(iteration: int) -> float:
    return min(0.1 + 0.9 * iteration / 10, 1.0)


def test_poly_is_its_formula() -> None:
    rates = _rates(_config(LR_SCHEDULER_NAME="WarmupPolyLR"))
    assert rates == pytest.approx([2.0 * _warmup(i) * (1 - i / 100) ** 0.9 for i in range(101)])
    assert rates[-1] == 0.0


def test_poly_does_not_fall_below_its_ending() -> None:
    rates = _rates(_config(LR_SCHEDULER_NAME="WarmupPolyLR", POLY_LR_CONSTANT_ENDING=0.3))
    assert rates == pytest.approx([2.0 * max((1 - i / 100) ** 0.9, 0.3) * _warmup(i) for i in range(101)])


def test_cosine_is_its_formula() -> None:
    rates = _rates(
        _config(LR_SCHEDULER_NAME="WarmupCosineLR", WARMUP_ITERS=0, BASE_LR=0.01, BASE_LR_END=0.001)
    )
    end = 0.1
    formula = [2.0 * (end + (1 - end) * (1 + math.cos(math.pi * i / 100)) / 2) for i in range(101)]
    assert rates == pytest.approx(formula)


def test_steps_multiply_by_gamma_after_a_linear_rise() -> None:
    rates = _rates(_config(STEPS=(50, 80), GAMMA=0.5))
    assert rates == pytest.approx([2.0 * _warmup(i) * 0.5 ** ((i >= 50) + (i >= 80)) for i in range(101)])


def test_steps_beyond_the_run_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert _rates(_config(STEPS=(50, 30000))) == pytest.approx(_rates(_config(STEPS=(50,))))
    assert "SOLVER.STEPS beyond SOLVER.MAX_ITER (100) are ignored" in caplog.text


def test_an_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"'WarmupPoly'; did you mean WarmupPolyLR\?; expected one of WarmupMulti"
    ):
        _rates(_config(LR_SCHEDULER_NAME="WarmupPoly"))


def test_a_multiplier_must_be_a_schedule() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="must be a ParamScheduler"):
        solver.LRMultiplier(optimizer, lambda where: where, 10)  # type: ignore[arg-type]


def test_the_state_of_poly_restores_it() -> None:
    def made() -> tuple[torch.optim.Optimizer, WarmupPolyLR]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, WarmupPolyLR(optimizer, 50, warmup_iters=5)

    optimizer, schedule = made()
    for _ in range(20):
        optimizer.step()
        schedule.step()
    again, resumed = made()
    resumed.load_state_dict(schedule.state_dict())
    again.load_state_dict(optimizer.state_dict())
    again.step()
    resumed.step()
    assert again.param_groups[0]["lr"] == pytest.approx((1 - 21 / 50) ** 0.9)


# --------------------------------------------------------------------------------------------------
# Optimiser


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.tied = self.body[0]
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def _backward(model: nn.Module, factor: float = 100.0) -> None:
    model.zero_grad()
    (model.body(torch.ones(2, 3, 5, 5)).sum() * factor).backward()


def test_every_trainable_parameter_is_in_one_group_once() -> None:
    model = _Model()
    groups = solver.get_default_optimizer_params(model, 0.1, weight_decay=1e-4, weight_decay_norm=0.0)
    grouped = [parameter for group in groups for parameter in group["params"]]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(grouped) == len(set(grouped)) == len(wanted)
    assert set(grouped) == set(wanted)
    decayed = {parameter for group in groups if group["weight_decay"] > 0 for parameter in group["params"]}
    assert decayed == set(model.body[0].parameters()) | set(model.body[3].parameters())


def test_the_callers_overrides_are_left_alone() -> None:
    overrides = {"weight": {"lr": 1.0}}
    solver.get_default_optimizer_params(_Model(), 0.1, weight_decay_bias=0.0, overrides=overrides)
    assert overrides == {"weight": {"lr": 1.0}}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("clip_type", ["value", "norm"])
def test_gradients_are_clipped_parameter_by_parameter(kind: Any, clip_type: str) -> None:
    cfg = _config(
        CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE=clip_type, CLIP_GRADIENTS__CLIP_VALUE=0.05
    )
    model, twin = _Model(), _Model()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = solver.maybe_add_gradient_clipping(cfg, kind(parameters, lr=0.1))
    plain = kind([parameter for parameter in twin.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(2):
        _backward(model)
        _backward(twin)
        for parameter in twin.parameters():
            if parameter.grad is not None and clip_type == "value":
                parameter.grad.clamp_(-0.05, 0.05)
            elif parameter.grad is not None:
                parameter.grad *= min(1.0, 0.05 / (parameter.grad.norm().item() + 1e-6))
        optimizer.step()
        plain.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert isinstance(optimizer, kind)
    assert type(optimizer).__name__ == f"{kind.__name__}WithGradientClip"


@pytest.mark.parametrize("clip_type", ["value", "norm"])
def test_parameters_without_a_gradient_are_left_out_of_the_clipping(clip_type: str) -> None:
    cfg = _config(CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE=clip_type)
    used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = solver.maybe_add_gradient_clipping(cfg, torch.optim.SGD([unused, used], lr=0.1))
    used.grad = torch.full((1,), 30.0)
    optimizer.step()
    assert (used.item(), unused.item()) == (pytest.approx(0.9), 1.0)


def test_a_closure_is_passed_through_the_clipping() -> None:
    cfg = _config(CLIP_GRADIENTS__ENABLED=True)
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = solver.maybe_add_gradient_clipping(cfg, torch.optim.SGD([parameter], lr=0.1))
    assert optimizer.step(lambda: 3.0) == 3.0


def test_without_clipping_the_optimiser_is_returned_as_it_is() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    assert solver.maybe_add_gradient_clipping(_config(), optimizer) is optimizer
    assert type(optimizer) is torch.optim.SGD


def test_an_unknown_clipping_names_the_known_ones() -> None:
    cfg = _config(CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE="most")
    with pytest.raises(InputError, match=r"CLIP_TYPE is 'most'; expected one of value, norm"):
        solver.maybe_add_gradient_clipping(cfg, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
