"""The layout ``images/SPLIT/NAME.jpg`` beside ``annotations/SPLIT/NAME.png``, a label map for every image."""

from pathlib import Path

from hicl_d2.data.datasets.registry import Records
from hicl_d2.data.reading import image_size
from hicl_d2.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


def expected_tree(folder: str, splits: str) -> str:
    """Return in one line which files a data set of this layout consists of."""
    return (
        f"{folder}/images/{splits}/NAME.jpg (or .png) and {folder}/annotations/{splits}/NAME.png "
        "(8-bit classes, 255 void) below $DETECTRON2_DATASETS"
    )


def paired_records(name: str, root: Path, split: str, expected: str) -> Records:
    """Return the records of one split below ``root``, sorted by name.

    Raises InputError for a folder that is missing or empty (with the ``expected`` files) and for images
    without labels or labels without an image (how many, and the first).
    """
    images = _files(name, root / "images" / split, IMAGE_SUFFIXES, expected)
    labels = _files(name, root / "annotations" / split, {".png"}, expected)
    _check_partners(name, images, labels, "label map", root / "annotations" / split)
    _check_partners(name, labels, images, "image", root / "images" / split)
    records = []
    for stem, image in sorted(images.items()):
        height, width = image_size(image)
        record = {"file_name": str(image), "sem_seg_file_name": str(labels[stem])}
        records.append({**record, "height": height, "width": width, "image_id": stem})
    return records


def _files(name: str, folder: Path, suffixes: set[str], expected: str) -> dict[str, Path]:
    try:
        files = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in suffixes}
    except OSError as error:
        reason = error.strerror or "cannot be listed"
        raise InputError(f"the data set {name!r}: {folder}: {reason.lower()}; expected {expected}") from None
    if not files:
        kinds = " or ".join(sorted(suffixes))
        raise InputError(f"the data set {name!r}: {folder} holds no {kinds} file; expected {expected}")
    return files


def _check_partners(
    name: str, having: dict[str, Path], wanted: dict[str, Path], kind: str, folder: Path
) -> None:
    alone = [path for stem, path in having.items() if stem not in wanted]
    if alone:
        raise InputError(
            f"the data set {name!r}: {len(alone)} of {len(having)} files have no {kind}, the first is "
            f"{alone[0]}; expected {folder}/{alone[0].stem}.*"
        )
