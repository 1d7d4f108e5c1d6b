#!/usr/bin/env python3
"""Time to load a training image, beside Detectron2's DatasetMapper with the same augmentations and the same output.

    python benchmark/loader_speed.py [--config-file FILE] [--images N] [--rounds N] [KEY VALUE ...]

Reads the training data of the config (default: CamVid with resize, crop and flip). The peer is Detectron2's mapper where it
is installed, else the built-in runtime's. Before anything is timed, both must give the same tensors from the same draws.
One process, one thread; medians over rounds, ratios within rounds.
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from hicl_d2.config import load_config
from hicl_d2.d2 import RUNTIME
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetMapper
from hicl_d2.data.datasets.registry import Records, load_records
from hicl_d2.data.mapper import SemanticMapper, build_augmentations
from hicl_d2.errors import InputError

CONFIG = Path(__file__).parent.parent / "configs" / "camvid" / "deeplab_v3_plus_R_50_20k_bs16.yaml"
MOST = 0.6

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def mappers(cfg: CfgNode) -> dict[str, Mapper]:
    """Return the peer and ours, with decoded files kept and without."""
    peer = DatasetMapper(True, augmentations=build_augmentations(cfg, True), image_format=cfg.INPUT.FORMAT)
    ours = SemanticMapper.from_config(cfg, True)
    # The peer does not pad.
    ours.update(pad_to=None, keep_decoded=False)
    return {
        "peer": peer,
        "ours": SemanticMapper(**ours),
        "ours, decoded files kept": SemanticMapper(**{**ours, "keep_decoded": True}),
    }


def run(mapper: Mapper, records: Records) -> tuple[float, list[dict[str, Any]]]:
    """Map every record from draws of its own; return the seconds of this process, and the results."""
    results, seconds = [], 0.0
    for seed, record in enumerate(records):
        np.random.seed(seed)
        random.seed(seed)
        before = time.process_time()
        mapped = mapper(record)
        seconds += time.process_time() - before
        results.append(mapped)
    return seconds, results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the target does not touch the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(CONFIG))
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("opts", nargs="*")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        cfg = load_config(args.config_file, args.opts)
        records = load_records(cfg.DATASETS.TRAIN[0])
    except InputError as error:
        sys.stderr.write(f"loader_speed.py: {error}\n")
        return 2
    step = max(1, len(records) // args.images)
    records = records[::step][: args.images]
    compared = mappers(cfg)
    expected = run(compared["peer"], records)[1]
    for name, mapper in compared.items():
        for theirs, mapped in zip(expected, run(mapper, records)[1], strict=True):
            for key in ("image", "sem_seg"):
                if not torch.equal(theirs[key], mapped[key]):
                    raise AssertionError(f"{name} gives another {key} for {mapped['file_name']}")
    times: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(args.rounds):
        for name, mapper in compared.items():
            times[name].append(1000 * run(mapper, records)[0] / len(records))
    _show(f"runtime {RUNTIME}, torch {torch.__version__}, {len(records)} images of {cfg.DATASETS.TRAIN[0]}\n")
    lines = []
    _show("\n| mapper | ms an image | of the peer's time |\n|---|---|---|\n")
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, times["peer"], strict=True))
        _show(f"| {name} | {statistics.median(own):.2f} | {ratio:.2f} |\n")
        if name != "peer":
            verdict = "met" if ratio <= MOST else "missed"
            times_line = (
                f"target: {name}: at most {MOST:g} x the peer's time; measured {ratio:.2f} x; {verdict}"
            )
            lines.append(times_line)
    _show("\n" + "\n".join(lines) + "\n")
    return 0


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
