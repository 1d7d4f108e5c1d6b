"""Data sets in folders: images in one tree, a label map for every image in another, paired by name."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from hicl_d2.command.errors import InputError
from hicl_d2.data.datasets.registry import Records
from hicl_d2.reading import image_size

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


def expected_tree(folder: str, splits: str) -> str:
    """Return in one line which files a data set of the layout images/SPLIT, annotations/SPLIT consists of."""
    return (
        f"{folder}/images/{splits}/NAME.jpg (or .png) and {folder}/annotations/{splits}/NAME.png "
        "(8-bit classes, 255 void) below $DETECTRON2_DATASETS"
    )


def paired_records(name: str, root: Path, split: str, expected: str) -> Records:
    """Return the records, with sizes, of ``root``/images/``split`` beside ``root``/annotations/``split``.

    Raises as :func:`folder_records`.
    """
    records = folder_records(name, root / "images" / split, root / "annotations" / split, expected)
    for record in records:
        record["height"], record["width"] = image_size(record["file_name"])
    return records


def folder_records(
    name: str,
    images: Path,
    labels: Path,
    expected: str,
    *,
    image_suffixes: Collection[str] = IMAGE_SUFFIXES,
    image_ending: str = "",
    label_ending: str = "",
) -> Records:
    """Return a record for every image below ``images``, with its label map below ``labels``, sorted by name.

    Sub-folders count, and must be the same on both sides. A file's name is paired without its suffix and
    without ``image_ending`` or ``label_ending``; files that lack the ending are none of the data set's. No
    file is opened: of large data sets the loaders learn sizes as they read.

    Raises InputError for a folder that is missing or empty (with the ``expected`` files) and for images
    without labels or labels without an image (how many, and the first).
    """
    image_files = _files(name, images, image_suffixes, image_ending, expected)
    label_files = _files(name, labels, {".png"}, label_ending, expected)
    _check_partners(name, image_files, label_files, "label map", labels)
    _check_partners(name, label_files, image_files, "image", images)
    return [
        {"file_name": str(path), "sem_seg_file_name": str(label_files[stem]), "image_id": stem}
        for stem, path in sorted(image_files.items())
    ]


def _files(name: str, folder: Path, suffixes: Collection[str], ending: str, expected: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in _walk(name, folder, expected):
        stem, suffix = os.path.splitext(path)
        if suffix.lower() not in suffixes or not stem.endswith(ending):
            continue
        key = os.path.relpath(stem.removesuffix(ending) if ending else stem, folder)
        if key in files:
            raise InputError(f"the data set {name!r}: {files[key]} and {path} have one name; remove one")
        files[key] = Path(path)
    if not files:
        kinds = " or ".join(f"{ending}{suffix}" for suffix in sorted(suffixes))
        raise InputError(f"the data set {name!r}: {folder} holds no {kinds} file; expected {expected}")
    return files


def _walk(name: str, folder: Path, expected: str) -> Iterator[str]:
    """Yield the path of every file, sorted; hidden ones and folders are left out, links to folders followed
    once.
    """
    seen: set[str] = set()
    stack = [str(folder)]
    while stack:
        current = stack.pop()
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            reason = (error.strerror or "cannot be listed").lower()
            raise InputError(f"the data set {name!r}: {current}: {reason}; expected {expected}") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield entry.path
            elif os.path.realpath(entry.path) not in seen:
                seen.add(os.path.realpath(entry.path))
                stack.append(entry.path)


def _check_partners(
    name: str, having: dict[str, Path], wanted: dict[str, Path], kind: str, folder: Path
) -> None:
    alone = sorted(stem for stem in having if stem not in wanted)
    if alone:
        raise InputError(
            f"the data set {name!r}: {len(alone)} of {len(having)} files have no {kind}, the first is "
            f"{having[alone[0]]}; expected {folder}/{alone[0]}.*"
        )
