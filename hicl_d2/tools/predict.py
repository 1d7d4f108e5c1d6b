"""Predictions for images without truth: overlays, label maps and a legend."""

import glob
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hicl_d2.command.address import is_address, local_file
from hicl_d2.command.cli import NO_PERMISSION, NO_SPACE
from hicl_d2.command.console import console, counter
from hicl_d2.command.errors import InputError, counted, one_line
from hicl_d2.command.files import check_writable, expanded
from hicl_d2.config import load_config
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data.custom import register_custom
from hicl_d2.data.datasets.folders import is_hidden
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.data.parallel import end_with_parent
from hicl_d2.data.preflight import check_inputs
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.engine.memory import keep_freed_memory
from hicl_d2.engine.trainer import Trainer
from hicl_d2.evaluation import for_testing, predicted_classes
from hicl_d2.evaluation.inference import DECODED
from hicl_d2.reading import IMAGE_SUFFIXES
from hicl_d2.run.logs import run_log
from hicl_d2.run.setup import device_in_words, resolve_device
from hicl_d2.visualization.colours import Colour, overlay, palette
from hicl_d2.visualization.files import check_own, save_picture
from hicl_d2.visualization.legend import draw_legend

FAILURES_SHOWN = 20
LEGEND = "legend.png"


@run_log()
def main(args: Namespace) -> bool:
    """Predict the images of ``args``; return whether all could be predicted. One that cannot is passed over and named."""
    check_writable(args.output, "--output")
    output = Path(args.output)
    images = find_images(args.input, output)
    names = output_names([name for name, _ in images])
    cfg, model = load_model(args.config_file, args.weights, args.opts, args.output)
    classes, colours = class_names(cfg)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    model = for_testing(cfg, model).eval()
    for kind in ("overlays", "labels"):
        _make_folder(output / kind, output)
    check_own(_outputs(output, names), "--output")
    _save(draw_legend(classes, colours), output / LEGEND, output)
    advance = counter("predicting", len(images))
    failures = []
    for (_, path), name, mapped in zip(images, names, _mapped(cfg, images), strict=True):
        try:
            if isinstance(mapped, InputError):
                raise mapped
            labels = _predict(model, mapped)
            _write(output, name, mapped[DECODED].numpy(), labels, colours, args.strength)
        except Exception as error:  # whatever one image raises, the others are predicted
            if isinstance(error, OSError) and error.errno in (*NO_SPACE, *NO_PERMISSION):
                raise
            failures.append(_failure(path, error))
        advance()
    console.show(
        f"{len(images) - len(failures)} of {counted(len(images), 'image')}: overlays, labels and {LEGEND} in {output}"
    )
    for line in failures[:FAILURES_SHOWN]:
        console.show(f"failed: {line}")
    if len(failures) > FAILURES_SHOWN:
        console.show(f"failed: and {len(failures) - FAILURES_SHOWN} more")
    return not failures


def _outputs(output: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield every file that the predictions ``names`` are written to."""
    yield output / LEGEND
    for name in names:
        yield from (output / "labels" / f"{name}.png", output / "overlays" / f"{name}.jpg")


def _failure(path: Path, error: Exception) -> str:
    """Return one line, with the file, about what an image raised."""
    text = one_line(error)
    if isinstance(error, InputError):
        return text if str(path) in text else f"{path}: {text}"
    return f"{path}: it cannot be predicted ({type(error).__name__}: {text})"


@torch.no_grad()
def _predict(model: nn.Module, mapped: dict[str, Any]) -> np.ndarray:
    """Return the class of every pixel (H, W) at the image's own size."""
    return predicted_classes(model([mapped])[0]["sem_seg"]).cpu().numpy()


def load_model(
    config_file: str,
    weights: str,
    opts: Sequence[str],
    output: str,
    check: Callable[[CfgNode], None] = lambda cfg: None,
) -> tuple[CfgNode, nn.Module]:
    """Build the model of a config in eval mode with ``weights``; return it with the config, device resolved.

    ``check`` looks at the config, its data sets known, before the model is built. Raises InputError for a config, weights
    or device that cannot be used.
    """
    given = load_config(config_file, opts)
    cfg = given.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = resolve_device(cfg)
    cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
    cfg.freeze()
    register_custom(cfg)
    check_inputs(cfg)
    check(cfg)
    if not cfg.MODEL.WEIGHTS:
        raise InputError("give weights: --weights FILE")
    if not is_address(cfg.MODEL.WEIGHTS) and not local_file(cfg.MODEL.WEIGHTS).is_file():
        raise InputError(f"weights file {cfg.MODEL.WEIGHTS} does not exist")
    model = Trainer.build_model(cfg)
    Checkpoints(model, output).load_weights(cfg.MODEL.WEIGHTS, whole=True)
    console.say(device_in_words(given, cfg.MODEL.DEVICE))
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


def find_images(inputs: Sequence[str], output: Path | None = None) -> list[tuple[str, Path]]:
    """Return (name, file) of every image that ``inputs`` (files, folders, globs) stand for, sorted by name.

    The name is the path below the folder that was given, or the file's own. What lies in ``output`` is no input: an earlier
    run has written it. Raises InputError for an input that stands for nothing, for two files of one name, and for an
    ``output`` that is the folder of an input or lies above it, where predictions could take the place of inputs.
    """
    target = None if output is None else expanded(output).resolve()
    found: dict[str, Path] = {}
    for text in inputs:
        path = expanded(text)
        if path.is_dir():
            pairs, folder = [(str(p.relative_to(path)), p) for p in _images_below(path)], path
        elif path.is_file():
            pairs, folder = [(path.name, path)], path.parent
        else:
            paths = [Path(p) for p in glob.glob(str(path), recursive=True)]
            pairs, folder = [(p.name, p) for p in paths if p.is_file() and _is_image(p)], _fixed_part(path)
        if target is not None:
            if folder.resolve().is_relative_to(target):
                raise InputError(
                    f"--output {output} holds the input {text}, which predictions could overwrite; give a folder of its own, "
                    "such as predictions"
                )
            pairs = [(name, p) for name, p in pairs if not p.resolve().is_relative_to(target)]
        if not pairs:
            raise InputError(f"--input {text}: no image is there; give a file, a folder or a quoted pattern")
        for name, file in pairs:
            if found.get(name, file) != file:
                raise InputError(
                    f"{found[name]} and {file} would be written under one name; give their folder"
                )
            found[name] = file
    return sorted(found.items())


def _images_below(folder: Path) -> Iterator[Path]:
    """Yield the images below ``folder``, without those of hidden folders and of systems' thumbnails."""
    for current, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (path for path in (Path(current) / name for name in names) if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path.name)


def _fixed_part(pattern: Path) -> Path:
    """Return the folder that a pattern searches in: its path up to the first part with a wildcard."""
    for folder in reversed(pattern.parents):
        if glob.has_magic(str(folder)):
            return folder.parent
    return pattern.parent


def output_names(names: Sequence[str]) -> list[str]:
    """Return what the outputs of the images ``names`` are called, without suffix: a for a.jpg.

    The image's suffix stays where the name would stand for two images otherwise: a.jpg and a.png for those two.
    """
    stems = [os.path.splitext(name)[0] for name in names]
    whole = [False] * len(names)
    while True:
        chosen = [name if keep else stem for name, stem, keep in zip(names, stems, whole, strict=True)]
        counts = Counter(chosen)
        again = [keep or counts[text] > 1 for text, keep in zip(chosen, whole, strict=True)]
        if again == whole:
            return chosen
        whole = again


class _Images(Dataset[Any]):
    """Mapped images with what was decoded, or the error about one."""

    def __init__(self, cfg: CfgNode, images: Sequence[tuple[str, Path]]) -> None:
        self._images = images
        self._mapper = SemanticMapper(cfg, False)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any] | InputError:
        record = {"file_name": str(self._images[index][1])}
        try:
            image, _ = self._mapper.read(record)
            return {**self._mapper.transform(record, image), DECODED: torch.from_numpy(np.array(image))}
        except Exception as error:
            return InputError(_failure(self._images[index][1], error))


def _mapped(cfg: CfgNode, images: Sequence[tuple[str, Path]]) -> Iterator[Any]:
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
    output: Path,
    name: str,
    image: np.ndarray,
    labels: np.ndarray,
    colours: Sequence[Colour],
    strength: float,
) -> None:
    """Write the label map as PNG, with a palette of the classes' colours, and the overlay as JPEG, each whole or not at all."""
    tinted = overlay(Image.fromarray(image), labels, colours, strength=strength, ignore_value=-1)
    picture = Image.fromarray(labels.astype(np.uint8 if len(colours) <= 256 else np.uint16))
    if len(colours) <= 256:
        picture.putpalette([part for colour in colours for part in colour])
    _save(picture, output / "labels" / f"{name}.png", output)
    _save(tinted, output / "overlays" / f"{name}.jpg", output, quality=92)


def _save(picture: Image.Image, path: Path, output: Path, **options: Any) -> None:
    _make_folder(path.parent, output)
    save_picture(picture, path, durable=False, **options)


def _make_folder(path: Path, output: Path) -> None:
    """Make a folder in ``output``. Raises InputError where a link leads out of it: what is there may be somebody else's."""
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    if os.path.lexists(output) and not existing.resolve().is_relative_to(output.resolve()):
        raise InputError(f"{path} is a link out of {output}, to {existing.resolve()}; give another --output")
    path.mkdir(parents=True, exist_ok=True)
