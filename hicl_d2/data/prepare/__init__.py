"""Turning official downloads into the label maps that the loaders read.

From the command line: ``python -m hicl_d2.data.prepare <dataset> --root DIR``.
"""

from collections.abc import Callable
from pathlib import Path

from hicl_d2.data.prepare.ade20k import plan_ade20k
from hicl_d2.data.prepare.cityscapes import plan_cityscapes
from hicl_d2.data.prepare.coco_stuff import plan_coco_stuff_10k, plan_coco_stuff_164k
from hicl_d2.data.prepare.plan import Plan, Summary, carry_out

# How to plan the conversion of each data set below a root.
PLANNERS: dict[str, Callable[[Path], Plan]] = {
    "ade20k": plan_ade20k,
    "cityscapes": plan_cityscapes,
    "coco_stuff_10k": plan_coco_stuff_10k,
    "coco_stuff_164k": plan_coco_stuff_164k,
}

__all__ = ["PLANNERS", "Plan", "Summary", "carry_out"]
