"""A recipe made for some number of processes, on the number that there is."""

import logging

from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.engine import DefaultTrainer

logger = logging.getLogger(__name__)

WAYS = ("rule", "accumulate")
SCALED = (
    *(f"SOLVER.{key}" for key in ("IMS_PER_BATCH", "ACCUMULATE", "BASE_LR", "MAX_ITER", "WARMUP_ITERS")),
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "MODEL.HICL.WARMUP_ITERS",
)


def scale_to_processes(cfg: CfgNode, processes: int) -> CfgNode:
    """Return ``cfg`` for ``processes``, made from SOLVER.REFERENCE_WORLD_SIZE of them (0: as it is), and say what changed.

    With SOLVER.SCALE_BY "rule", Detectron2's linear rule: batch and learning rate follow the number of processes,
    iterations and periods go against it, the ramp of the branch among them. With "accumulate", fewer processes work
    through the same batch in parts, and all else stays.
    Raises InputError for a batch or a reference that cannot be divided so.
    """
    scaled = _scaled(cfg, processes)
    if scaled is cfg:
        return cfg
    values = [(key, _value(cfg, key), _value(scaled, key)) for key in SCALED]
    changes = [f"{key.partition('.')[2]} {old} -> {new}" for key, old, new in values if old != new]
    solver = cfg.SOLVER
    said = (
        f"scaled from {solver.REFERENCE_WORLD_SIZE} processes to {processes} (SOLVER.SCALE_BY {solver.SCALE_BY}): "
        f"{', '.join(changes)}"
    )
    console.say(said)
    logger.info(said)
    return scaled


def same_schedule(cfg: CfgNode, some: int, others: int) -> bool:
    """Return whether ``cfg`` means the same batches, rates and iterations on ``some`` processes and on ``others``.

    How a batch is worked through, at once or in parts, may differ.
    """
    keys = [key for key in SCALED if key != "SOLVER.ACCUMULATE"]
    first, second = (_scaled(cfg, processes) for processes in (some, others))
    return all(_value(first, key) == _value(second, key) for key in keys)


def _scaled(cfg: CfgNode, processes: int) -> CfgNode:
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
    """Apply Detectron2's rule, and to the ramp of the branch what it does to the other iterations."""
    scaled = DefaultTrainer.auto_scale_workers(cfg, processes)
    frozen = scaled.is_frozen()
    scaled.defrost()
    scaled.MODEL.HICL.WARMUP_ITERS = round(
        cfg.MODEL.HICL.WARMUP_ITERS * cfg.SOLVER.REFERENCE_WORLD_SIZE / processes
    )
    if frozen:
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
