"""The plain model as a file for other runtimes, or as checkpoint and config for Detectron2 itself."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError, one_line
from hicl_d2.command.files import atomic_path, check_writable
from hicl_d2.d2.config import CfgNode
from hicl_d2.modeling.settings import base_architecture, gives_semantics
from hicl_d2.run.logs import run_log
from hicl_d2.run.manifest import config_hash
from hicl_d2.run.provenance import versions
from hicl_d2.tools.predict import class_names, load_model
from hicl_d2.tools.to_detectron2 import CHECKPOINT, CONFIG, write

# Largest difference from the model that a written file may have, as a share of the largest score.
TOLERANCE = 1e-4
PLAIN = ("MODEL.HICL.ENABLED", "False", "MODEL.DEVICE", "cpu")


class ImageToScores(nn.Module):
    """A meta-architecture as a function of one tensor: images (1, 3, H, W), values 0 to 255, to scores (1, K, H, W)."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.height, self.width = size  # some models, as Panoptic-DeepLab, ask for the size to predict at

    def forward(self, image: Tensor) -> Tensor:
        entry = {"image": image[0], "height": self.height, "width": self.width}
        scores: Tensor = self.model([entry])[0]["sem_seg"]
        return scores[None]


@run_log()
def main(args: Namespace) -> None:
    """Write what ``args`` ask for, and say how far it is from the model."""
    output = Path(args.output)
    check_writable(output if args.to else output.parent, "--output")
    if not args.to and output.is_dir():
        raise InputError(f"--output {output} is a folder; give the name of a file in it")
    written = [output / name for name in (CHECKPOINT, CONFIG)] if args.to else [output]
    for file in written:
        if os.path.lexists(file):
            raise InputError(f"{file} is there already; give another --output")
    cfg, model = load_model(args.config_file, args.weights, [*args.opts, *PLAIN], args.output)
    if args.to:
        console.show(f"for Detectron2: {write(cfg, model, output)}")
        return
    if not gives_semantics(cfg):
        raise InputError(
            f"{base_architecture(cfg)} predicts instances; only models of semantic scores are exported"
        )
    from hicl_d2.tools.formats import FORMATS

    height, width = args.size or _test_size(cfg)
    example = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0)).float()
    plain = ImageToScores(model, (height, width)).eval()
    with torch.no_grad():
        expected = plain(example)
    content = metadata(cfg, _divisor(model), (height, width))
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as unfinished:
        try:
            run = FORMATS[args.format](plain, example, unfinished, content)
        except (ImportError, OSError):  # of what the extra brings, and of the disk
            raise
        except Exception as error:  # exporters raise what they like for an operator they do not know
            raise InputError(
                f"{base_architecture(cfg)} cannot be exported as {args.format}: "
                f"{type(error).__name__}: {one_line(error)[:300]}"
            ) from error
        difference = _difference(run(example), expected)
        if difference > TOLERANCE:
            raise InputError(
                f"the exported {args.format} differs from the model by {difference:.1e} of its largest score; nothing is "
                "written"
            )
    console.show(
        f"{args.format}: {output}, images of {height} x {width} pixels (no other size), {content['channel_order']}, 0 to 255; "
        f"it differs from the model by {difference:.1e} of the largest score"
    )


def metadata(cfg: CfgNode, divisor: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return what a user of the file must know, in JSON's types."""
    classes, colours = class_names(cfg)
    return {
        "model": base_architecture(cfg),
        "input": {"name": "image", "dtype": "float32", "shape": [1, 3, *size], "range": [0, 255]},
        "output": {"name": "scores", "dtype": "float32", "shape": [1, len(classes), *size]},
        "channel_order": cfg.INPUT.FORMAT,
        "normalisation": "in the model: (image - mean) / std by channel",
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "std": list(cfg.MODEL.PIXEL_STD),
        "size_divisibility": divisor,
        "test_size": {
            "shorter_side": cfg.INPUT.MIN_SIZE_TEST,
            "longer_side_at_most": cfg.INPUT.MAX_SIZE_TEST,
        },
        "prediction": "the class of a pixel is the index of its largest score",
        "classes": classes,
        "colours": [list(colour) for colour in colours],
        "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "weights": Path(cfg.MODEL.WEIGHTS.partition("?")[0]).name,
        "config_hash": config_hash(cfg),
        "versions": versions(),
    }


def _test_size(cfg: CfgNode) -> tuple[int, int]:
    side = cfg.INPUT.MIN_SIZE_TEST or 512
    return side, side


def _divisor(model: nn.Module) -> int:
    """Return what the model pads the sides of images to a multiple of, by itself; 1 if it pads nothing."""
    holders = (model, getattr(model, "backbone", None))
    return max(1, *(int(getattr(holder, "size_divisibility", 0)) for holder in holders))


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
