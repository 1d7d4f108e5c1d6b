#!/usr/bin/env python3
"""Loading at ADE20K's scale: start-up, images a second by number of workers, and memory over an epoch.

    python benchmark/loader_scale.py [--images N] [--workers N ...] [--batches N] [--output FILE] [KEY VALUE ...]

The data set is made of the training frames of CamVid, resized to 683 x 512 and saved as JPEG, with their label maps, each
linked to many times under names of its own below a temporary folder. The loader is that of an ADE20K recipe: 16 crops of
512 x 512 a batch, with colours. Start-up is listing the files, then all that a run checks of its data before it trains.
Memory is what the main process and its workers hold together, in MB, shared pages divided among those that share them,
after every tenth of the batches.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image
from speed.arguments import csv_file
from speed.meter import processor
from speed.rows import write_csv
from speed.targets import verdict
from tabulate import tabulate

from hicl_d2.command.cli import Parser, parse_with_overrides, run, whole
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.d2.config import CfgNode
from hicl_d2.data.datasets.registry import Records, load_records
from hicl_d2.data.loader import build_train_loader
from hicl_d2.data.preflight import check_datasets

CONFIG = Path(__file__).parent.parent / "configs" / "ade20k" / "deeplab_v3_plus_R_103_160k_bs16.yaml"
SOURCE = "camvid_train"
SIZE = (683, 512)
FRAMES = 100
NAME = "ade20k_sem_seg_train"
# Seconds to list the files, and the growth of memory over an epoch, in shares, that the benchmark asks for.
MOST_SECONDS = 1.0
MOST_GROWTH = 0.05


def main() -> int:
    """Print the tables; the targets do not touch the exit status."""
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--config-file", default=str(CONFIG))
    parser.add_argument("--images", type=whole(1), default=25_000)
    parser.add_argument("--workers", type=whole(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=whole(10), help="batches to load (default: an epoch)")
    parser.add_argument("--output", type=csv_file, help="CSV file to write")
    args = parse_with_overrides(parser)
    torch.set_num_threads(1)
    console.silence()
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder), load_records(SOURCE)[:FRAMES], args.images)
        os.environ["DETECTRON2_DATASETS"] = folder
        cfg = load_config(args.config_file, args.opts)
        cfg.defrost()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.MODEL.DEVICE = (NAME,), (), "cpu"
        batches = args.batches or max(10, args.images // cfg.SOLVER.IMS_PER_BATCH)
        _show(
            f"{processor(torch.device('cpu'))}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch "
            f"{torch.__version__}: {args.images} images of {SIZE[0]} x {SIZE[1]}\n"
        )
        listing = _seconds(lambda: load_records(NAME))
        checks = _seconds(lambda: check_datasets(cfg))
        _show(f"listing the files {listing:.2f} s, all checks of the data {checks:.2f} s\n")
        _show(
            verdict("listing", f"under {MOST_SECONDS:g} s", f"{listing:.2f} s", listing < MOST_SECONDS) + "\n"
        )
        rows = [load(cfg, workers, batches) for workers in args.workers]
    _show("\n" + tabulate(rows, "keys", "github", floatfmt=".1f") + "\n")
    if args.output:
        write_csv(args.output, [row | {"device": processor(torch.device("cpu"))} for row in rows])
    return 0


def make_dataset(root: Path, frames: Records, count: int) -> None:
    """Make a training set of ADE20K's layout of ``count`` images out of a few frames."""
    folders = [
        root / "ADEChallengeData2016" / kind / "training" for kind in ("images", "annotations_detectron2")
    ]
    for folder in folders:
        folder.mkdir(parents=True)
    images, labels = folders
    for number in range(count):
        names = images / f"ADE_train_{number:08d}.jpg", labels / f"ADE_train_{number:08d}.png"
        if number < len(frames):
            record = frames[number]
            with Image.open(record["file_name"]) as image, Image.open(record["sem_seg_file_name"]) as areas:
                image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC).save(names[0], quality=90)
                areas.resize(SIZE, Image.Resampling.NEAREST).save(names[1])
            continue
        for name, folder in zip(names, folders, strict=True):
            os.link(folder / f"ADE_train_{number % len(frames):08d}{name.suffix}", name)


def load(cfg: CfgNode, workers: int, batches: int) -> dict[str, Any]:
    """Load some batches, print and return the row of it."""
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_train_loader(cfg)
    stream = iter(loader)
    next(stream)  # the workers are started
    memory, tenth = [], batches // 10
    start = time.perf_counter()
    for _ in range(10):
        for _ in islice(stream, tenth):
            pass
        memory.append(_held())
    rate = 10 * tenth * cfg.SOLVER.IMS_PER_BATCH / (time.perf_counter() - start)
    growth = memory[-1] / memory[0] - 1
    _show(
        f"{workers} workers: {rate:.1f} images / s; {' '.join(f'{held:.0f}' for held in memory)} MB after each tenth of "
        f"{10 * tenth} batches\n"
    )
    asked = f"grows by at most {MOST_GROWTH:.0%}"
    _show(verdict(f"memory, {workers} workers", asked, f"{growth:+.1%}", growth <= MOST_GROWTH) + "\n")
    return {
        "workers": workers,
        "batches": 10 * tenth,
        "images / s": rate,
        "MB after a tenth": memory[0],
        "MB at the end": memory[-1],
    }


def _held() -> float:
    """Return the MB that this process and its workers hold."""
    return sum(map(_share_of_memory, (os.getpid(), *_workers()))) / 1024


def _workers() -> Iterator[int]:
    return (child.pid for child in multiprocessing.active_children() if child.pid is not None)


def _share_of_memory(pid: int) -> int:
    """Return the KB that a process holds, of shared pages its share."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError as error:
        raise InputError(f"the memory of a process is read from /proc, which Linux has: {error}") from None
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    run("loader_scale", main)
