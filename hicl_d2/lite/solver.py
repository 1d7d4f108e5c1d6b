"""Optimisers and schedules from the config: parameter groups, gradient clipping, warm-up and decay."""

import itertools
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import LRScheduler

from hicl_d2.command.errors import InputError, nearest
from hicl_d2.lite.config import CfgNode

__all__ = ["build_lr_scheduler", "get_default_optimizer_params", "maybe_add_gradient_clipping"]

logger = logging.getLogger(__name__)

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)

# --------------------------------------------------------------------------------------------------
# Optimiser


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups of equal settings, each parameter once.

    None leaves a setting to the optimiser. ``weight_decay_norm`` applies to norm layers, ``bias_lr_factor`` (times
    ``base_lr``) and ``weight_decay_bias`` to parameters called ``bias``. ``lr_factor_func`` maps a parameter's full name
    to a factor of ``base_lr``. ``overrides`` maps the last part of a name to settings that replace all others. Raises
    ValueError for a factor without ``base_lr``, or for settings of biases both here and in ``overrides``.
    """
    if base_lr is None and (lr_factor_func is not None or bias_lr_factor not in (None, 1.0)):
        raise ValueError("bias_lr_factor and lr_factor_func are factors of base_lr, which is missing")
    of_biases: dict[str, float] = {}
    if base_lr is not None and bias_lr_factor not in (None, 1.0):
        of_biases["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        of_biases["weight_decay"] = weight_decay_bias
    overrides = dict(overrides or {})
    if of_biases and "bias" in overrides:
        raise ValueError("Conflicting overrides for 'bias'")
    if of_biases:
        overrides["bias"] = of_biases

    defaults = {"lr": base_lr, "weight_decay": weight_decay}
    groups: dict[Hashable, dict[str, Any]] = {}
    for module_name, module, name, parameter in _trainable(model):
        settings = {key: value for key, value in defaults.items() if value is not None}
        if weight_decay_norm is not None and isinstance(module, _NORMS):
            settings["weight_decay"] = weight_decay_norm
        if lr_factor_func is not None:
            settings["lr"] *= lr_factor_func(f"{module_name}.{name}")
        settings.update(overrides.get(name, {}))
        group = groups.setdefault(tuple(settings.items()), {**settings, "params": []})
        group["params"].append(parameter)
    return list(groups.values())


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Yield module name, module, parameter name and parameter, a shared parameter where it comes first."""
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield module_name, module, name, parameter


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return ``optimizer``, clipping each parameter's gradient before a step if SOLVER.CLIP_GRADIENTS is enabled.

    Raises InputError for a CLIP_TYPE other than "value" and "norm".
    """
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if not clipping.ENABLED:
        return optimizer
    bound, norm_type = clipping.CLIP_VALUE, clipping.NORM_TYPE
    clippers: dict[str, Callable[[nn.Parameter], Any]] = {
        "value": lambda parameter: clip_grad_value_(parameter, bound),
        "norm": lambda parameter: clip_grad_norm_(parameter, bound, norm_type),
    }
    if clipping.CLIP_TYPE not in clippers:
        known = ", ".join(clippers)
        raise InputError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clipping.CLIP_TYPE!r}; expected one of {known}"
        )
    optimizer.__class__ = _clipping_class(type(optimizer), clippers[clipping.CLIP_TYPE])
    return optimizer


def _clipping_class(
    kind: type[torch.optim.Optimizer], clip: Callable[[nn.Parameter], Any]
) -> type[torch.optim.Optimizer]:
    def step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        for parameter in itertools.chain.from_iterable(group["params"] for group in self.param_groups):
            if parameter.grad is not None:  # clip_grad_value_ fails without any
                clip(parameter)
        return kind.step(self, closure)

    return type(f"{kind.__name__}WithGradientClip", (kind,), {"step": step})


# --------------------------------------------------------------------------------------------------
# Schedule


class WarmupParamScheduler(CompositeParamScheduler):
    """A warm-up followed by another schedule, over [0, 1]."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        """Start at ``warmup_factor`` of the schedule's first value, for ``warmup_length`` of the run.

        ``warmup_method``: "linear" rises to the schedule's value at the end of the warm-up, "constant" stays; ValueError
        for another. The schedule starts with the run, or with ``rescale_interval`` at the end of the warm-up.
        """
        start = warmup_factor * scheduler(0.0)
        end = scheduler(0.0 if rescale_interval else warmup_length)
        methods = {"constant": ConstantParamScheduler(start), "linear": LinearParamScheduler(start, end)}
        if warmup_method not in methods:
            raise ValueError(f"Unknown warmup method: {warmup_method}")
        super().__init__(
            [methods[warmup_method], scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Multiply every group's initial learning rate by a schedule over the run; an "epoch" is an iteration."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ) -> None:
        """``multiplier`` maps ``iteration / max_iter`` to the factor."""
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be a ParamScheduler of fvcore, not {multiplier}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration and the initial learning rates; the schedule itself has no state."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of each parameter group at the current iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base * factor for base in self.base_lrs]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the schedule that SOLVER.LR_SCHEDULER_NAME names; InputError for an unknown name."""
    solver = cfg.SOLVER
    name = solver.LR_SCHEDULER_NAME
    if name not in _SCHEDULES:
        known = [*_SCHEDULES, "WarmupPolyLR"]
        raise InputError(
            f"SOLVER.LR_SCHEDULER_NAME is {name!r}{nearest(name, known)}; expected one of {', '.join(known)}"
        )
    schedule = WarmupParamScheduler(
        _SCHEDULES[name](solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _multi_step(solver: CfgNode) -> ParamScheduler:
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
    if len(steps) < len(solver.STEPS):
        logger.warning("SOLVER.STEPS beyond SOLVER.MAX_ITER (%d) are ignored", solver.MAX_ITER)
    values = [solver.GAMMA**count for count in range(len(steps) + 1)]
    return MultiStepParamScheduler(values, num_updates=solver.MAX_ITER, milestones=steps)


def _cosine(solver: CfgNode) -> ParamScheduler:
    return CosineParamScheduler(1, solver.BASE_LR_END / solver.BASE_LR)


def _fixed_gamma(solver: CfgNode) -> ParamScheduler:
    return StepWithFixedGammaParamScheduler(
        base_value=1.0, gamma=solver.GAMMA, num_decays=solver.NUM_DECAYS, num_updates=solver.MAX_ITER
    )


_SCHEDULES: dict[str, Callable[[CfgNode], ParamScheduler]] = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _fixed_gamma,
}
