"""Schedules, parameter groups and gradient clipping are Detectron2's."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.conformance.runtimes import golden, load, needs_detectron2, plain

SCHEDULES: dict[str, list[Any]] = {
    "multistep": ["STEPS", (6, 9)],
    "multistep, a step beyond the end": ["STEPS", (4, 30)],
    "multistep, gamma": ["STEPS", (3,), "GAMMA", 0.5, "WARMUP_METHOD", "constant"],
    "multistep, rescaled": ["STEPS", (6, 9), "RESCALE_INTERVAL", True],
    "multistep, no warm-up": ["STEPS", (6, 9), "WARMUP_ITERS", 0],
    "multistep, warm-up longer than the run": ["STEPS", (6, 9), "WARMUP_ITERS", 40],
    "cosine": ["LR_SCHEDULER_NAME", "WarmupCosineLR"],
    "cosine to an end": [
        "LR_SCHEDULER_NAME",
        "WarmupCosineLR",
        "BASE_LR_END",
        0.002,
        "RESCALE_INTERVAL",
        True,
    ],
    "fixed gamma": ["LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "NUM_DECAYS", 3, "GAMMA", 0.2],
    "poly": ["LR_SCHEDULER_NAME", "WarmupPolyLR"],
    "poly, constant": [
        "LR_SCHEDULER_NAME",
        "WarmupPolyLR",
        "WARMUP_METHOD",
        "constant",
        "WARMUP_FACTOR",
        0.3,
    ],
    "poly with an ending": ["LR_SCHEDULER_NAME", "WarmupPolyLR", "POLY_LR_CONSTANT_ENDING", 0.25],
    "poly, power": ["LR_SCHEDULER_NAME", "WarmupPolyLR", "POLY_LR_POWER", 2.0, "WARMUP_ITERS", 0],
}
GROUPS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "learning rate": {"base_lr": 0.1},
    "norms": {"base_lr": 0.1, "weight_decay": 1e-4, "weight_decay_norm": 0.0},
    "biases": {"base_lr": 0.1, "weight_decay": 1e-4, "bias_lr_factor": 2.0, "weight_decay_bias": 0.0},
    "backbone": {"base_lr": 0.1, "lr_factor_func": lambda name: 0.1 if name.startswith("backbone") else 1.0},
    "overrides": {
        "base_lr": 0.1,
        "weight_decay_norm": 0.5,
        "overrides": {"table": {"lr": 0.3, "weight_decay": 0.0}},
    },
    "all": {
        "base_lr": 0.1,
        "weight_decay": 1e-4,
        "weight_decay_norm": 0.0,
        "bias_lr_factor": 2.0,
        "lr_factor_func": lambda name: 0.5 if "head" in name else 1.0,
        "overrides": {"weight": {"weight_decay": 0.7}},
    },
}


class _Model(nn.Module):
    """A model with every kind of parameter: norms, biases, frozen ones, shared ones, a bare one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, bias=False))
        self.head = nn.ModuleDict(
            {"norm": nn.GroupNorm(2, 4), "linear": nn.Linear(4, 2), "embedding": nn.Embedding(3, 4)}
        )
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True), nn.SyncBatchNorm(4)])
        self.table = nn.Parameter(torch.ones(2))
        self.alias = self.head["linear"]
        self.backbone[2].requires_grad_(False)


def _config(runtime: str, *options: Any) -> Any:
    cfg = load(runtime, "config").get_cfg()
    load(runtime, "projects.deeplab").add_deeplab_config(cfg)
    solver = ["MAX_ITER", 12, "BASE_LR", 0.01, "WARMUP_ITERS", 4, "WARMUP_FACTOR", 0.1, *options]
    for key, value in zip(solver[::2], solver[1::2], strict=True):
        cfg.merge_from_list([f"SOLVER.{key}", value])
    return cfg


def _digits(value: float) -> float:
    return float(f"{value:.12g}")


def _rates(runtime: str, options: list[Any]) -> list[list[float]]:
    """Return the learning rates of two groups over a whole run, as the trainer steps the schedule."""
    cfg = _config(runtime, *options)
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 0.1}], lr=cfg.SOLVER.BASE_LR
    )
    schedule = load(runtime, "projects.deeplab").build_lr_scheduler(cfg, optimizer)
    rates = [[_digits(group["lr"]) for group in optimizer.param_groups]]
    for _ in range(cfg.SOLVER.MAX_ITER - 1):
        optimizer.step()
        schedule.step()
        rates.append([_digits(group["lr"]) for group in optimizer.param_groups])
    return rates


def _groups(runtime: str, options: dict[str, Any]) -> list[Any]:
    model = _Model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = load(runtime, "solver").get_default_optimizer_params(model, **options)
    return [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "names": [names[p] for p in group["params"]],
        }
        for group in groups
    ]


def _build_optimizer(runtime: str, cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Return Detectron2's optimiser, or the same one made from lite's groups and lite's clipping."""
    solver, settings = load(runtime, "solver"), cfg.SOLVER
    if runtime == "detectron2":
        return solver.build_optimizer(cfg, model)
    groups = solver.get_default_optimizer_params(
        model,
        base_lr=settings.BASE_LR,
        weight_decay_norm=settings.WEIGHT_DECAY_NORM,
        bias_lr_factor=settings.BIAS_LR_FACTOR,
        weight_decay_bias=settings.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.SGD(
        groups,
        lr=settings.BASE_LR,
        momentum=settings.MOMENTUM,
        nesterov=settings.NESTEROV,
        weight_decay=settings.WEIGHT_DECAY,
        foreach=True,
    )
    return solver.maybe_add_gradient_clipping(cfg, optimizer)


def _trained(runtime: str, *options: Any) -> dict[str, Any]:
    """Return what three steps of the config's optimiser make of a model with large gradients."""
    cfg = _config(runtime, *options)
    model = _Model()
    optimizer = _build_optimizer(runtime, cfg, model)
    schedule = load(runtime, "solver").build_lr_scheduler(cfg, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        sum((parameter * 3.0).pow(2).sum() for parameter in model.parameters()).backward()
        optimizer.step()
        schedule.step()
    return {
        "class": type(optimizer).__name__,
        "defaults": {
            key: optimizer.defaults[key] for key in ("lr", "momentum", "nesterov", "weight_decay", "foreach")
        },
        "groups": [[_digits(g["lr"]), g["weight_decay"], len(g["params"])] for g in optimizer.param_groups],
        "gradients": {
            n: float(f"{p.grad.norm():.5g}") for n, p in model.named_parameters() if p.grad is not None
        },
        "sums": {
            name: float(f"{parameter.double().abs().sum():.5g}")
            for name, parameter in model.named_parameters()
        },
        "schedule": schedule.state_dict(),
    }


def figures(runtime: str) -> dict[str, Any]:
    clip = ("CLIP_GRADIENTS.ENABLED", True, "CLIP_GRADIENTS.CLIP_VALUE", 0.5, "CLIP_GRADIENTS.CLIP_TYPE")
    return {
        "schedules": {name: _rates(runtime, options) for name, options in SCHEDULES.items()},
        "groups": {name: _groups(runtime, options) for name, options in GROUPS.items()},
        "trained": {
            "plain": _trained(runtime),
            "nesterov, biases": _trained(
                runtime, "NESTEROV", True, "BIAS_LR_FACTOR", 2.0, "WEIGHT_DECAY_BIAS", 0.0
            ),
            "clipped by value": _trained(runtime, *clip, "value"),
            "clipped by norm": _trained(runtime, *clip, "norm"),
            "clipped by largest": _trained(runtime, *clip, "norm", "CLIP_GRADIENTS.NORM_TYPE", float("inf")),
        },
    }


def test_lite_equals_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("solver")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("solver")


def test_the_initial_learning_rate_is_what_the_multiplier_multiplies() -> None:
    for rates in golden("solver")["schedules"].values():
        assert all(second == pytest.approx(10 * first) for first, second in rates)


RUNTIMES = ["lite", pytest.param("detectron2", marks=needs_detectron2)]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "options",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": lambda name: 1.0},
        {"weight_decay_bias": 0.0, "overrides": {"bias": {"lr": 1.0}}},
    ],
)
def test_rules_without_a_base_or_in_conflict_are_refused(runtime: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"base_lr|bias"):
        load(runtime, "solver").get_default_optimizer_params(_Model(), **options)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_resumed_schedule_goes_on_where_it_was(runtime: str) -> None:
    for options in (SCHEDULES["multistep"], SCHEDULES["poly"]):
        cfg = _config(runtime, *options)
        build = load(runtime, "projects.deeplab").build_lr_scheduler
        optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01) for _ in range(2)]
        schedules = [build(cfg, optimizer) for optimizer in optimizers]
        for _ in range(7):
            optimizers[0].step()
            schedules[0].step()
        optimizers[1].load_state_dict(optimizers[0].state_dict())
        schedules[1].load_state_dict(schedules[0].state_dict())
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"]
