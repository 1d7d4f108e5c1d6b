"""Registering a semantic data set, and loading the records of a registered one."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hicl_d2.command.errors import InputError, listing, nearest, one_line
from hicl_d2.command.layout import data_root as data_root  # the harness looks there too
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog

Records = list[dict[str, Any]]
Colour = tuple[int, int, int]
# The paths in a record, and what stands for one that is left out: an image must be there.
PATHS = {"file_name": None, "sem_seg_file_name": ""}


def register_semantic(
    name: str,
    load: Callable[[], Records],
    *,
    classes: Sequence[str],
    colours: Sequence[Colour],
    ignore_label: int = 255,
    evaluator_type: str = "sem_seg",
    expected: str = "",
    **metadata: Any,
) -> None:
    """Register a data set and what is known about it; doing it again changes nothing.

    ``load`` lists the records, ``expected`` says in words which files it reads. Where Detectron2 has
    registered the name already, its loader stays.
    """
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes),
        stuff_colors=[list(colour) for colour in colours],
        ignore_label=ignore_label,
        evaluator_type=evaluator_type,
        expected_files=expected,
        **metadata,
    )


def check_registered(name: str) -> None:
    """Raise InputError for a name that is not registered, with the nearest one."""
    if name not in DatasetCatalog:
        known = DatasetCatalog.list()
        hint = nearest(str(name), known) or f"; registered are {listing(known)}"
        raise InputError(f"the data set {name!r} is not registered{hint}")


def check_classes(name: str) -> None:
    """Raise InputError for a data set whose metadata name no classes."""
    if not MetadataCatalog.get(name).get("stuff_classes"):
        raise InputError(
            f"the data set {name!r} names no classes; where it is registered, set MetadataCatalog.get({name!r}).stuff_classes "
            "to a list of their names"
        )


def load_records(name: str) -> Records:
    """Return the records of a registered data set.

    Raises InputError for a name that is not registered (the nearest one given), for files that are missing
    (the expected ones given), for a data set without records, and for what its function returns that is no record.
    """
    check_registered(name)
    try:
        records: Records = DatasetCatalog.get(name)
    except (
        AssertionError,
        OSError,
        ValueError,
    ) as error:  # what loaders of Detectron2 raise for missing files
        expected = MetadataCatalog.get(name).get("expected_files") or "the files that it is registered with"
        raise InputError(
            f"the data set {name!r} cannot be loaded: {one_line(error)}; expected {expected}"
        ) from None
    _check_records(name, records)
    return records


def _check_records(name: str, records: Any) -> None:
    """Raise InputError unless a function of the user's returned records with an image each."""
    if not hasattr(records, "__len__") or isinstance(records, str | Mapping):
        raise InputError(
            f"the data set {name!r}: its function must return a list of records, not {type(records).__name__}"
        )
    if not len(records):
        raise InputError(f"the data set {name!r} is empty")
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise InputError(
                f"the data set {name!r}: record {number} must be a dictionary, not {type(record).__name__}"
            )
        for key, absent in PATHS.items():
            path = record.get(key, absent)
            if not isinstance(path, str | os.PathLike):
                raise InputError(
                    f"the data set {name!r}: {key} of record {number} must be a path, not {path!r}"
                )
