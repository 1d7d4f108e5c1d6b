"""What a data set is really like: every file opened, everything counted that training depends on."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from hicl_d2.command.errors import InputError, counted, listing
from hicl_d2.contrast.fused import count_labels
from hicl_d2.contrast.grid import align_labels
from hicl_d2.contrast.levels import make_levels
from hicl_d2.d2 import transforms as T
from hicl_d2.d2.data import MetadataCatalog
from hicl_d2.data.datasets.registry import Records, check_classes, load_records
from hicl_d2.data.parallel import for_each
from hicl_d2.reading import file_mode, read_image, read_labels, value_hint

# Purity thresholds of the survival table. A window's class is known exactly where it has a majority.
PURITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
FINGERPRINT = 16
# The largest value of an image that is too dark to have been meant so.
DARK = 24


@dataclass(frozen=True)
class Question:
    """What is asked of every image.

    Attributes:
        num_classes: K.
        ignore_value: the label of pixels without a class.
        windows: sides of the windows in cells of the feature map.
        stride: label pixels per cell.
        coverage: least share of a window's pixels that is labelled.
        resized: short side that labels are resized to before windows are counted, and the most that their long side may
            then be; None leaves them as they are.
    """

    num_classes: int
    ignore_value: int
    windows: tuple[int, ...]
    stride: int
    coverage: float
    resized: tuple[int, int] | None = None


class Facts(NamedTuple):
    """What was found in one image and its label map.

    Attributes:
        size: height and width.
        label_mode: Pillow's name for what the label file holds ("L", "P", "I;16"); "" without one.
        pixels: pixels of every label value that occurs.
        candidates: (levels, K), windows with a majority of the class, labelled enough.
        kept: (levels, purities, K), those whose class has at least that share.
        content: hash of the decoded image.
        look: hash of its coarse look.
        dark: whether a file of 16 bits is nearly black once cut to 8.
        faults: what is wrong with the pair.
    """

    size: tuple[int, int]
    label_mode: str
    pixels: dict[int, int]
    candidates: np.ndarray
    kept: np.ndarray
    content: str
    look: str
    dark: bool
    faults: list[str]


@dataclass
class Audit:
    """What was found in one data set; ``faults`` would make training go wrong, ``warnings`` may be meant."""

    name: str
    classes: list[str]
    question: Question
    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    label_modes: Counter[str] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    images_with: Counter[int] = field(default_factory=Counter)
    candidates: np.ndarray = field(default_factory=lambda: np.zeros(0))
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0))
    contents: dict[str, list[str]] = field(default_factory=dict)
    looks: dict[str, list[str]] = field(default_factory=dict)
    dark: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def class_pixels(self) -> np.ndarray:
        """Return the pixels of every class, (K,), int64; a class whose number is the ignored label has none."""
        counts = [0 if self.is_ignored(c) else self.pixels[c] for c in range(len(self.classes))]
        return np.array(counts, dtype=np.int64)

    def class_images(self, number: int) -> int:
        """Return how many images have a pixel of a class; none has of one whose number is the ignored label."""
        return 0 if self.is_ignored(number) else self.images_with[number]

    def is_ignored(self, label: int) -> bool:
        """Return whether pixels of ``label`` are left out of training and scores."""
        return label == self.question.ignore_value

    def absent(self) -> list[str]:
        """Return the classes that no pixel has, without one that is ignored by its number."""
        pixels = self.class_pixels()
        return [name for c, name in enumerate(self.classes) if not pixels[c] and not self.is_ignored(c)]


def audit_dataset(
    name: str,
    *,
    windows: Sequence[int] = (1, 2, 4, 8),
    stride: int = 4,
    coverage: float = 0.5,
    resized: tuple[int, int] | None = None,
    workers: int = 0,
    progress: Callable[[str, int], Callable[[], None]] | None = None,
) -> Audit:
    """Open every file of a registered data set and report; a file that cannot be used is a fault, not an error.

    ``progress`` is given what is done and how often, and returns what to call each time. Windows and coverage
    are those of MODEL.HICL, over labels at the image's own size or, where given, ``resized`` to a short side with a limit
    on the long one, on a feature map of ``stride``.
    """
    metadata = MetadataCatalog.get(name)
    classes = list(metadata.get("stuff_classes") or [])
    ignored = metadata.get("ignore_label", 255)
    question = Question(len(classes), ignored, tuple(windows), stride, coverage, resized)
    audit = Audit(name, classes, question)
    shape = len(windows), len(PURITIES), len(classes)
    audit.candidates = np.zeros((shape[0], shape[2]), dtype=np.int64)
    audit.kept = np.zeros(shape, dtype=np.int64)
    try:
        records = load_records(name)
        check_classes(name)
    except InputError as error:
        audit.faults.append(str(error))
        return audit
    audit.images = len(records)
    advance = None if progress is None else progress(f"looking at {name}", len(records))
    outcomes = sorted(for_each(partial(look_at, question), records, workers, advance), key=lambda o: o.number)
    for outcome in outcomes:
        if outcome.error is not None:
            audit.faults.append(str(outcome.error))
        else:
            _add(audit, records[outcome.number], outcome.result)
    _judge(audit, records)
    return audit


def look_at(question: Question, record: dict[str, Any]) -> Facts:
    """Return the facts about one record. Raises InputError, with the path, for an image that cannot be read."""
    torch.set_num_threads(1)
    image = read_image(record["file_name"], "RGB")
    content = hashlib.blake2b(image.tobytes(), digest_size=12).hexdigest()
    levels = len(question.windows)
    facts = Facts(
        (image.shape[0], image.shape[1]),
        "",
        {},
        np.zeros((levels, question.num_classes), dtype=np.int64),
        np.zeros((levels, len(PURITIES), question.num_classes), dtype=np.int64),
        content,
        _fingerprint(image),
        image.max() < DARK and file_mode(record["file_name"]).startswith("I"),
        [],
    )
    if "sem_seg_file_name" not in record:
        return facts
    path = record["sem_seg_file_name"]
    try:
        labels = read_labels(path, record["file_name"], facts.size)
    except InputError as error:
        facts.faults.append(str(error))
        return facts
    if labels.shape != facts.size:
        facts.faults.append(
            f"{record['file_name']} is {facts.size[0]} x {facts.size[1]}, but its label map {path} is "
            f"{labels.shape[0]} x {labels.shape[1]}"
        )
    values, counts = np.unique(labels, return_counts=True)
    facts.pixels.update(zip(values.tolist(), counts.tolist(), strict=True))
    if question.resized is not None:
        left = T.ResizeShortestEdge.get_output_shape(*labels.shape, *question.resized)
        if min(left) < 1:
            facts.faults.append(
                f"{record['file_name']}: an image of {labels.shape[0]} x {labels.shape[1]} cannot be resized as INPUT says "
                f"({left[0]} x {left[1]} would be left)"
            )
            return facts
        labels = _resize(labels, *question.resized)
    survival = _survival(question, labels)
    return facts._replace(label_mode=file_mode(path), candidates=survival[0], kept=survival[1])


def _fingerprint(image: np.ndarray) -> str:
    """Return whether each part of the image is brighter than the one beside it, as a hash of its look."""
    grey = Image.fromarray(image).convert("L").resize((FINGERPRINT + 1, FINGERPRINT), Image.Resampling.BOX)
    small = np.asarray(grey).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def _resize(labels: np.ndarray, short: int, most: int) -> np.ndarray:
    """Return labels (H, W) as training resizes them, to a short side of ``short`` and a long one of ``most`` at the most."""
    resize = T.ResizeShortestEdge(short, most).get_transform(labels)
    # Detectron2 resizes uint8 and floats.
    exact = labels if labels.dtype == np.uint8 else labels.astype(np.float32)
    return np.asarray(resize.apply_segmentation(exact)).astype(labels.dtype)


def _survival(question: Question, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows of each class with a majority, (levels, K), and those that pass each purity."""
    height, width = labels.shape
    size = -(-height // question.stride), -(-width // question.stride)
    tensor = torch.from_numpy(labels.astype(np.int32))[None]
    if 0 <= question.ignore_value < question.num_classes:
        tensor = tensor.masked_fill(tensor == question.ignore_value, question.num_classes)
    padded = torch.nn.functional.pad(
        tensor,
        (0, size[1] * question.stride - width, 0, size[0] * question.stride - height),
        value=question.num_classes,
    )
    grid = align_labels(padded, size, question.num_classes, -1)
    levels = make_levels(
        question.windows, [PURITIES[0]], [question.coverage], [0.0], [1.0], [1.0], overlap=False
    )
    candidates, kept = [], []
    for level, statistics in zip(levels, count_labels(grid, levels), strict=True):
        classes, count, labelled = (part.flatten().numpy() for part in statistics)
        area = (level.window * question.stride) ** 2
        good = (labelled > 0) & (labelled >= question.coverage * area) & (2 * count > labelled)
        share = count[good] / labelled[good]
        classes = classes[good]
        candidates.append(np.bincount(classes, minlength=question.num_classes))
        kept.append([np.bincount(classes[share >= p], minlength=question.num_classes) for p in PURITIES])
    return np.array(candidates, dtype=np.int64), np.array(kept, dtype=np.int64)


def _add(audit: Audit, record: dict[str, Any], facts: Facts) -> None:
    path = str(record["file_name"])
    audit.sizes[facts.size] += 1
    audit.label_modes[facts.label_mode] += 1
    audit.pixels.update(facts.pixels)
    audit.images_with.update(list(facts.pixels))
    audit.candidates += facts.candidates
    audit.kept += facts.kept
    audit.contents.setdefault(facts.content, []).append(path)
    audit.looks.setdefault(facts.look, []).append(path)
    if facts.dark:
        audit.dark.append(path)
    audit.faults += facts.faults
    known = {*range(len(audit.classes)), audit.question.ignore_value}
    wrong = {value: count for value, count in facts.pixels.items() if value not in known}
    if wrong:
        values = listing(
            [f"{value} ({counted(count, 'pixel')})" for value, count in sorted(wrong.items())], 4
        )
        audit.faults.append(
            f"{record['sem_seg_file_name']}: labels outside the {counted(len(audit.classes), 'class', 'classes')}: {values}"
            f"{value_hint(wrong, len(audit.classes), audit.question.ignore_value)}"
        )
    elif facts.label_mode and not known - {audit.question.ignore_value} & {*facts.pixels}:
        audit.warnings.append(f"{record['sem_seg_file_name']}: no pixel has a class")


def _judge(audit: Audit, records: Records) -> None:
    without = sum("sem_seg_file_name" not in record for record in records)
    if without:
        audit.warnings.append(f"no label map for {without} of {counted(len(records), 'image')}")
    if audit.dark:
        audit.warnings.append(
            f"{counted(len(audit.dark), 'image of 16 bits is', 'images of 16 bits are')} nearly black in 8 bits, the first is "
            f"{audit.dark[0]}; scale them"
        )
    if audit.label_modes["P"]:
        audit.warnings.append(
            f"{counted(audit.label_modes['P'], 'label map is a palette image', 'label maps are palette images')}: indices are "
            "read, not colours"
        )
    twins = [paths for paths in audit.contents.values() if len(paths) > 1]
    if twins:
        occur = counted(sum(map(len, twins)) - len(twins), "image occurs", "images occur")
        audit.warnings.append(f"{occur} twice, the first is {twins[0][0]}, again as {twins[0][1]}")


def judge_absent(audits: Sequence[Audit], training: Collection[str]) -> None:
    """Add what is to be said about classes without a pixel, once every data set has been looked at.

    A class that no data set of ``training`` (names) has is a fault of each of them: it cannot be learned. Elsewhere it is a
    warning.
    """
    sets = [set(audit.absent()) for audit in audits if audit.name in training and audit.label_modes]
    nowhere = set.intersection(*sets) if sets else set()
    for audit in audits:
        if not audit.label_modes.total() or audit.label_modes[""] == audit.label_modes.total():
            continue  # no file could be read, or none has labels
        absent = audit.absent()
        hint = value_hint(audit.pixels, len(audit.classes), audit.question.ignore_value)
        faults = [name for name in absent if name in nowhere and audit.name in training]
        others = [name for name in absent if name not in faults]
        if faults:
            audit.faults.append(
                f"{counted(len(faults), 'class has', 'classes have')} no pixel in the training data: {listing(faults, 6)}{hint}"
            )
        if others:
            audit.warnings.append(
                f"{counted(len(others), 'class has', 'classes have')} no pixel: {listing(others, 6)}{hint}"
            )


def judge_purity(audit: Audit, purity: float) -> None:
    """Warn of classes that have pixels, and no window of the first size that is pure enough."""
    at = nearest_purity(purity)
    pixels = audit.class_pixels()
    lost = [name for c, name in enumerate(audit.classes) if pixels[c] and not audit.kept[0, at, c]]
    if lost:
        side = audit.question.windows[0]
        other = " or set MODEL.HICL.CELL_CLASS to middle" if side == 1 else ""
        audit.warnings.append(
            f"{counted(len(lost), 'class has', 'classes have')} no window of {side} x {side} cells with a purity of "
            f"{PURITIES[at]:g}, and so no part in the contrast: {listing(lost, 6)}; lower MODEL.HICL.PURITY{other}"
        )


def nearest_purity(purity: float) -> int:
    """Return the number of the threshold of the table that is nearest to ``purity``."""
    return min(range(len(PURITIES)), key=lambda i: abs(PURITIES[i] - purity))


def find_shared(audits: Sequence[Audit]) -> list[str]:
    """Return a line for every two data sets that share images, pixel by pixel or in their coarse look."""
    lines = []
    for index, one in enumerate(audits):
        for other in audits[index + 1 :]:
            for kind, mine, theirs in (
                ("the same pixels", one.contents, other.contents),
                ("nearly the same look", one.looks, other.looks),
            ):
                shared = [key for key in mine if key in theirs]
                if shared:
                    first = Path(mine[shared[0]][0]).name, Path(theirs[shared[0]][0]).name
                    lines.append(
                        f"{one.name} and {other.name}: {counted(len(shared), 'image has', 'images have')} {kind}, the first "
                        f"{first[0]} and {first[1]}"
                    )
                    break
    return lines
