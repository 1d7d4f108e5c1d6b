"""Scaling a recipe from the number of processes that it was made for to the number at hand."""

import logging

from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError, counted
from hicl_d2.d2.config import CfgNode

logger = logging.getLogger(__name__)

WAYS = ("rule", "accumulate")
SCALED = (
    *(f"SOLVER.{key}" for key in ("IMS_PER_BATCH", "ACCUMULATE", "BASE_LR", "MAX_ITER", "WARMUP_ITERS")),
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "MODEL.HICL.WARMUP_ITERS",
)


def scale_to_processes(cfg: CfgNode, processes: int) -> CfgNode:
    """Scale ``cfg`` from SOLVER.REFERENCE_WORLD_SIZE processes (0: leave it as it is) to ``processes``, and log the changes.

    With SOLVER.SCALE_BY "rule", batch and learning rate are multiplied by the ratio of processes; iterations and periods,
    among them the ramp of the branch, are divided by it (see :func:`_by_rule`). With "accumulate", fewer processes
    process the same batch in parts, and nothing else changes.
    Raises InputError for a batch or a reference that cannot be divided so.
    """
    scaled = scaled_config(cfg, processes)
    if scaled is cfg:
        return cfg
    values = [(key, _value(cfg, key), _value(scaled, key)) for key in SCALED]
    changes = [f"{key.partition('.')[2]} {old} -> {new}" for key, old, new in values if old != new]
    solver = cfg.SOLVER
    said = (
        f"scaled from {counted(solver.REFERENCE_WORLD_SIZE, 'process', 'processes')} to {processes} "
        f"(SOLVER.SCALE_BY {solver.SCALE_BY}): "
        f"{', '.join(changes)}"
    )
    console.say(said)
    logger.info(said)
    return scaled


def same_schedule(cfg: CfgNode, some: int, others: int) -> bool:
    """Return whether ``cfg`` has the same batches, learning rates and iterations on ``some`` processes and on ``others``.

    The number of parts in which a batch is processed may differ.
    """
    keys = [key for key in SCALED if key != "SOLVER.ACCUMULATE"]
    first, second = (scaled_config(cfg, processes) for processes in (some, others))
    return all(_value(first, key) == _value(second, key) for key in keys)


def scaled_config(cfg: CfgNode, processes: int) -> CfgNode:
    """Return what `scale_to_processes` makes of ``cfg``, without a word; ``cfg`` itself where nothing is scaled."""
    solver, reference = cfg.SOLVER, cfg.SOLVER.REFERENCE_WORLD_SIZE
    way = solver.SCALE_BY
    if way not in WAYS:
        raise InputError(f"SOLVER.SCALE_BY is {way!r}; it must be {' or '.join(WAYS)}")
    if reference in (0, processes):
        return cfg
    if solver.IMS_PER_BATCH % reference:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, which SOLVER.REFERENCE_WORLD_SIZE {reference} does not divide"
        )
    if way == "accumulate" and processes < reference:
        return _accumulated(cfg, processes)
    return _by_rule(cfg, processes)


def _value(cfg: CfgNode, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _by_rule(cfg: CfgNode, processes: int) -> CfgNode:
    """Apply the linear scaling rule, with the figures of Detectron2's ``DefaultTrainer.auto_scale_workers``.

    Source: Goyal et al., "Accurate, Large Minibatch SGD", https://arxiv.org/abs/1706.02677.
    """
    scaled = cfg.clone()
    scaled.defrost()
    solver, ratio = scaled.SOLVER, processes / cfg.SOLVER.REFERENCE_WORLD_SIZE
    solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * ratio)
    solver.BASE_LR *= ratio
    for key in ("MAX_ITER", "CHECKPOINT_PERIOD"):
        solver[key] = max(round(solver[key] / ratio), 1)
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / ratio)
    solver.STEPS = tuple(round(step / ratio) for step in solver.STEPS)
    if cfg.TEST.EVAL_PERIOD > 0:  # 0 stands for none
        scaled.TEST.EVAL_PERIOD = max(round(cfg.TEST.EVAL_PERIOD / ratio), 1)
    scaled.MODEL.HICL.WARMUP_ITERS = round(
        cfg.MODEL.HICL.WARMUP_ITERS * cfg.SOLVER.REFERENCE_WORLD_SIZE / processes
    )
    solver.REFERENCE_WORLD_SIZE = processes
    if cfg.is_frozen():
        scaled.freeze()
    return scaled


def _accumulated(cfg: CfgNode, processes: int) -> CfgNode:
    parts, rest = divmod(cfg.SOLVER.REFERENCE_WORLD_SIZE, processes)
    if rest:
        raise InputError(
            f"SOLVER.SCALE_BY is accumulate, but {processes} processes do not divide SOLVER.REFERENCE_WORLD_SIZE "
            f"{cfg.SOLVER.REFERENCE_WORLD_SIZE}; use a number that does, or SCALE_BY rule"
        )
    scaled = cfg.clone()
    frozen = scaled.is_frozen()
    scaled.defrost()
    scaled.SOLVER.ACCUMULATE *= parts
    scaled.SOLVER.REFERENCE_WORLD_SIZE = processes
    if frozen:
        scaled.freeze()
    return scaled
