"""Looking into the branch: what it makes of one image at a time."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hicl_d2.command.console import console, counter
from hicl_d2.command.errors import InputError, counted, listing
from hicl_d2.command.files import check_writable
from hicl_d2.contrast.branch import HiCLBranch
from hicl_d2.contrast.class_pooling import belongs_to_component, find_candidates, gather_class_windows
from hicl_d2.contrast.fused import ClassScores, embed, gather_windows
from hicl_d2.contrast.grid import LabelGrid, align_labels, resize_logits
from hicl_d2.contrast.levels import Level
from hicl_d2.contrast.pruning import Pruned, prune
from hicl_d2.d2.config import CfgNode
from hicl_d2.data.datasets.registry import Records, load_records
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.evaluation import predicted_classes
from hicl_d2.modeling.hicl import branch_logits
from hicl_d2.run.logs import run_log
from hicl_d2.tools.predict import class_names, load_model
from hicl_d2.visualization.components import (
    CONFIDENCE,
    COVERAGE,
    FEW,
    KEPT,
    PURITY,
    ClassLevelPicture,
    EmbeddingPicture,
    LevelPicture,
    explain,
)
from hicl_d2.visualization.files import check_own, save_picture
from hicl_d2.visualization.pictures import evenly_spaced, picture_names

# Points drawn per class, and per class and level.
PIXELS_OF_A_CLASS = 150
COMPONENTS_OF_A_CLASS = 25


@run_log()
def main(args: Namespace) -> None:
    """Draw the images of ``args``."""
    check_writable(args.output, "--output")
    records: list[dict[str, Any]] = []
    cfg, model = load_model(
        args.config_file,
        args.weights,
        args.opts,
        args.output,
        check=lambda cfg: records.extend(_records(cfg, args)),
    )
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    classes, colours = class_names(cfg)
    advance = counter("looking into", len(records))
    mapper = SemanticMapper(cfg, False)
    for record, name in zip(records, picture_names(records), strict=True):
        mapped = mapper(record)
        image, truth, prediction, levels, embedding = inspect(cfg, model, mapped)
        sheet = explain(
            Path(record["file_name"]).name,
            image,
            truth,
            prediction,
            levels,
            embedding,
            classes,
            colours,
            ignore_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        )
        save_picture(sheet, folder / f"{name}.png")
        advance()
    console.show(f"{counted(len(records), 'picture')} in {folder}")


def _records(cfg: CfgNode, args: Namespace) -> list[dict[str, Any]]:
    """Return the records of ``args``. Raises InputError for a config without a Hi-CL branch and for unknown data."""
    hicl = cfg.MODEL.HICL
    if cfg.MODEL.META_ARCHITECTURE != "HiCL" or not hicl.ENABLED or hicl.CONTRAST != "hicl":
        raise InputError(
            f"{args.config_file} has no Hi-CL branch: MODEL.META_ARCHITECTURE must be HiCL, with MODEL.HICL.ENABLED True "
            "and MODEL.HICL.CONTRAST hicl"
        )
    name = args.dataset or next(iter(cfg.DATASETS.TEST), "")
    if not name:
        raise InputError("give --dataset NAME, or a config whose DATASETS.TEST names one")
    records = load_records(name)
    _check_beside(args.output, records)
    chosen = _choose(records, args.image, args.count)
    check_own((Path(args.output) / f"{name}.png" for name in picture_names(chosen)), "--output")
    return chosen


def _check_beside(output: str, records: Records) -> None:
    """Raise InputError if pictures would be written among the images or label maps, whose names they have."""
    folder = Path(output).resolve()
    for record in records:
        for key in ("file_name", "sem_seg_file_name"):
            if key in record and Path(record[key]).resolve().parent == folder:
                raise InputError(
                    f"--output {output} holds {record[key]}, which a picture could overwrite; give a folder of its own"
                )


def _choose(records: Records, images: list[str], count: int) -> Records:
    """Return the records of the named images (file name or stem), or ``count`` evenly spaced ones."""
    if not images:
        return evenly_spaced([record for record in records if "sem_seg_file_name" in record], count)
    by_name = {Path(record["file_name"]).stem: record for record in records if "sem_seg_file_name" in record}
    unknown = [name for name in images if Path(name).stem not in by_name]
    if unknown:
        raise InputError(f"no labelled image is called {unknown[0]}; there are {listing(by_name, 4)}")
    return [by_name[Path(name).stem] for name in images]


@torch.no_grad()
def inspect(
    cfg: CfgNode, model: nn.Module, mapped: dict[str, Any]
) -> tuple[Image.Image, np.ndarray, np.ndarray, list[LevelPicture], EmbeddingPicture]:
    """Run ``model`` on a mapped record in eval mode; return image, truth, prediction, levels and embedding, all at the
    size that the model saw.
    """
    image = mapped["image"]
    height, width = image.shape[1:]
    branch = cast(HiCLBranch, model.hicl)
    # The label map of a test image is not resized with it: bring it to the size that the branch sees in training.
    truth = F.interpolate(mapped["sem_seg"][None, None].float(), (height, width), mode="nearest")[0, 0].long()
    with branch.attachment.capturing() as captured:
        output = model([{"image": image, "height": height, "width": width}])[0]["sem_seg"]
    seen = captured[0]
    features = seen.features.float()
    padded = cast(Tensor, seen.images).shape[-2:]
    labels = F.pad(truth, (0, padded[1] - width, 0, padded[0] - height), value=branch.ignore_value)
    size = (features.shape[2], features.shape[3])
    grid = align_labels(labels[None].to(features.device), size, branch.num_classes, branch.ignore_value)
    logits = branch_logits(model, seen.logits)
    scores = None if logits is None else ClassScores(resize_logits(logits, size))
    cells = _cells(grid, branch)
    if branch.by_class:
        levels, components = _class_levels(grid, branch, cells)
    else:
        levels, components = _levels(grid, branch, scores)
    picture = image.flip(0) if cfg.INPUT.FORMAT == "BGR" else image
    return (
        Image.fromarray(picture.permute(1, 2, 0).numpy()),
        truth.numpy(),
        predicted_classes(output).cpu().numpy(),
        levels,
        _embed(features, branch, cells.classes, components),
    )


def _cells(grid: LabelGrid, branch: HiCLBranch) -> Pruned:
    """Return what the first level's thresholds leave of single cells."""
    single = Level.cell(branch.levels[0].purity, branch.levels[0].coverage)
    return prune(grid, branch.count_labels(grid, [single])[0], single)


def _levels(
    grid: LabelGrid, branch: HiCLBranch, scores: ClassScores | None
) -> tuple[list[LevelPicture], list[np.ndarray]]:
    """Return class and fate of every window (each criterion is switched on after the other), and the classes of the
    components: by level, in the numbering of `gather_windows`, -1 where there is none.
    """
    pictures: list[LevelPicture] = []
    for level, labels in zip(branch.levels, branch.count_labels(grid, branch.levels), strict=True):
        steps = [
            prune(grid, labels, replace(level, purity=0.0, confidence=(0.0, 1.0)), None),
            prune(grid, labels, replace(level, confidence=(0.0, 1.0)), None),
            prune(grid, labels, level, scores),
        ]
        fates = torch.full_like(steps[0].classes[0], KEPT)
        for fate, step in reversed(list(zip((COVERAGE, PURITY, CONFIDENCE), steps, strict=True))):
            fates[step.classes[0] < 0] = fate
        pictures.append(
            LevelPicture(
                level.window,
                level.window * grid.stride,
                level.step * grid.stride,
                steps[2].classes[0].cpu().numpy(),
                fates.cpu().numpy(),
            )
        )
    return pictures, [picture.classes.ravel() for picture in pictures]


def _class_levels(
    grid: LabelGrid, branch: HiCLBranch, cells: Pruned
) -> tuple[list[LevelPicture], list[np.ndarray]]:
    """Return the same of class pooling, of which each cell has a class and a fate; numbered as in `gather_class_windows`."""
    pictures: list[LevelPicture] = []
    components = []
    for level in branch.levels:
        found = find_candidates(cells.classes, branch.num_classes, level)
        member = belongs_to_component(cells.classes, branch.num_classes, level)[0]
        fates = torch.where(member, KEPT, FEW)
        fates[~cells.pure[0]] = PURITY
        fates[~cells.covered[0]] = COVERAGE
        pictures.append(
            ClassLevelPicture(
                level.window,
                level.window * grid.stride,
                level.step * grid.stride,
                cells.classes[0].cpu().numpy(),
                fates.cpu().numpy(),
                cell=grid.stride,
                windows=level.extent(grid.size),
                candidates=int(found.pure.sum()),
                kept=int(found.kept.sum()),
            )
        )
        components.append(found.classes.cpu().numpy().ravel())
    return pictures, components


def _embed(
    features: Tensor, branch: HiCLBranch, classes: Tensor, components_of: list[np.ndarray]
) -> EmbeddingPicture:
    """Embed every cell and the kept components, and project both on the principal directions of the cells."""
    generator = np.random.default_rng(0)
    cells = classes[0].flatten().cpu().numpy()
    chosen = _balanced(cells, PIXELS_OF_A_CLASS, generator)
    windows, component_classes, component_levels, first = [], [], [], 0
    for number, flat in enumerate(components_of):
        some = _balanced(flat, COMPONENTS_OF_A_CLASS, generator)
        windows.append(first + some)
        component_classes.append(flat[some])
        component_levels.append(np.full(len(some), number))
        first += flat.size
    every = torch.arange(len(cells), device=features.device)
    picked = torch.from_numpy(np.concatenate(windows)).to(features.device)
    if branch.by_class:
        is_one = torch.ones_like(picked, dtype=torch.bool)
        rows = gather_class_windows(
            features, every, picked, is_one, classes, branch.num_classes, branch.levels
        )
    else:
        rows = gather_windows(features, every, picked, branch.levels)
    embedded = embed(branch.embedding, rows.to(branch.compute_dtype)).float().cpu()
    dense, components = embedded[: len(every)], embedded[len(every) :]
    mean = dense.mean(dim=0)
    _, spread, directions = torch.linalg.svd(dense - mean, full_matrices=False)
    projected = ((dense - mean) @ directions[:3].T).numpy()
    low, high = np.percentile(projected, [2, 98], axis=0)
    colour = ((projected - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    return EmbeddingPicture(
        projected[chosen, :2],
        cells[chosen],
        ((components - mean) @ directions[:2].T).numpy(),
        np.concatenate(component_classes),
        np.concatenate(component_levels),
        float(spread[:2].square().sum() / spread.square().sum().clamp(min=1e-12)),
        colour.reshape(*classes.shape[1:], 3),
    )


def _balanced(classes: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """Return the indices of up to ``most`` entries of every class; -1 is none."""
    chosen = []
    for label in np.unique(classes[classes >= 0]):
        places = (classes == label).nonzero()[0]
        chosen.append(generator.permutation(places)[:most])
    return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
