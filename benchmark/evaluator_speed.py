#!/usr/bin/env python3
"""Time and state of the semantic evaluator beside Detectron2's, on predictions of the benchmarks' sizes.

    python benchmark/evaluator_speed.py [--rounds N] [--threads N]

The peer is Detectron2's SemSegEvaluator, without and with its boundary figures; without Detectron2 ours is measured alone.
All are given the same scores and label files; the figures are medians over rounds, each evaluator twice per round, of which
the second counts, and ratios within rounds.
"""

import io
import os
import pickle
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

from hicl_d2.command.cli import Parser, run, whole
from hicl_d2.d2 import RUNTIME
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.d2.projects import original
from hicl_d2.evaluation import SemSegConfusionEvaluator

# (classes, height, width): Cityscapes, COCO-Stuff.
CASES = [(19, 1024, 2048), (171, 480, 640)]
LEAST_SPEEDUP = 4.0
IMAGES_FOR_STATE = 10


def make_case(folder: Path, classes: int, height: int, width: int) -> tuple[str, Any, Any]:
    """Register one image; return the data set's name, the input record, and the output: scores near the truth."""
    generator = np.random.default_rng(0)
    rough = generator.integers(0, classes, (height // 32, width // 32))
    labels = rough.repeat(32, axis=0).repeat(32, axis=1).astype(np.uint8)
    path = folder / f"{classes}.png"
    Image.fromarray(labels).save(path)
    record = {
        "file_name": f"{classes}.jpg",
        "sem_seg_file_name": str(path),
        "height": height,
        "width": width,
    }
    name = f"evaluator_speed_{folder.name}_{classes}"
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(stuff_classes=[f"class {c}" for c in range(classes)], ignore_label=255)
    scores = torch.randn(classes, height, width, generator=torch.Generator().manual_seed(0))
    scores.scatter_add_(0, torch.from_numpy(labels).long()[None], torch.full((1, height, width), 4.0))
    return name, [record], [{"sem_seg": scores}]


def evaluators(name: str) -> dict[str, Any]:
    """Return the evaluators to compare, ours first; the peer's only with Detectron2."""
    found: dict[str, Any] = {"ours": SemSegConfusionEvaluator(name)}
    found["ours, boundaries and object sizes"] = SemSegConfusionEvaluator(
        name, boundary_distance=0.02, object_sizes=True
    )
    peer_class = original("evaluation", "SemSegEvaluator")
    if peer_class is not None:
        peer = found["peer"] = peer_class(name, distributed=False)
        if getattr(peer, "_compute_boundary_iou", False):
            found["peer, boundaries"] = peer_class(name, distributed=False)
        peer._compute_boundary_iou = False
    for evaluator in found.values():
        evaluator.reset()
    return found


def state_size(evaluator: Any) -> int:
    """Return the bytes that an evaluator's state takes when it is written out."""
    stream = io.BytesIO()
    pickle.dump([value for value in vars(evaluator).values() if _is_state(value)], stream)
    return stream.tell()


def _is_state(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # loggers, functions: no state
        return False
    return True


def growth(evaluator: Any, inputs: Any, outputs: Any) -> float:
    """Return the bytes of state that each further image adds."""
    evaluator.reset()
    evaluator.process(inputs, outputs)
    before = state_size(evaluator)
    for _ in range(IMAGES_FOR_STATE):
        evaluator.process(inputs, outputs)
    return (state_size(evaluator) - before) / IMAGES_FOR_STATE


def compare(folder: Path, case: tuple[int, int, int], rounds: int) -> list[str]:
    """Measure one case, show its table, and return the lines about its targets."""
    name, inputs, outputs = make_case(folder, *case)
    found = evaluators(name)
    steps: dict[str, Callable[[], Any]] = {
        label: partial(evaluator.process, inputs, outputs) for label, evaluator in found.items()
    }
    times = measure(steps, rounds, torch.device("cpu"))
    title = " x ".join(map(str, case))
    _show(
        f"\n{title}\n\n| evaluator | ms an image | peer / it | bytes of state per image |\n|---|---|---|---|\n"
    )
    for label, evaluator in found.items():
        ratio = f"{median_ratio(times['peer'], times[label]):.2f}" if "peer" in times else "needs Detectron2"
        bytes_per_image = growth(evaluator, inputs, outputs)
        _show(f"| {label} | {np.median(times[label]):.1f} | {ratio} | {bytes_per_image:,.0f} |\n")
    grows = growth(found["ours"], inputs, outputs)
    lines = [verdict(title, "no memory per image", f"{grows:,.0f} bytes", grows == 0)]
    if "peer" in times:
        speedup = median_ratio(times["peer"], times["ours"])
        least = f"at least {LEAST_SPEEDUP:g} x as fast as the peer"
        lines.insert(0, verdict(title, least, f"{speedup:.2f} x", speedup >= LEAST_SPEEDUP))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the targets do not touch the exit status."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=whole(1), default=7, help="rounds that are counted")
    parser.add_argument("--threads", type=whole(1), default=1, help="CPU threads (default 1)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test this script")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    cases = [(5, 64, 96)] if args.quick else CASES
    _show(f"runtime {RUNTIME}, torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds\n")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            lines += compare(Path(folder), case, args.rounds)
    _show("\n" + "\n".join(lines) + "\n")
    return 0


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    run("evaluator_speed", main)
