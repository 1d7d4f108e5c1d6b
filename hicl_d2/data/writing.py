"""Writing label maps whole or not at all."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.command.files import atomic_open, remove_unfinished


def write_labels(path: str | Path, labels: np.ndarray) -> None:
    """Write a label map (H, W), uint8 or uint16, as PNG that takes the place of ``path`` once it is complete.

    A link at ``path`` is replaced, not followed.
    """
    with atomic_open(path, "wb", durable=False) as stream:
        Image.fromarray(labels).save(stream, format="PNG", compress_level=4)


def make_folder(path: Path, root: Path) -> None:
    """Make the folder ``path``, which must be within ``root``, and remove what killed writers left in it.

    Raises InputError if a symbolic link on the way leads out of ``root``: what is written there might belong
    to somebody else.
    """
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    real = existing.resolve()
    if not real.is_relative_to(root.resolve()):
        raise InputError(
            f"{path} would be written to {real}, out of {root}, through a symbolic link; give --root the real "
            "place, or make this folder yourself"
        )
    if existing.exists() and not existing.is_dir():
        raise InputError(f"{path} cannot be made: {existing} is not a folder")
    path.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path)
