"""Measure models with and without the branch: parameters, arithmetic, a training step, an image at inference, memory.

Every row of a table runs twice per round, round after round, and the second time counts: a step comes after one like
itself, and a busy machine slows all rows alike. Times are medians, ratios medians of the ratios within a round (see
contrast_speed.py). Where Detectron2 is importable and not in use (HICL_RUNTIME=lite), its own model of the same config
and weights is a row too. Predictions with and without the branch are compared bit for bit; the command exits 1 if they
differ. A training step runs in the precision that SOLVER.AMP names, as the trainer's does. Arithmetic is fvcore's count at
inference, in which a multiplication with its addition is one, as in the tables of Detectron2 and Mask2Former. Operators are
what a training step asks of a GPU, call by call, without the optimiser, and are counted on any machine.

With --without-data nothing is computed: a training step is only followed, by shapes and types, which tells operators and
memory at any crop and batch within seconds. A model that looks at values, as Mask2Former's matcher does, is refused.
"""

import contextlib
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from speed.arguments import csv_file, device_name
from speed.follow import Footprint, LooksAtValuesError, follow, operators
from speed.meter import measure, median_ratio, peak_bytes, processor
from speed.rows import write_csv
from speed.trainers import detectron2_model, has_detectron2
from tabulate import tabulate
from torch import nn

import hicl_d2.modeling.models  # noqa: F401 - registers models
from hicl_d2.command.cli import Parser, parse_with_overrides, run, whole
from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.d2 import RUNTIME
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.modeling import build_model
from hicl_d2.engine.precision import PRECISIONS
from hicl_d2.modeling.check import check_model_config
from hicl_d2.modeling.memory_format import set_memory_format
from hicl_d2.modeling.settings import base_architecture, blank_size

PLAIN, BRANCH, DETECTRON2 = "plain", "with the branch", "Detectron2's own"
HEADERS = (
    "model",
    "parameters",
    "GFLOP / image (fvcore)",
    "ms / step",
    "to plain",
    "ms / image",
    "to plain",
    "peak MB / step",
    "operators / step",
)
COLUMNS = (
    "model",
    "parameters",
    "gflop_per_image",
    "ms_per_step",
    "step_to_plain",
    "ms_per_image",
    "image_to_plain",
    "peak_mb",
    "operators",
)
FOOTPRINT_HEADERS = (
    "model",
    "step",
    "precision",
    "operators",
    "with the branch",
    "peak MB",
    "with the branch",
    "to plain",
)
# Detectron2's meta-architectures that images and label maps alone cannot train.
WITH_INSTANCES = ("PanopticDeepLab", "PanopticFPN", "GeneralizedRCNN", "RetinaNet", "FCOS")
DEFAULT = ["configs/parts/deeplab_v3_plus_R_18_hicl.yaml"]


def main() -> int:
    """Print one table per config; return 1 if the branch changes a prediction."""
    parser = Parser(description="Time and memory of models with and without Hi-CL.", allow_abbrev=False)
    parser.add_argument(
        "--config-file", nargs="+", default=DEFAULT, help="configs with the branch (..._hicl.yaml)"
    )
    parser.add_argument("--batch", type=whole(1), default=2, help="images in a training step")
    parser.add_argument("--rounds", type=whole(1), default=5)
    parser.add_argument("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--without-data", action="store_true", help="compute nothing: operators and memory of a step alone"
    )
    parser.add_argument("--output", type=csv_file, help="CSV file to write")
    args = parse_with_overrides(parser)
    if args.without_data and args.output:
        raise InputError("--without-data prints its table and writes no file; leave out --output")
    torch.set_num_threads(1)
    forced = ["MODEL.DEVICE", "cpu" if args.without_data else args.device, "MODEL.HICL.WARMUP_ITERS", "0"]
    configs = {file: load_config(file, [*args.opts, *forced]) for file in args.config_file}
    for file, cfg in configs.items():
        check_model_config(cfg)
        if base_architecture(cfg) in WITH_INSTANCES:
            raise InputError(
                f"{file}: {base_architecture(cfg)} trains on instances, which are not made up here"
            )
    if args.without_data:
        report_footprints(configs, args.batch)
        return 0
    same, rows = True, []
    for file, cfg in configs.items():
        agrees, found = report(file, cfg, args.batch, args.rounds)
        same &= agrees
        rows += found
        if args.output:  # after each model: the next may be stopped
            write_csv(args.output, rows)
    return 0 if same else 1


def report(name: str, cfg: CfgNode, batch_size: int, rounds: int) -> tuple[bool, list[dict[str, Any]]]:
    """Print the table of one config.

    Return whether predictions with and without the branch are the same bits, and the rows as a CSV file has them.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    models = build_models(cfg)
    batch = make_batch(cfg, batch_size)
    images = [{"image": batch[0]["image"], "height": 64, "width": 64}]
    precision = PRECISIONS[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
    training = {row: training_step(model, batch, precision) for row, model in models.items()}
    inference = {row: inference_step(model, images) for row, model in models.items()}
    steps = measure(training, rounds, device)
    peaks = {row: peak_bytes(step, device) / 1e6 for row, step in training.items()}
    passes = measure(inference, rounds, device)
    rows = [
        (
            row,
            sum(value.numel() for value in model.parameters()),
            gigaflops(model, images[0]),
            statistics.median(steps[row]),
            median_ratio(steps[row], steps[PLAIN]),
            statistics.median(passes[row]),
            median_ratio(passes[row], passes[PLAIN]),
            peaks[row],
            operators(training[row]),
        )
        for row, model in models.items()
    ]
    same = torch.equal(inference[PLAIN](), inference[BRANCH]())
    height, width = blank_size(cfg)
    shown = precision or torch.float32
    lines = [
        f"{name}: {batch_size} x {height} x {width}, {device}, {shown}, torch {torch.__version__}, {RUNTIME}",
        tabulate(rows, headers=HEADERS, floatfmt=".3f", intfmt=","),
        f"predictions with and without the branch: {'the same bits' if same else 'DIFFERENT'}",
    ]
    sys.stdout.write("\n".join(lines) + "\n\n")
    where = {
        "config": Path(name).stem,
        "batch": f"{batch_size} x {height} x {width}",
        "precision": str(shown),
    }
    where |= {"device": processor(device), "torch": torch.__version__, "runtime": RUNTIME}
    return same, [where | dict(zip(COLUMNS, row, strict=True)) for row in rows]


def report_footprints(configs: dict[str, CfgNode], batch_size: int) -> None:
    """Print a table with a row for each config, whose steps are followed, not computed."""
    rows = []
    for name, cfg in configs.items():
        precision = PRECISIONS[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else torch.float32
        models = build_models(cfg)
        try:
            plain, branch = (_follow(models[row], cfg, batch_size, precision) for row in (PLAIN, BRANCH))
        except LooksAtValuesError as error:
            raise InputError(f"{name}: {error}; measure it without --without-data") from None
        size = " x ".join(map(str, (batch_size, *blank_size(cfg))))
        rows.append(
            (
                Path(name).stem.removesuffix("_hicl"),
                size,
                str(precision).removeprefix("torch."),
                plain.operators,
                branch.operators,
                plain.peak_bytes / 1e6,
                branch.peak_bytes / 1e6,
                branch.peak_bytes / plain.peak_bytes,
            )
        )
    sys.stdout.write(
        tabulate(
            rows,
            FOOTPRINT_HEADERS,
            "github",
            floatfmt=("", "", "", "", "", ",.0f", ",.0f", ".3f"),
            intfmt=",",
        )
    )
    sys.stdout.write("\n")


def _follow(model: nn.Module, cfg: CfgNode, batch_size: int, precision: torch.dtype) -> Footprint:
    autocast = None if precision is torch.float32 else precision
    return follow(model.train(), lambda call: loss_of(call, make_batch(cfg, batch_size), "cpu", autocast))


class _OneImage(nn.Module):
    """A model as fvcore can trace it: a tensor in, a tensor out."""

    def __init__(self, model: nn.Module, image: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._image = image

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model([{**self._image, "image": pixels}])[0]["sem_seg"]


def gigaflops(model: nn.Module, image: dict[str, Any]) -> float:
    """Count what inference of an image {image: (3, H, W), height, width} computes, as fvcore counts, in units of 1e9."""
    count = FlopCountAnalysis(_OneImage(model.eval(), image), (image["image"],))
    return count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total() / 1e9


def build_models(cfg: CfgNode) -> dict[str, nn.Module]:
    """Return the model of ``cfg`` without and with the branch, and Detectron2's where there is one, of equal weights."""
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.META_ARCHITECTURE = base_architecture(cfg)
    branch = plain.clone()
    branch.MODEL.HICL.BASE, branch.MODEL.META_ARCHITECTURE = plain.MODEL.META_ARCHITECTURE, "HiCL"
    models = {}
    for row, each in ((PLAIN, plain), (BRANCH, branch)):
        torch.manual_seed(0)
        models[row] = set_memory_format(each, build_model(each))
    if has_detectron2():
        theirs = detectron2_model(plain)
        if theirs is not None:
            theirs.load_state_dict(models[PLAIN].state_dict())
            models[DETECTRON2] = theirs
    return models


def make_batch(cfg: CfgNode, size: int) -> list[dict[str, Any]]:
    """Return images with labels in blocks of 32 pixels."""
    height, width = blank_size(cfg)
    generator = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(size):
        shape = (height // 32 + 1, width // 32 + 1)
        blocks = torch.randint(0, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, shape, generator=generator)
        labels = blocks.repeat_interleave(32, 0).repeat_interleave(32, 1)[:height, :width]
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "sem_seg": labels.clone(), "height": height, "width": width})
    return batch


def training_step(
    model: nn.Module, batch: list[dict[str, Any]], precision: torch.dtype | None = None
) -> Callable[[], Any]:
    """Return forward and backward of ``model`` on ``batch``; statistics of norms stay what they are.

    ``precision`` is that of autocast; None: full.
    """
    device = next(model.parameters()).device.type

    def step() -> None:
        state = {name: value.clone() for name, value in model.named_buffers()}
        model.train()
        model.zero_grad()
        loss_of(model, batch, device, precision).backward()
        for name, value in model.named_buffers():
            value.copy_(state[name])

    return step


def loss_of(
    model: Callable[..., Any], batch: list[dict[str, Any]], device: str, precision: torch.dtype | None
) -> torch.Tensor:
    """Return the sum of the losses of ``model``, with autocast to ``precision`` or without (None)."""
    with torch.autocast(device, dtype=precision) if precision else contextlib.nullcontext():
        return sum(model(batch).values())


def inference_step(model: nn.Module, images: list[dict[str, Any]]) -> Callable[[], Any]:
    """Return inference of ``model`` on one image; it gives the scores (K, H, W)."""

    def step() -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            return model(images)[0]["sem_seg"]

    return step


if __name__ == "__main__":
    run("model_speed", main)
