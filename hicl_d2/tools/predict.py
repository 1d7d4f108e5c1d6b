"""Predictions for images without truth: overlays, label maps and a legend."""

import glob
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hicl_d2.command.console import console, counter
from hicl_d2.command.errors import InputError, one_line
from hicl_d2.command.files import atomic_path, check_writable
from hicl_d2.config import load_config
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data.custom import register_custom
from hicl_d2.data.datasets.folders import IMAGE_SUFFIXES
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.data.parallel import end_with_parent
from hicl_d2.data.preflight import check_inputs
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.engine.trainer import Trainer
from hicl_d2.evaluation import for_testing, predicted_classes
from hicl_d2.reading import read_image
from hicl_d2.run.logs import run_log
from hicl_d2.run.setup import resolve_device
from hicl_d2.visualization.colours import Colour, overlay, palette
from hicl_d2.visualization.legend import draw_legend

SUFFIXES = {*IMAGE_SUFFIXES, ".bmp", ".tif", ".tiff", ".webp"}
FAILURES_SHOWN = 20


@run_log()
def main(args: Namespace) -> bool:
    """Predict the images of ``args``; return whether all could be read."""
    check_writable(args.output, "--output")
    images = find_images(args.input)
    cfg, model = load_model(args.config_file, args.weights, args.opts, args.output)
    classes, colours = class_names(cfg)
    model = for_testing(cfg, model).eval()
    output = Path(args.output)
    for kind in ("overlays", "labels"):
        (output / kind).mkdir(parents=True, exist_ok=True)
    _save(draw_legend(classes, colours), output / "legend.png")
    advance = counter("predicting", len(images))
    failures = []
    for name, mapped in _mapped(cfg, images):
        if isinstance(mapped, str):
            failures.append(mapped)
        else:
            with torch.no_grad():
                labels = predicted_classes(model([mapped])[0]["sem_seg"]).cpu().numpy()
            _write(output, name, mapped["file_name"], labels, colours, args.strength)
        advance()
    console.show(
        f"{len(images) - len(failures)} of {len(images)} images: overlays, labels and legend.png in {output}"
    )
    for line in failures[:FAILURES_SHOWN]:
        console.show(f"failed: {line}")
    if len(failures) > FAILURES_SHOWN:
        console.show(f"failed: and {len(failures) - FAILURES_SHOWN} more")
    return not failures


def load_model(config_file: str, weights: str, opts: Sequence[str], output: str) -> tuple[CfgNode, nn.Module]:
    """Build the model of a config in eval mode with ``weights``; return it with the config, device resolved.

    Raises InputError for a config, weights or device that cannot be used.
    """
    cfg = load_config(config_file, opts).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = resolve_device(cfg)
    cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
    cfg.freeze()
    register_custom(cfg)
    check_inputs(cfg)
    if not cfg.MODEL.WEIGHTS:
        raise InputError("give weights: --weights FILE")
    if "://" not in cfg.MODEL.WEIGHTS and not Path(cfg.MODEL.WEIGHTS).expanduser().is_file():
        raise InputError(f"weights file {cfg.MODEL.WEIGHTS} does not exist")
    model = Trainer.build_model(cfg)
    Checkpoints(model, output).load_weights(cfg.MODEL.WEIGHTS, whole=True)
    return cfg, model.eval()


def class_names(cfg: CfgNode) -> tuple[list[str], list[Colour]]:
    """Return names and colours of the classes, from the first data set of the config that is registered."""
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name in DatasetCatalog:
            metadata = MetadataCatalog.get(name)
            names = list(metadata.get("stuff_classes") or [])
            if len(names) == count:
                colours = metadata.get("stuff_colors") or palette(count)
                return names, [(int(c[0]), int(c[1]), int(c[2])) for c in colours]
    return [f"class {number}" for number in range(count)], palette(count)


def find_images(inputs: Sequence[str]) -> list[tuple[str, Path]]:
    """Return (name, file) of every image that ``inputs`` (files, folders, globs) stand for, sorted by name.

    The name is the path below the folder that was given, or the file's own. Raises InputError for an input
    that stands for nothing, and for two files of one name.
    """
    found: dict[str, Path] = {}
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            below = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
            pairs = [(str(p.relative_to(path)), p) for p in below if _is_image(p)]
        elif path.is_file():
            pairs = [(path.name, path)]
        else:
            paths = [Path(p) for p in glob.glob(str(path), recursive=True)]
            pairs = [(p.name, p) for p in paths if p.is_file() and _is_image(p)]
        if not pairs:
            raise InputError(f"--input {text}: no image is there; give a file, a folder or a quoted pattern")
        for name, file in pairs:
            if found.get(name, file) != file:
                raise InputError(
                    f"{found[name]} and {file} would be written under one name; give their folder"
                )
            found[name] = file
    return sorted(found.items())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


class _Images(Dataset[Any]):
    """Mapped images, or one line about what is wrong with the file."""

    def __init__(self, cfg: CfgNode, images: Sequence[tuple[str, Path]]) -> None:
        self._images = images
        self._mapper = SemanticMapper(cfg, False)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any] | str]:
        name, path = self._images[index]
        try:
            return name, self._mapper({"file_name": str(path)})
        except InputError as error:
            return name, one_line(error)


def _mapped(cfg: CfgNode, images: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, Any]]:
    workers = cfg.DATALOADER.NUM_WORKERS if len(images) > 1 else 0
    yield from DataLoader(
        _Images(cfg, images),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=end_with_parent,
    )


def _as_it_is(sample: Any) -> Any:
    return sample


def _write(
    output: Path, name: str, image_file: str, labels: np.ndarray, colours: Sequence[Colour], strength: float
) -> None:
    """Write the label map as PNG and the overlay as JPEG, each whole or not at all."""
    image = Image.fromarray(read_image(image_file, "RGB"))
    tinted = overlay(image, labels, colours, strength=strength, ignore_value=-1)
    # The suffix stays in the name: a.jpg and a.png are two images.
    _save(
        Image.fromarray(labels.astype(np.uint8 if len(colours) <= 256 else np.uint16)),
        output / "labels" / f"{name}.png",
    )
    _save(tinted, output / "overlays" / f"{name}.jpg", quality=92)


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, durable=False) as unfinished:
        picture.save(unfinished, **options)
