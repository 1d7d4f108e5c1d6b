"""What the command lines of the benchmarks take, checked before anything is measured."""

from argparse import ArgumentTypeError
from pathlib import Path

import torch

from hicl_d2.command.errors import InputError, counted
from hicl_d2.command.files import check_writable
from hicl_d2.run.setup import known_device

__all__ = ["csv_file", "device_name"]


def device_name(text: str) -> str:
    """Read the device to measure on: cpu, or a GPU that is there."""
    device = known_device(text)
    if device is None:
        raise ArgumentTypeError(f"must be cpu, cuda or cuda:N, not {text!r}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ArgumentTypeError(
            f"is {text}, but torch sees {counted(found, 'GPU')} here; --device cpu needs none"
        )
    return text


def csv_file(text: str) -> Path:
    """Read the file to write when all is measured. Raises InputError where that could not be written."""
    path = Path(text)
    check_writable(path.parent, "the folder of --output")
    if path.is_dir():
        raise InputError(f"--output {text} is a folder; give the name of a file in it")
    return path
