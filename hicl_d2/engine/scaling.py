"""A recipe made for some number of processes, on the number that there is."""

import logging

from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.engine import DefaultTrainer
from hicl_d2.engine.console import console
from hicl_d2.errors import InputError

logger = logging.getLogger(__name__)

WAYS = ("rule", "accumulate")
SCALED = ("IMS_PER_BATCH", "ACCUMULATE", "BASE_LR", "MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD")


def scale_to_processes(cfg: CfgNode, processes: int) -> CfgNode:
    """Return ``cfg`` for ``processes``, made from SOLVER.REFERENCE_WORLD_SIZE of them (0: as it is), and say what changed.

    With SOLVER.SCALE_BY "rule", Detectron2's linear rule: batch and learning rate follow the number of processes, iterations
    and periods go against it. With "accumulate", fewer processes work through the same batch in parts, and all else stays.
    Raises InputError for a batch or a reference that cannot be divided so.
    """
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
        scaled = _accumulated(cfg, processes)
    else:
        scaled = DefaultTrainer.auto_scale_workers(cfg, processes)
    changes = [
        f"{key} {solver[key]} -> {scaled.SOLVER[key]}" for key in SCALED if solver[key] != scaled.SOLVER[key]
    ]
    if cfg.TEST.EVAL_PERIOD != scaled.TEST.EVAL_PERIOD:
        changes.append(f"EVAL_PERIOD {cfg.TEST.EVAL_PERIOD} -> {scaled.TEST.EVAL_PERIOD}")
    said = f"scaled from {reference} processes to {processes} (SOLVER.SCALE_BY {way}): {', '.join(changes)}"
    console.say(said)
    logger.info(said)
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
