#!/usr/bin/env python3
"""Time to load a training image, beside Detectron2's DatasetMapper with the same augmentations and the same output.

    python benchmark/loader_speed.py [--config-file FILE] [--images N] [--rounds N] [KEY VALUE ...]

Reads the training data of the config (default: CamVid) with resize, crop and flip, and once more with the colour augmentation.
The peer is Detectron2's mapper, with its colours where OpenCV is installed; without Detectron2 ours is timed alone. Before
anything is timed, ours must give the peer's tensors from the same draws (with our colours: OpenCV rounds otherwise at the end
of a row). One process, one thread; medians over rounds, ratios within rounds.
"""

import os
import random
import statistics
import sys
import tempfile
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from speed.meter import measure, median_ratio
from speed.targets import verdict

from hicl_d2.command import cli
from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.d2 import RUNTIME
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.projects import original
from hicl_d2.data.color import ColorAugSSDTransform
from hicl_d2.data.custom import register_custom
from hicl_d2.data.datasets.registry import Records, load_records
from hicl_d2.data.mapper import SemanticMapper, build_augmentations
from hicl_d2.data.preflight import check_inputs

CONFIG = Path(__file__).parent.parent / "configs" / "camvid" / "deeplab_v3_plus_R_50_20k_bs16.yaml"
MOST = 0.6

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def make_peer(cfg: CfgNode, colours: type) -> Mapper | None:
    """Return Detectron2's mapper with the augmentations of ``cfg`` and a class for the colours; None without Detectron2."""
    peer = original("data", "DatasetMapper")
    if peer is None:
        return None
    augmentations = [
        colours(cfg.INPUT.FORMAT) if isinstance(augmentation, ColorAugSSDTransform) else augmentation
        for augmentation in build_augmentations(cfg, True)
    ]
    return peer(True, augmentations=augmentations, image_format=cfg.INPUT.FORMAT)


def make_ours(cfg: CfgNode) -> dict[str, Mapper]:
    """Return our mapper, without and with decoded files kept."""
    # The peer does not pad.
    given = {**SemanticMapper.from_config(cfg, True), "pad_to": None}
    return {
        "ours": SemanticMapper(**{**given, "keep_decoded": False}),
        "ours, decoded files kept": SemanticMapper(
            **{**given, "keep_decoded": True, "reduced_decoding": False}
        ),
    }


def run(mapper: Mapper, records: Records) -> list[dict[str, Any]]:
    """Map every record from draws of its own."""
    mapped = []
    for seed, record in enumerate(records):
        np.random.seed(seed)
        random.seed(seed)
        mapped.append(mapper(record))
    return mapped


def check_equal(peer: Mapper, compared: dict[str, Mapper], records: Records) -> None:
    """Raise AssertionError for a mapper that gives other tensors than the peer."""
    expected = run(peer, records)
    for name, mapper in compared.items():
        for theirs, mapped in zip(expected, run(mapper, records), strict=True):
            for key in ("image", "sem_seg"):
                if not torch.equal(theirs[key], mapped[key]):
                    raise AssertionError(f"{name} gives another {key} for {mapped['file_name']}")


def compare(cfg: CfgNode, title: str, records: Records, rounds: int) -> list[str]:
    """Measure all mappers, show their table, and return the lines about the targets."""
    compared = make_ours(cfg)
    reference = make_peer(cfg, ColorAugSSDTransform)
    colours = original("projects.point_rend", "ColorAugSSDTransform")
    peer = make_peer(cfg, colours or ColorAugSSDTransform)
    if reference is not None and peer is not None:
        check_equal(reference, compared, records)
        compared = {"peer": peer, **compared}
    times = measure(
        {name: partial(run, mapper, records) for name, mapper in compared.items()},
        rounds,
        torch.device("cpu"),
    )
    lines = []
    _show(f"\n{title}\n\n| mapper | ms an image | of the peer's time |\n|---|---|---|\n")
    for name, own in times.items():
        milliseconds = f"{statistics.median(own) / len(records):.2f}"
        if "peer" not in times:
            _show(f"| {name} | {milliseconds} | needs Detectron2 |\n")
            continue
        ratio = median_ratio(own, times["peer"])
        _show(f"| {name} | {milliseconds} | {ratio:.2f} |\n")
        if name != "peer":
            asked = f"at most {MOST:g} x the peer's time"
            lines.append(verdict(f"{title}: {name}", asked, f"{ratio:.2f} x", ratio <= MOST))
    return lines


def make_records(folder: Path, count: int) -> Records:
    """Write images of noise with label maps of one class, and return their records."""
    generator = np.random.default_rng(0)
    records = []
    for number in range(count):
        image, labels = folder / f"{number}.jpg", folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (36, 48, 3), dtype=np.uint8)).save(image)
        Image.fromarray(np.zeros((36, 48), dtype=np.uint8)).save(labels)
        records.append({"file_name": str(image), "sem_seg_file_name": str(labels)})
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the targets do not touch the exit status."""
    parser = cli.Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config-file", default=str(CONFIG))
    parser.add_argument("--images", type=cli.whole(1), default=60)
    parser.add_argument("--rounds", type=cli.whole(1), default=7)
    parser.add_argument("--quick", action="store_true", help="tiny images of noise, to test this script")
    args = cli.parse_with_overrides(parser, arguments)
    torch.set_num_threads(1)
    cfg = load_config(args.config_file, args.opts)
    check_inputs(cfg)
    register_custom(cfg)
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN names no data set; give at least one")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        records = (
            make_records(Path(folder), args.images) if args.quick else load_records(cfg.DATASETS.TRAIN[0])
        )
        records = records[:: max(1, len(records) // args.images)][: args.images]
        source = "noise" if args.quick else cfg.DATASETS.TRAIN[0]
        _show(f"runtime {RUNTIME}, torch {torch.__version__}, {len(records)} images of {source}\n")
        for title, colours in (("resize, crop, flip", False), ("resize, crop, colours, flip", True)):
            cfg.defrost()
            cfg.INPUT.COLOR_AUG_SSD = colours
            lines += compare(cfg, title, records, args.rounds)
    _show("\n" + "\n".join(lines) + "\n")
    return 0


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    cli.run("loader_speed", main)
