"""An audit as text for people and as JSON for programs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hicl_d2.command.errors import counted
from hicl_d2.data.audit import PURITIES, Audit, nearest_purity

# Faults and warnings of one data set that are shown; the JSON has them all.
SHOWN = 10


def as_json(audits: Sequence[Audit], shared: Sequence[str]) -> dict[str, Any]:
    """Return everything that was found, in types that JSON has."""
    return {
        "schema": 1,
        "ok": not any(audit.faults for audit in audits),
        "shared_images": list(shared),
        "datasets": [_dataset(audit) for audit in audits],
    }


def _dataset(audit: Audit) -> dict[str, Any]:
    question = audit.question
    total = max(int(audit.class_pixels().sum()), 1)
    classes = [
        {
            "name": name,
            "pixels": int(pixels),
            "share": float(pixels) / total,
            "images": audit.class_images(number),
            "windows": [
                {
                    "window": window,
                    "majority": int(audit.candidates[level, number]),
                    "kept": dict(zip(map(str, PURITIES), audit.kept[level, :, number].tolist(), strict=True)),
                }
                for level, window in enumerate(question.windows)
            ],
        }
        for number, (name, pixels) in enumerate(zip(audit.classes, audit.class_pixels(), strict=True))
    ]
    return {
        "name": audit.name,
        "images": audit.images,
        "sizes": {f"{height} x {width}": count for (height, width), count in audit.sizes.most_common()},
        "label_modes": dict(audit.label_modes),
        "label_values": {str(value): audit.pixels[value] for value in sorted(audit.pixels)},
        "ignored_share": audit.pixels[question.ignore_value] / max(audit.pixels.total(), 1),
        "stride": question.stride,
        "resized": question.resized,
        "coverage": question.coverage,
        "classes": classes,
        "faults": audit.faults,
        "warnings": audit.warnings,
    }


def as_text(audit: Audit, purity: float) -> Iterator[str]:
    """Yield the lines of the report on one data set; ``purity`` is the threshold of the table by class."""
    question = audit.question
    yield f"{audit.name}: {counted(audit.images, 'image')}, {counted(len(audit.classes), 'class', 'classes')}"
    if audit.sizes:
        smallest, largest = min(audit.sizes), max(audit.sizes)
        common = ", ".join(f"{h} x {w} ({n})" for (h, w), n in audit.sizes.most_common(3))
        yield (
            f"  sizes (height x width): {counted(len(audit.sizes), 'kind')}, {smallest[0]} x {smallest[1]} to "
            f"{largest[0]} x {largest[1]}; most often {common}"
        )
        modes = ", ".join(f"{mode or 'none'} ({count})" for mode, count in audit.label_modes.items())
        ignored = audit.pixels[question.ignore_value] / max(audit.pixels.total(), 1)
        yield f"  label files: {modes}; ignored pixels {100 * ignored:.2f} %"
        yield ""
        yield from _survival_table(audit)
        yield ""
        yield from _class_table(audit, purity)
    for kind, lines in (("fault", audit.faults), ("warning", audit.warnings)):
        for line in lines[:SHOWN]:
            yield f"  {kind}: {line}"
        if len(lines) > SHOWN:
            yield f"  {kind}: and {len(lines) - SHOWN} more (audit.json has them)"


def _survival_table(audit: Audit) -> Iterator[str]:
    """How many windows of each size hold one class so purely: what WINDOWS and PURITY are chosen by."""
    question = audit.question
    at = f"short side {question.resized[0]}, " if question.resized else ""
    yield (
        f"  windows an image whose class has at least this share ({at}stride {question.stride}, coverage "
        f"{question.coverage:g}; in brackets the classes that keep any)"
    )
    yield "  window " + "".join(f"{f'>= {p:g}':>16}" for p in PURITIES)
    images = max(audit.images, 1)
    for level, window in enumerate(question.windows):
        cells = []
        for index in range(len(PURITIES)):
            kept = audit.kept[level, index]
            cells.append(f"{kept.sum() / images:10.1f} ({np.count_nonzero(kept):3})")
        yield f"  {window:6} " + "".join(f"{cell:>16}" for cell in cells)


def _class_table(audit: Audit, purity: float) -> Iterator[str]:
    index = nearest_purity(purity)
    windows = audit.question.windows
    yield f"  by class: share of pixels, images, and windows in the whole set with purity >= {PURITIES[index]:g}"
    width = max((len(name) for name in audit.classes), default=5)
    yield f"  {'class':{width}} {'pixels %':>9} {'images':>7}" + "".join(f"{f'w{w}':>11}" for w in windows)
    pixels = audit.class_pixels()
    total = max(int(pixels.sum()), 1)
    for number in np.argsort(-pixels, kind="stable"):
        kept = audit.kept[:, index, number]
        yield (
            f"  {audit.classes[number]:{width}} {100 * pixels[number] / total:9.3f} "
            f"{audit.class_images(int(number)):7}" + "".join(f"{count:11,}" for count in kept.tolist())
        )
