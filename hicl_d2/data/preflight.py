"""What can be said about the data of a config before training begins."""

from collections.abc import Collection
from typing import Any

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import MetadataCatalog
from hicl_d2.data.custom import register_custom
from hicl_d2.data.datasets.registry import Records, load_records
from hicl_d2.data.mapper import SemanticMapper

# Files of each data set that are read whole: the first, the last, and some between.
SAMPLES = 4

CROP_TYPES = ("absolute", "absolute_range", "relative", "relative_range")


def check_datasets(cfg: CfgNode, *, train: bool = True) -> None:
    """Check every data set that ``cfg`` names, those of DATASETS.TRAIN only with ``train``.

    Raises InputError, in one line, for a key of INPUT that has no meaning, a name that is not registered, a
    root that is missing or empty, images without labels, a number of classes that is not the model's, an
    ignored value that is not the model's, and a sample of the files that cannot be read or do not fit.
    """
    register_custom(cfg)
    check_inputs(cfg)
    if train and not len(cfg.DATASETS.TRAIN):
        raise InputError("DATASETS.TRAIN names no data set; give at least one")
    names = dict.fromkeys([*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST])
    mapper = SemanticMapper(cfg, False)
    for name in names:
        records = load_records(name)
        _check_metadata(name, cfg)
        for record in _samples(records):
            mapper.read(dict(record))


def check_inputs(cfg: CfgNode) -> None:
    """Raise InputError for a value of INPUT or DATALOADER that the reading of images cannot work with."""
    inputs, workers = cfg.INPUT, cfg.DATALOADER.NUM_WORKERS
    if workers < 0:
        raise InputError(f"DATALOADER.NUM_WORKERS is {workers}; it must be 0 (none) or more")
    _check_choice("INPUT.FORMAT", inputs.FORMAT, ("BGR", "RGB"))
    _check_choice("INPUT.RANDOM_FLIP", inputs.RANDOM_FLIP, ("horizontal", "vertical", "none"))
    _check_choice("INPUT.MIN_SIZE_TRAIN_SAMPLING", inputs.MIN_SIZE_TRAIN_SAMPLING, ("choice", "range"))
    for key, least in (
        ("MAX_SIZE_TRAIN", 1),
        ("MIN_SIZE_TEST", 0),
        ("MAX_SIZE_TEST", min(inputs.MIN_SIZE_TEST, 1)),
    ):
        if inputs[key] < least:
            raise InputError(f"INPUT.{key} is {inputs[key]}; it must be {least} or more")
    is_range, sizes = inputs.MIN_SIZE_TRAIN_SAMPLING == "range", inputs.MIN_SIZE_TRAIN
    if is_range and (len(sizes) != 2 or sizes[0] > sizes[1]):
        raise InputError(f"INPUT.MIN_SIZE_TRAIN is {sizes}, but a range is the least and the greatest length")
    if not len(sizes) or min(sizes) < 0:
        raise InputError(f"INPUT.MIN_SIZE_TRAIN is {sizes}; give the lengths of the short side in pixels")
    if inputs.CROP.ENABLED:
        _check_crop(inputs.CROP.TYPE, inputs.CROP.SIZE)


def _check_crop(crop_type: str, size: Any) -> None:
    _check_choice("INPUT.CROP.TYPE", crop_type, CROP_TYPES)
    if crop_type.startswith("absolute"):
        good, wanted = (
            all(isinstance(length, int) and length >= 1 for length in size),
            "whole pixels, at least 1",
        )
    else:
        good, wanted = all(0 < share <= 1 for share in size), "shares of the image above 0 and up to 1"
    if len(size) != 2 or not good:
        raise InputError(f"INPUT.CROP.SIZE is {size}; {crop_type} crops take two numbers, {wanted}")


def _check_choice(key: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise InputError(f"{key} is {value!r}; it is one of {', '.join(choices)}")


def _check_metadata(name: str, cfg: CfgNode) -> None:
    metadata, head = MetadataCatalog.get(name), cfg.MODEL.SEM_SEG_HEAD
    _check_equal(
        name,
        "classes",
        len(metadata.get("stuff_classes", ())),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        head.NUM_CLASSES,
    )
    _check_equal(
        name,
        "as the ignored label",
        metadata.get("ignore_label", head.IGNORE_VALUE),
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
        head.IGNORE_VALUE,
    )


def _check_equal(name: str, what: str, found: Any, key: str, wanted: Any) -> None:
    if found != wanted:
        raise InputError(
            f"the data set {name!r} has {found} {what}, but {key} is {wanted}; set {key} to {found}"
        )


def _samples(records: Records) -> Records:
    step = max((len(records) - 1) // (SAMPLES - 1), 1)
    return records[::step][:SAMPLES]
