"""Which files a data set has: a few digits of their names and sizes, for the manifest of a run."""

import hashlib
import os
from pathlib import Path

from hicl_d2.command.layout import data_root
from hicl_d2.data.datasets.registry import load_records

FILE_KEYS = ("file_name", "sem_seg_file_name", "pan_seg_file_name")


def fingerprint(name: str) -> str:
    """Return ten digits for the registered data set ``name``: the names and sizes of its images and label maps, and how many
    objects are annotated.

    Contents are not read: a file that is changed and keeps its size is not noticed. Names below the data root are taken
    from there, so that the root may move. A file that is not there counts as empty.
    """
    root = os.path.join(data_root().absolute(), "")
    lines = []
    for record in load_records(name):
        parts = [_described(str(record[key]), root) for key in FILE_KEYS if record.get(key)]
        lines.append(f"{'|'.join(parts)}|{len(record.get('annotations') or ())}\n")
    text = "".join(sorted(lines)).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:10]


def _described(name: str, root: str) -> str:
    """Return a file's name, from ``root`` (which ends in a separator) on where it is below it, and its size."""
    shown = name.removeprefix(root)
    if shown == name or shown.startswith(os.sep) or os.path.normpath(shown) != shown:
        path = Path(name)
        whole = path.absolute()
        name, shown = str(path), str(whole.relative_to(root) if whole.is_relative_to(root) else path)
    try:
        return f"{shown}\0{os.stat(name).st_size}"
    except OSError:
        return f"{shown}\0"
