"""Measure on a graphics card, within a few minutes, what a CPU cannot say: ``python benchmark/gpu_report.py --output DIR``.

In this order: the tests that a step waits for nothing on a GPU; time and memory of a training step with and without the branch
(DeepLabV3+ R-50 and Mask2Former R-50, 8 x 512 x 1024, bfloat16); whole training steps beside Detectron2's trainer, where
Detectron2 is on the Python path, on CamVid; the table of contrasts; and, for the minutes that are left, cells of a matrix,
several at once. A part that is done leaves DIR/<part>/done and is not repeated; a part that runs out of time
is stopped and may be done by the next call. Each part's output is in DIR/<part>/log.txt. With --tiny every part runs at sizes
that a CPU does in a minute, to try the script.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path

import torch
from speed.arguments import device_name
from speed.meter import processor

from hicl_d2.command.cli import Parser, run, whole
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError
from hicl_d2.command.files import check_writable, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
MATRIX = ROOT / "benchmark" / "matrices" / "camvid_pretrained_gpu.yaml"
MODELS = ("deeplab_v3_plus_R_103_90k_bs16_hicl", "mask2former_R_50_90k_bs16_hicl")
# Beside Detectron2's trainer; and what a CPU can do to try it.
TRAINED = [f"configs/camvid/{name}_R_50_20k_bs16_hicl.yaml" for name in ("deeplab_v3_plus", "mask2former")]
TRAINED_TINY = ["configs/parts/deeplab_v3_plus_R_18_hicl.yaml"]
# Seconds that a part gets after it was asked to stop.
GRACE = 20


@dataclass(frozen=True)
class Part:
    """A command of the report and the share of the remaining minutes that it may take."""

    name: str
    command: list[str]
    share: float


def parts(folder: Path, device: str, matrix: Path, per_gpu: int, *, tiny: bool) -> list[Part]:
    """Return the parts in their order; outputs go to ``folder``/<part>."""
    python = sys.executable
    tests = ["tests/contrast/test_no_sync.py", "tests/engine/test_waits.py"]
    waits = [python, "-m", "pytest", "-q", "-k", "wait or sync", *tests]
    contrasts = [
        "benchmark/contrast_speed.py",
        "--device",
        device,
        "--output",
        f"{folder}/contrasts/contrasts.csv",
    ]
    contrasts += ["--quick"] if tiny else ["--targets", "--rounds", "5"]
    slots = ["--slots", "1", "--shorten"] if device == "cpu" else ["--per-gpu", str(per_gpu)]
    verb = ["benchmark/run_matrix.py", "run", "--matrix", str(matrix), "--output", f"{folder}/cells", *slots]
    return [
        Part("waits", waits, 0.2),
        *(
            Part(name.partition("_R")[0], [python, *_model(folder, name, device, tiny)], 0.3)
            for name in MODELS
        ),
        Part("steps", [python, *_steps(folder, device, tiny)], 0.3),
        Part("contrasts", [python, *contrasts], 0.4),
        Part("cells", [python, *verb], 1.0),
    ]


def _model(folder: Path, name: str, device: str, tiny: bool) -> list[str]:
    part = name.partition("_R")[0]
    batch, size, rounds = (1, "(64,64)", 1) if tiny else (8, "(512,1024)", 5)
    overrides = ["MODEL.RESNETS.DEPTH", "50", "MODEL.WEIGHTS", "", "INPUT.CROP.SIZE", size]
    overrides += ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]
    words = [
        "--config-file",
        f"configs/cityscapes/{name}.yaml",
        "--batch",
        str(batch),
        "--rounds",
        str(rounds),
    ]
    words += ["--device", device, "--output", f"{folder}/{part}/{part}.csv"]
    return ["benchmark/model_speed.py", *words, *overrides]


def _steps(folder: Path, device: str, tiny: bool) -> list[str]:
    configs, rounds = (TRAINED_TINY, 1) if tiny else (TRAINED, 5)
    words = [
        "--config-file",
        *configs,
        "--precision",
        "bfloat16",
        "--rounds",
        str(rounds),
        "--device",
        device,
    ]
    return ["benchmark/step_speed.py", *words, "--output", f"{folder}/steps/steps.csv"]


def main() -> int:
    """Do the parts that are not done; return 1 if one failed, 0 if all that had the time succeeded."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=_minutes, default=9, help="for all parts together (default 9)")
    parser.add_argument("--device", type=device_name, choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--matrix", type=Path, default=MATRIX, help="whose cells fill the minutes that are left"
    )
    parser.add_argument("--per-gpu", type=whole(1), default=4, help="cells on the card at once")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to try this script")
    args = parser.parse_args()
    check_writable(args.output, "--output")
    if not args.matrix.is_file():
        raise InputError(
            f"--matrix {args.matrix} does not exist; benchmark/matrices holds those of the project"
        )
    end = time.monotonic() + 60 * args.minutes
    folder = args.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    write_json(folder / "machine.json", {"device": processor(device), "torch": torch.__version__})
    failed = []
    for part in parts(folder, args.device, args.matrix.resolve(), args.per_gpu, tiny=args.tiny):
        if (folder / part.name / "done").exists():
            console.say(f"{part.name}: done before")
            continue
        seconds = part.share * (end - time.monotonic())
        outcome = do(part, folder / part.name, seconds)
        console.say(f"{part.name}: {outcome}")
        failed += [part.name] if outcome.startswith("failed") else []
    return 1 if failed else 0


def _minutes(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise ArgumentTypeError(f"must be a number above 0, not {text!r}")


def do(part: Part, folder: Path, seconds: float) -> str:
    """Run a part for at most ``seconds``, and return how it ended."""
    if seconds < 1:
        return "no time left"
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    # Detectron2 on the Python path is what is measured beside the project, not what it runs on.
    environment = {"HICL_RUNTIME": "lite", **os.environ}
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            part.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            status = process.wait(max(seconds - GRACE, seconds / 2))
        except subprocess.TimeoutExpired:
            _stop(process)
            return f"stopped after {time.monotonic() - start:.0f} s; see {folder / 'log.txt'}"
    if status:
        return f"failed with status {status} after {time.monotonic() - start:.0f} s; see {folder / 'log.txt'}"
    write_text(folder / "done", "")
    return f"done in {time.monotonic() - start:.0f} s"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask a process to end, as Ctrl-C does twice, and kill it if it does not."""
    for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        process.send_signal(signum)
        try:
            process.wait(GRACE / 2)
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    run("gpu_report", main)
