"""Measure whole training steps, images a second, beside Detectron2's own trainer.

Every row is a trainer with all of its hooks and writers, on real crops of the recipe: the same batches over and over, then
with the loader (one process). Detectron2's is its SimpleTrainer with the hooks of its DefaultTrainer, on the original model of
the config and weights: Detectron2's own, or that of facebookresearch/Mask2Former (with the project's backbone) where its
checkout is on the Python path; else on the project's. In bfloat16 it is its AMPTrainer on a GPU; on a CPU Detectron2 has none.
It is measured where it is installed and not in use (HICL_RUNTIME=lite), and passed over by name elsewhere.

With --evaluate N the same is measured of evaluation: `--eval-only` on the first N test images, without building the model,
against Detectron2's inference_on_dataset with its SemSegEvaluator, without boundary figures; both must find the same mIoU.
TEST.WINDOW has no peer, TEST.AUG the original Mask2Former's.

All rows take turns within a round, and a row's second step counts; times are CPU time with one thread, medians over rounds,
and ratios are medians of those within rounds (see contrast_speed.py). On a CPU all rows keep the memory that a step frees, as
train_net.py does: they share a process. Then, of some more steps, where the time goes.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from speed.arguments import csv_file, device_name
from speed.meter import measure, median_ratio, processor
from speed.parts import PARTS, Parts, watched
from speed.rows import write_csv
from speed.trainers import (
    Driven,
    detectron2_evaluation,
    detectron2_loader,
    has_detectron2,
    has_peer_evaluation,
    is_mask2former,
    original_model,
    our_evaluation,
    ours,
    peer_batches,
    theirs,
)
from tabulate import tabulate
from torch import nn

import hicl_d2.modeling.models  # noqa: F401 - registers models
from hicl_d2.command.cli import Parser, parse_with_overrides, run, whole
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.d2 import RUNTIME
from hicl_d2.d2.config import CfgNode
from hicl_d2.data.custom import register_custom
from hicl_d2.data.loader import build_train_loader
from hicl_d2.data.preflight import check_inputs
from hicl_d2.engine.memory import keep_freed_memory
from hicl_d2.engine.trainer import Trainer
from hicl_d2.modeling.check import check_model_config
from hicl_d2.modeling.settings import base_architecture, blank_size

DEFAULT = [
    f"configs/camvid/{name}_hicl.yaml"
    for name in ("deeplab_v3_plus_R_18_cpu", "deeplab_v3_plus_efficientnet_lite0_cpu", "mask2former_R_18_cpu")
]
PRECISIONS = ("float32", "bfloat16")
PEER = "Detectron2's trainer"
PEER_IN_HALF = f"{PEER}, bfloat16"
LOADING = ", with the loader"
PEER_EVALUATION = "Detectron2's evaluation"
# Points of mIoU: a pixel between two classes may round to either.
SAME_SCORE = 0.01
# Batches that are made once and used over and over.
BATCHES = 4


@dataclass
class Table:
    """The rows of one config: what takes a step, and what was measured of it."""

    name: str
    cfg: CfgNode
    steps: dict[str, Driven] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    parts: dict[str, Parts] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each trainer, as a CSV file has them."""
        height, width = blank_size(self.cfg)
        images = self.cfg.SOLVER.IMS_PER_BATCH
        device = torch.device(self.cfg.MODEL.DEVICE)
        where = {
            "config": Path(self.name).stem.removesuffix("_hicl"),
            "batch": f"{images} x {height} x {width}",
            "device": processor(device),
            "torch": torch.__version__,
        }
        return [
            where
            | {
                "trainer": row,
                "images_per_second": 1e3 * images / statistics.median(times),
                "to_peer": self._to_peer(row),
            }
            | {part: _share(self.parts[row], part) for part in PARTS}
            for row, times in self.times.items()
        ]

    def _to_peer(self, row: str) -> float | None:
        """Return how many times as fast as Detectron2 a row is: with the loader as the row, in its precision if it can."""
        ending = LOADING if row.endswith(LOADING) else ""
        peers = [PEER_IN_HALF + ending] * ("bfloat16" in row) + [PEER + ending]
        found = next((peer for peer in peers if peer in self.times), None)
        return median_ratio(self.times[found], self.times[row]) if found else None


def _share(parts: Parts, part: str) -> float:
    return 100 * parts.seconds[part] / sum(parts.seconds.values())


def main() -> int:
    """Print one table per config."""
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--config-file", nargs="+", default=DEFAULT, help="configs with the branch (..._hicl.yaml)"
    )
    parser.add_argument("--rounds", type=whole(1), default=7)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument(
        "--evaluate", type=whole(1), metavar="N", help="test images to evaluate, in place of training"
    )
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=csv_file, help="CSV file to write")
    args = parse_with_overrides(parser)
    torch.set_num_threads(args.threads)
    console.silence()
    if args.device == "cpu":
        keep_freed_memory()
    forced = ["MODEL.DEVICE", args.device, "MODEL.HICL.WARMUP_ITERS", "0", "MODEL.WEIGHTS", ""]
    configs = {file: load_config(file, [*args.opts, *forced]) for file in args.config_file}
    for file, cfg in configs.items():
        check_model_config(cfg)
        check_inputs(cfg)
        register_custom(cfg)
        if args.evaluate and not cfg.DATASETS.TEST:
            raise InputError(f"{file}: DATASETS.TEST names no data set to evaluate on")
    _show(
        f"{processor(torch.device(args.device))}, torch {torch.__version__}, {RUNTIME}, threads {args.threads}, "
        f"rounds {args.rounds}, load {os.getloadavg()[0]:.1f}\n"
    )
    if not has_detectron2():
        _show(
            "Detectron2's trainer is passed over: Detectron2 is not installed beside the built-in runtime\n"
        )
    rows: list[dict[str, Any]] = []
    for file, cfg in configs.items():
        if has_detectron2() and base_architecture(cfg) == "MaskFormer" and not is_mask2former(cfg):
            _show(
                f"{file}: the peer trains the project's Mask2Former; the original is not on the Python path\n"
            )
        if args.evaluate:
            rows += compare_evaluations(file, cfg, args.evaluate, args.rounds)
            if args.output:
                write_csv(args.output, rows)
            continue
        with tempfile.TemporaryDirectory() as folder:
            table = Table(file, cfg, make_steps(cfg, args.precision, Path(folder)))
            table.times = measure(dict(table.steps), args.rounds, torch.device(args.device))
            table.parts = {row: profile(step, args.rounds) for row, step in table.steps.items()}
        rows += table.rows()
        show(table)
        if args.output:  # after each config: the next may be stopped
            write_csv(args.output, rows)
    _show(f"load {os.getloadavg()[0]:.1f}\n")
    return 0


def make_steps(cfg: CfgNode, precisions: Sequence[str], folder: Path) -> dict[str, Driven]:
    """Return the trainers to compare by the name of their row; they write below ``folder``."""
    variants = {"": _without_branch(cfg), ", with the branch": cfg}
    batches = list(islice(build_train_loader(variants[""]), BATCHES))
    steps: dict[str, Driven] = {}

    for precision in precisions:
        for ending, each in variants.items():
            asked = _in_precision(each, precision)
            steps[precision + ending] = ours(asked, folder / str(len(steps)), batches)
        asked = _in_precision(variants[""], precision)
        steps[precision + LOADING] = ours(asked, folder / str(len(steps)), None)
    if has_detectron2():
        plain = variants[""]
        for name, dtype in _peers(plain, precisions).items():
            for ending in ("", LOADING):
                given = detectron2_loader(plain) if ending else peer_batches(plain, batches) * 10_000
                where = folder / str(len(steps))
                steps[name + ending] = theirs(plain, peer_model(plain), where, given, dtype)
    return steps


def _peers(cfg: CfgNode, precisions: Sequence[str]) -> dict[str, torch.dtype | None]:
    """Return the precisions that Detectron2's trainer has among ``precisions`` on the device, by the name of its row."""
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    asked = ["float32"] if on_cpu else precisions
    known: dict[str, tuple[str, torch.dtype | None]] = {
        "float32": (PEER, None),
        "bfloat16": (PEER_IN_HALF, torch.bfloat16),
    }
    return dict(known[precision] for precision in asked)


def peer_model(cfg: CfgNode) -> nn.Module:
    """Return the original model of ``cfg``, else the project's as Detectron2 would train it, of equal weights."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MEMORY_FORMAT = "contiguous"
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    own = original_model(cfg, model)
    return model if own is None else own


def _without_branch(cfg: CfgNode) -> CfgNode:
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.META_ARCHITECTURE = base_architecture(cfg)
    return plain


def _in_precision(cfg: CfgNode, precision: str) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.AMP.ENABLED = precision != "float32"
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    return cfg


def profile(step: Driven, count: int) -> Parts:
    """Return where the time of ``count`` further steps goes."""
    parts = Parts(next(step.step.model.parameters()).device)
    with watched(step.step, step.hooks, step.batches, parts):
        for _ in range(count):
            step()
    return parts


def show(table: Table) -> None:
    """Print one table."""
    rows = table.rows()
    names = ["trainer", "images_per_second", "to_peer", *PARTS]
    cells = [[row[name] for name in names] for row in rows]
    headers = ["trainer", "images / s", "x Detectron2", *(f"{part} %" for part in PARTS)]
    formats = ("", ".2f", ".2f", *(".1f" for _ in PARTS))
    _show(f"\n{table.name}: {rows[0]['batch']}\n{tabulate(cells, headers, 'github', floatfmt=formats)}\n")


def compare_evaluations(name: str, cfg: CfgNode, images: int, rounds: int) -> list[dict[str, Any]]:
    """Measure the evaluation of one config, print its table, and return the rows as a CSV file has them.

    Raises AssertionError where the two find different scores.
    """
    plain = _without_branch(cfg)
    device = torch.device(cfg.MODEL.DEVICE)
    torch.manual_seed(0)
    model = Trainer.build_model(plain)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        calls = {"--eval-only": our_evaluation(plain, model, Path(folder, "ours"), images)}
        if has_peer_evaluation(plain):
            calls[PEER_EVALUATION] = detectron2_evaluation(
                plain, peer_model(plain), Path(folder, "theirs"), images
            )
        times = measure(
            {row: partial(_keep, found, row, call) for row, call in calls.items()}, rounds, device
        )
    first, *others = found.values()
    assert all(abs(other - first) < SAME_SCORE for other in others), found
    kind = "windows" if cfg.TEST.WINDOW else "several sizes" if cfg.TEST.AUG.ENABLED else "whole"
    rows = [
        {
            "config": Path(name).stem.removesuffix("_hicl"),
            "images": images,
            "kind": kind,
            "device": processor(device),
            "torch": torch.__version__,
            "evaluation": row,
            "images_per_second": 1e3 * images / statistics.median(own),
            "to_peer": median_ratio(times[PEER_EVALUATION], own) if PEER_EVALUATION in times else None,
        }
        for row, own in times.items()
    ]
    cells = [[row["evaluation"], row["images_per_second"], row["to_peer"]] for row in rows]
    headers = ["evaluation", "images / s", "x Detectron2"]
    _show(f"\n{name}: {images} images, {kind}\n{tabulate(cells, headers, 'github', floatfmt='.2f')}\n")
    return rows


def _keep(found: dict[str, float], row: str, call: Callable[[], float]) -> None:
    found[row] = call()


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    run("step_speed", main)
