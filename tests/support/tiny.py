"""A model and a data set small enough to train in a test, and train_net's command line with both registered.

``python -m tests.support.tiny ARGUMENTS`` is ``train_net.py ARGUMENTS`` that knows them, also in spawned processes.
"""

import io
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hicl_d2.command.cli import run
from hicl_d2.d2.layers import get_norm
from hicl_d2.d2.modeling import META_ARCH_REGISTRY
from hicl_d2.data.datasets.folders import paired_records
from hicl_d2.data.datasets.registry import data_root, register_semantic
from hicl_d2.modeling.deeplab.loss import PixelCrossEntropy
from hicl_d2.tools.arguments import train_arguments

CLASSES = ("dark", "middle", "bright")
# Environment variable: the training step, from 1, in which a process waits to be killed.
HALT = "TINY_HALT"
# Environment variable: the iteration of the checkpoint in the middle of which a process waits to be killed.
HALT_CHECKPOINT = "TINY_HALT_CHECKPOINT"
SPLITS = {"train": 6, "val": 3}

CONFIG = """
MODEL:
  META_ARCHITECTURE: TinySegmentor
  DEVICE: cpu
  SEM_SEG_HEAD: {NUM_CLASSES: 3, NORM: ""}
  HICL: {BASE: TinySegmentor, WARMUP_ITERS: 2, WINDOWS: [1, 2], ANCHORS: 32, COMPONENTS: 64, DIM: 8, HIDDEN_DIM: 8}
DATASETS: {TRAIN: [tiny_train], TEST: [tiny_val]}
INPUT:
  FORMAT: RGB
  MIN_SIZE_TRAIN: [16, 20]
  MIN_SIZE_TRAIN_SAMPLING: choice
  MIN_SIZE_TEST: 0
  CROP: {ENABLED: True, TYPE: absolute, SIZE: [16, 16]}
DATALOADER: {NUM_WORKERS: 0}
SOLVER:
  BASE_LR: 0.05
  MAX_ITER: 6
  IMS_PER_BATCH: 2
  WARMUP_ITERS: 2
  STEPS: [4]
  CHECKPOINT_PERIOD: 3
TEST: {EVAL_PERIOD: 2, PICTURES: 1}
SEED: 7
"""


class TinySegmentor(nn.Module):
    """Two convolutions with dropout between them, under the module names of a semantic segmentor."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.sem_seg_head = nn.ModuleDict({"predictor": nn.Conv2d(8, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 1)})
        self.dropout = nn.Dropout(cfg.MODEL.SEM_SEG_HEAD.ASPP_DROPOUT)
        self.norm = get_norm(cfg.MODEL.SEM_SEG_HEAD.NORM, 8) or nn.Identity()
        self.steps = 0
        self.loss = PixelCrossEntropy(cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return {"loss_sem_seg"} in training, one {"sem_seg": (K, H, W)} per image in eval mode."""
        device = self.backbone.weight.device
        images = torch.stack([entry["image"].to(device) for entry in batched_inputs]).float() / 255 - 0.5
        images = images / images.std((1, 2, 3), keepdim=True)  # not finite for an image of one colour
        logits = self.sem_seg_head["predictor"](self.dropout(self.norm(self.backbone(images)).relu()))
        self.steps += self.training
        while self.training and str(self.steps) == os.environ.get(HALT):
            signal.pause()
        if not self.training:
            size = (batched_inputs[0]["height"], batched_inputs[0]["width"])
            return [{"sem_seg": scores} for scores in _resize(logits, size)]
        labels = torch.stack([entry["sem_seg"].to(device) for entry in batched_inputs])
        return {"loss_sem_seg": self.loss(_resize(logits, tuple(labels.shape[-2:])), labels)}


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def make_data(root: Path) -> None:
    """Write images of three brightnesses with their label maps, 24 x 20, below ``root``/tiny."""
    generator = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for kind in ("images", "annotations"):
            (root / "tiny" / kind / split).mkdir(parents=True)
        for index in range(count):
            labels = np.kron(generator.integers(0, len(CLASSES), (5, 6)), np.ones((4, 4), int)).astype(
                np.uint8
            )
            image = labels[..., None] * 80 + generator.integers(0, 60, (20, 24, 3))
            Image.fromarray(image.astype(np.uint8)).save(root / "tiny/images" / split / f"{index}.png")
            Image.fromarray(labels).save(root / "tiny/annotations" / split / f"{index}.png")


def _load(split: str) -> list[dict[str, Any]]:
    return paired_records(f"tiny_{split}", data_root() / "tiny", split, "tiny/images and tiny/annotations")


def register() -> None:
    """Make the model and the data set known, once per process."""
    if "TinySegmentor" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(TinySegmentor)
    colours = [(0, 0, 0), (120, 120, 120), (240, 240, 240)]
    for split in SPLITS:
        register_semantic(f"tiny_{split}", partial(_load, split), classes=CLASSES, colours=colours)


register()


def _halt_in_checkpoint(iteration: int) -> None:
    """Let ``torch.save`` write half of the checkpoint of ``iteration`` and then wait."""
    save = torch.save

    def half(content: Any, stream: Any, *args: Any, **options: Any) -> None:
        if "trainer" not in content or content.get("iteration") != iteration:
            save(content, stream, *args, **options)
            return
        buffer = io.BytesIO()
        save(content, buffer)
        stream.write(buffer.getvalue()[: buffer.tell() // 2])
        stream.flush()
        while True:
            signal.pause()

    torch.save = half


def main() -> None:
    """Do what train_net.py does."""
    args = train_arguments()
    if HALT_CHECKPOINT in os.environ:
        _halt_in_checkpoint(int(os.environ[HALT_CHECKPOINT]))
    from hicl_d2.tools import train

    train.main(args)


if __name__ == "__main__":
    run("train_net", main)
