"""Picture files that carry a mark: a later run writes over its own pictures, and never over a user's."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.ExifTags import Base

from hicl_d2.command.errors import InputError
from hicl_d2.command.files import atomic_path

MARK = "hicl_d2"


def save_picture(picture: Image.Image, path: Path, *, durable: bool = True, **options: Any) -> None:
    """Write ``picture`` with the mark, as PNG or JPEG (by the suffix of ``path``), whole or not at all."""
    exif = Image.Exif()
    exif[Base.Software] = MARK
    with atomic_path(path, durable=durable) as unfinished:
        picture.save(unfinished, exif=exif, **options)


def check_own(paths: Iterable[Path], option: str) -> None:
    """Raise InputError for one of ``paths`` that is there without the mark; ``option`` is what gives their folder.

    A link passes: it is replaced, and what it points to stays.
    """
    for path in paths:
        if path.exists() and not path.is_symlink() and not _is_own(path):
            raise InputError(
                f"{path} is there, is no picture of this project and would be overwritten; give another {option}"
            )


def _is_own(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with Image.open(path) as picture:
            return picture.getexif().get(Base.Software) == MARK
    except Exception:  # whatever a file raises that cannot be read: it is none of ours
        return False
