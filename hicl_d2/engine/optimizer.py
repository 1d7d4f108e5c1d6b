"""The optimiser and the learning-rate schedule of a run, the same for either runtime.

Detectron2 builds SGD alone. The recipes of Panoptic-DeepLab and Mask2Former also need Adam and AdamW, a
smaller learning rate in the backbone, no weight decay on embeddings, and clipping by the norm of all
gradients together.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LRScheduler

from hicl_d2.command.errors import InputError, listing, nearest, one_line
from hicl_d2.d2 import solver
from hicl_d2.d2.config import CfgNode

FIXED_GAMMA = "WarmupStepWithFixedGammaLR"
SCHEDULES = ("WarmupCosineLR", "WarmupMultiStepLR", "WarmupPolyLR", FIXED_GAMMA)
CLIP_TYPES = ("full_model", "norm", "value")
# On which torch's fused Adam works.
FUSING_DEVICES = ("cpu", "cuda")

# Learned offsets of positions in Swin and ViT: like embeddings, they are not decayed.
_POSITIONS = ("absolute_pos_embed", "position_embeddings", "relative_position_bias_table")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser that SOLVER.OPTIMIZER names (SGD where the key is absent), with gradient clipping.

    Raises InputError for a name or a value that no optimiser takes.
    """
    name = cfg.SOLVER.get("OPTIMIZER", "SGD")
    _check("SOLVER.OPTIMIZER", name, _OPTIMIZERS)
    groups = parameter_groups(cfg, model)
    try:
        optimizer = _OPTIMIZERS[name](cfg.SOLVER, groups, fused=_can_fuse(cfg, groups))
    except ValueError as error:
        raise InputError(f"SOLVER: {name} cannot be built: {one_line(error)}") from None
    return _clip_gradients(cfg, optimizer)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups of equal learning rate and weight decay.

    As Detectron2's, with SOLVER.BACKBONE_MULTIPLIER times the learning rate below any module called ``backbone`` (or one
    of the model's ``backbone_names``), SOLVER.WEIGHT_DECAY_EMBED on embeddings and no weight decay on position offsets.
    """
    settings = cfg.SOLVER
    factor = settings.get("BACKBONE_MULTIPLIER", 1.0)
    if factor != 1.0 and settings.BIAS_LR_FACTOR != 1.0:
        raise InputError(
            f"SOLVER.BACKBONE_MULTIPLIER is {factor} and SOLVER.BIAS_LR_FACTOR {settings.BIAS_LR_FACTOR}; "
            "both set the learning rate of the backbone's biases, so leave one of them at 1.0"
        )
    backbones = set(getattr(model, "backbone_names", ("backbone",)))
    groups = solver.get_default_optimizer_params(
        model,
        base_lr=settings.BASE_LR,
        weight_decay=settings.WEIGHT_DECAY,
        weight_decay_norm=settings.WEIGHT_DECAY_NORM,
        bias_lr_factor=settings.BIAS_LR_FACTOR,
        weight_decay_bias=settings.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: factor if backbones & set(name.split(".")) else 1.0,
        overrides={name: {"weight_decay": 0.0} for name in _POSITIONS},
    )
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    decay = settings.get("WEIGHT_DECAY_EMBED", 0.0)
    return [part for group in groups for part in _with_own_decay(group, embeddings, decay)]


def _with_own_decay(group: dict[str, Any], embeddings: set[Tensor], decay: float) -> Iterator[dict[str, Any]]:
    """Yield ``group`` without its embeddings, then these with weight decay ``decay``; leave out what is empty."""
    others = [parameter for parameter in group["params"] if parameter not in embeddings]
    if others:
        yield {**group, "params": others}
    if len(others) < len(group["params"]):
        decayed = [parameter for parameter in group["params"] if parameter in embeddings]
        yield {**group, "params": decayed, "weight_decay": decay}


def _can_fuse(cfg: CfgNode, groups: list[dict[str, Any]]) -> bool:
    """Return whether torch has one kernel for the whole step of Adam and AdamW on these parameters.

    Under a gradient scaler a fused step is given gradients with the scale on them, which clipping by parameter does not know.
    """
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE != "full_model":
        return False
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(each.device.type in FUSING_DEVICES and each.is_floating_point() for each in parameters)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the schedule that SOLVER.LR_SCHEDULER_NAME names.

    Raises InputError for a name or values that give no schedule.
    """
    settings = cfg.SOLVER
    name = settings.LR_SCHEDULER_NAME
    _check("SOLVER.LR_SCHEDULER_NAME", name, SCHEDULES)
    if name == "WarmupCosineLR" and not 0 <= settings.BASE_LR_END <= settings.BASE_LR > 0:
        raise InputError(
            f"SOLVER.BASE_LR_END is {settings.BASE_LR_END} and BASE_LR {settings.BASE_LR}; a cosine falls from BASE_LR, "
            "above 0, to BASE_LR_END, not below 0"
        )
    if name == FIXED_GAMMA and settings.WARMUP_ITERS >= settings.MAX_ITER:
        raise InputError(
            f"SOLVER.WARMUP_ITERS is {settings.WARMUP_ITERS} of SOLVER.MAX_ITER {settings.MAX_ITER}; {FIXED_GAMMA} needs "
            "iterations after the warm-up: warm up for fewer"
        )
    try:
        schedule: Any = solver.build_lr_scheduler(cfg, optimizer)
    except (AssertionError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"SOLVER: the schedule {name} cannot be built: {one_line(error)}") from None
    if name == FIXED_GAMMA:
        schedule._multiplier = _KeepLast(schedule._multiplier)
    return schedule


class _KeepLast(ParamScheduler):
    """A schedule that keeps its last value at 1.0, where a trainer steps after the last iteration and fvcore's steps end."""

    def __init__(self, schedule: ParamScheduler) -> None:
        self.schedule = schedule

    def __call__(self, where: float) -> float:
        return self.schedule(min(where, 1.0 - 2 * self.WHERE_EPSILON))


def _clip_gradients(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if not clipping.ENABLED:
        return optimizer
    _check("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clipping.CLIP_TYPE, CLIP_TYPES)
    if clipping.CLIP_TYPE != "full_model":
        return solver.maybe_add_gradient_clipping(cfg, optimizer)
    bound, norm_type = clipping.CLIP_VALUE, clipping.NORM_TYPE
    if bound <= 0.0:
        raise InputError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {bound}; the norm of all gradients needs a bound above 0"
        )

    def clip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        _take_scale_off(optimizer, parameters)
        clip_grad_norm_(parameters, bound, norm_type)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def _take_scale_off(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Divide the gradients by the scale that a gradient scaler has left for a fused step to take off."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(scale)
    optimizer.grad_scale = None  # type: ignore[attr-defined]


def _check(key: str, name: str, known: Any) -> None:
    if name not in known:
        raise InputError(f"{key} is {name!r}{nearest(str(name), known)}; expected one of {listing(known)}")


def _sgd(settings: CfgNode, groups: list[dict[str, Any]], *, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups,
        lr=settings.BASE_LR,
        momentum=settings.MOMENTUM,
        nesterov=settings.NESTEROV,
        weight_decay=settings.WEIGHT_DECAY,
        foreach=True,
    )


def _adam(settings: CfgNode, groups: list[dict[str, Any]], *, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        groups, lr=settings.BASE_LR, weight_decay=settings.WEIGHT_DECAY, fused=fused or None
    )


def _adamw(settings: CfgNode, groups: list[dict[str, Any]], *, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups, lr=settings.BASE_LR, weight_decay=settings.WEIGHT_DECAY, fused=fused or None
    )


_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": _sgd,
    "ADAM": _adam,
    "ADAMW": _adamw,
}
