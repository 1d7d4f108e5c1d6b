"""Data sets in folders: images in one tree, a label map for every image in another, paired by name."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hicl_d2.command.errors import InputError, counted, nearest
from hicl_d2.command.files import check_regular
from hicl_d2.data.datasets.registry import Records
from hicl_d2.reading import IMAGE_SUFFIXES, LOSSY_SUFFIXES, image_size

# Of a list of names: a million of them.
MOST_BYTES_OF_LIST = 256 * 2**20
# What the published data sets consist of.
PUBLISHED_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
# Folders of converted masks, the folders in them and the masks in those: see `hicl_d2.data.custom`.
CACHE, MEANING, CONVERTED = (
    re.compile(pattern)
    for pattern in (r".+\.classes(\.[0-9a-f]{16})?", r"[0-9a-f]{8}", r".+\.[0-9a-f]{16}\.png")
)
# Folders that Synology's and Apple's systems put among a user's.
SYSTEM_FOLDERS = frozenset({"@eaDir", "__MACOSX"})


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
    image_suffixes: Collection[str] = PUBLISHED_SUFFIXES,
    label_suffixes: Collection[str] = (".png",),
    image_ending: str = "",
    label_ending: str = "",
    chosen: Sequence[str] | None = None,
    unlabelled: bool = False,
    leave: Sequence[Path] = (),
) -> Records:
    """Return a record for every image below ``images``, with its label map below ``labels``, sorted by name.

    Sub-folders count, and must be the same on both sides. A file's name is paired without its suffix and without
    ``image_ending`` or ``label_ending``; files that lack the ending are none of the data set's. No file is opened.

    Both folders may be one, or one lie in the other: a file with the longer ending is what that ending says; where both
    endings are equal, JPEGs are images and the rest are label maps.

    Args:
        name: of the data set, for messages.
        images: folder of the images.
        labels: folder of the label maps.
        expected: which files the data set consists of, for messages.
        image_suffixes: of the files that are images, in lower case.
        label_suffixes: of the files that are label maps.
        image_ending: what images' names end in before the suffix and label maps' do not.
        label_ending: the same of label maps.
        chosen: names to take, as :func:`read_list` returns them; all where it is None.
        unlabelled: whether images without a label map are records too, without "sem_seg_file_name".
        leave: folders below ``images`` or ``labels`` that hold neither.

    Raises InputError for a folder that is missing or empty (with the ``expected`` files) and for images
    without labels or labels without an image (how many, and the first).
    """
    image_files, label_files = _both(
        name,
        _Side(images, set(image_suffixes), image_ending),
        _Side(labels, set(label_suffixes), label_ending),
        expected,
        [folder.resolve() for folder in leave],
        optional=unlabelled,
    )
    if chosen is not None:
        image_files = _choose(name, images, image_files, chosen, image_ending)
        label_files = {stem: path for stem, path in label_files.items() if stem in image_files}
    if not unlabelled:
        _check_partners(name, image_files, label_files, "label map", labels)
    _check_partners(name, label_files, image_files, "image", images)
    return [
        {
            "file_name": path,
            **({"sem_seg_file_name": label_files[stem]} if stem in label_files else {}),
            "image_id": stem,
        }
        for stem, path in sorted(image_files.items())
    ]


def read_list(name: str, path: Path) -> list[str]:
    """Return the names in a list of a split: one a line, before any further columns; blank lines and # are passed over.

    Raises InputError for a file that cannot be read, is empty or names something twice.
    """
    check_regular(path, "list", MOST_BYTES_OF_LIST)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"the data set {name!r}: the list {path} cannot be read: {reason}") from None
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise InputError(f"the data set {name!r}: the list {path} names no image")
    twice = next((line for line, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"the data set {name!r}: the list {path} names {twice} twice")
    return names


def _choose(
    name: str, folder: Path, files: dict[str, str], chosen: Sequence[str], ending: str
) -> dict[str, str]:
    """Return those of ``files`` (by name) that a list names, with or without suffix, ending and the folder's own path."""
    found: dict[str, str] = {}
    unknown = []
    for line in chosen:
        words = [line] if _is_file_name(line) else [line, line.split(maxsplit=1)[0]]
        key = next((key for word in words for key in _keys(word, folder, ending) if key in files), None)
        if key is None:
            unknown.append(line)
        elif key in found:
            raise InputError(f"the data set {name!r}: its list names {files[key]} twice")
        else:
            found[key] = files[key]
    if unknown:
        raise InputError(
            f"the data set {name!r}: no image in {folder} for {len(unknown)} of {counted(len(chosen), 'name')} in its list, "
            f"the first is {unknown[0]}{nearest(unknown[0], files)}"
        )
    return found


def _is_file_name(line: str) -> bool:
    """Return whether a line of a list is one name with spaces in it, as "leaf (2).png": the first word is no name of its own.

    It is one in "leaf.png masks/leaf.png" and in "leaf masks/leaf.png", but not in "1 (1).png" and "photo.1 (2).png".
    """
    first, *rest = (PurePosixPath(word.replace("\\", "/")) for word in line.split(maxsplit=1))
    if not rest or not _is_image(rest[0]) or _is_image(first):
        return False
    mask, name = rest[0], first.name
    is_its_mask = mask.stem == name or (mask.stem.startswith(name) and len(mask.parts) > 1)
    return not is_its_mask


def _is_image(path: PurePosixPath) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _keys(word: str, folder: Path, ending: str) -> Iterator[str]:
    """Yield what the files that ``word`` may stand for are called in ``folder``."""
    path = PurePosixPath(word.replace("\\", "/"))
    parts = [part for part in path.parts if part != "."]
    own = folder.absolute().parts
    # The last parts of the folder's own path may come first: images/a.jpg in .../images, or the whole path.
    for count in range(min(len(parts) - 1, len(own)), -1, -1):
        if count and tuple(parts[:count]) != own[-count:]:
            continue
        text = normalized("/".join(parts[count:]))
        stem, suffix = os.path.splitext(text)
        for candidate in (text, stem) if suffix.lower() in IMAGE_SUFFIXES else (text,):
            yield candidate
            if ending and candidate.endswith(ending):
                yield candidate.removesuffix(ending)


def normalized(name: str) -> str:
    """Return a name with accents as one character each: systems differ in how they store them."""
    return unicodedata.normalize("NFC", name)


class _Side(NamedTuple):
    """Where the images or the label maps are, and what they are called."""

    folder: Path
    suffixes: set[str]
    ending: str


def _both(
    name: str, images: _Side, labels: _Side, expected: str, leave: list[Path], *, optional: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the files that are images and those that are label maps, by what they are called.

    There may be no label maps if they are ``optional``.
    """
    one, other = images.folder.resolve(), labels.folder.resolve()
    if one != other:
        return (
            _files(name, images, expected, [*leave, other] if other.is_relative_to(one) else leave),
            _files(
                name,
                labels,
                expected,
                [*leave, one] if one.is_relative_to(other) else leave,
                refused=LOSSY_SUFFIXES,
                optional=optional,
            ),
        )
    if images.ending == labels.ending:
        images = images._replace(suffixes=images.suffixes & LOSSY_SUFFIXES)
    image_longer, label_longer = (
        len(images.ending) > len(labels.ending),
        len(labels.ending) > len(images.ending),
    )
    return (
        _files(name, images, expected, leave, but=labels.ending if label_longer else ""),
        _files(name, labels, expected, leave, but=images.ending if image_longer else "", optional=optional),
    )


def _files(
    name: str,
    side: _Side,
    expected: str,
    leave: list[Path],
    *,
    but: str = "",
    refused: Collection[str] = (),
    optional: bool = False,
) -> dict[str, str]:
    """Return the files of one side, by what they are called, without those that end in ``but`` and the folders ``leave``.

    Raises InputError where there is none, unless they are ``optional``, for two of one name, and where all have one of the
    ``refused`` suffixes.
    """
    files: dict[str, str] = {}
    lossy, inside = None, os.path.join(side.folder, "")
    for path in _walk(name, side.folder, expected, leave):
        stem, suffix = os.path.splitext(path)
        if not stem.endswith(side.ending) or (but and stem.endswith(but)):
            continue
        if suffix.lower() in refused:
            lossy = lossy or path
        if suffix.lower() not in side.suffixes:
            continue
        key = normalized(stem.removeprefix(inside).removesuffix(side.ending))
        if key in files:
            raise InputError(f"the data set {name!r}: {files[key]} and {path} have one name; remove one")
        files[key] = path
    if lossy and not files:
        raise InputError(
            f"the data set {name!r}: {lossy} is a JPEG, whose compression changes class numbers; save label maps as PNG"
        )
    if not files and not optional:
        kinds = " or ".join(f"{side.ending}{suffix}" for suffix in sorted(side.suffixes))
        raise InputError(f"the data set {name!r}: {side.folder} holds no {kinds} file; expected {expected}")
    return files


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none of the user's: hidden, or made by a system for thumbnails and archives."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def is_cache(folder: Path) -> bool:
    """Return whether ``folder`` holds masks that were converted for some data set, and nothing else, by all names in it.

    A folder of the user's may be called NAME.classes and hold folders of dates, which are eight digits too.
    """
    if not CACHE.fullmatch(folder.name):
        return False
    try:
        meanings = _visible(folder)
        if not all(MEANING.fullmatch(name) for name in meanings):
            return False
        masks = [name for meaning in meanings for name in _visible(folder / meaning)]
    except OSError:
        return False
    return bool(masks) and all(CONVERTED.fullmatch(name) for name in masks)


def _visible(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if not is_hidden(name)]


def _walk(name: str, folder: Path, expected: str, leave: list[Path]) -> Iterator[str]:
    """Yield the path of every file, sorted; hidden ones, and the folders ``leave``, are left out, links to folders
    followed once.
    """
    seen = {str(path) for path in leave}
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
            if is_hidden(entry.name):
                continue
            if not entry.is_dir():
                yield entry.path
            elif is_cache(Path(entry.path)):
                continue
            elif os.path.realpath(entry.path) not in seen:
                seen.add(os.path.realpath(entry.path))
                stack.append(entry.path)


def _check_partners(
    name: str, having: dict[str, str], wanted: dict[str, str], kind: str, folder: Path
) -> None:
    alone = sorted(stem for stem in having if stem not in wanted)
    if alone:
        raise InputError(
            f"the data set {name!r}: no {kind} for {len(alone)} of {counted(len(having), 'file')}, the first is "
            f"{having[alone[0]]}; expected {folder}/{alone[0]}.*{_partner_hint(alone[0], wanted, kind, folder)}"
        )


def _partner_hint(stem: str, wanted: dict[str, str], kind: str, folder: Path) -> str:
    """Return what is there in place of the partner of ``stem``: a JPEG label map, or a name with an ending."""
    if kind == "label map":
        for suffix in sorted(LOSSY_SUFFIXES):
            if (folder / f"{stem}{suffix}").is_file():
                return f" ({stem}{suffix} is a JPEG, whose compression changes class numbers; save label maps as PNG)"
    longer = next((other for other in sorted(wanted) if other.startswith(stem)), None)
    if longer is None:
        return ""
    key = "LABEL_ENDING" if kind == "label map" else "IMAGE_ENDING"
    return f" ({os.path.basename(wanted[longer])} is there: give {key} {longer.removeprefix(stem)!r} if it belongs to it)"
