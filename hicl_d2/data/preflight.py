"""What can be said about the data of a config before training begins."""

from collections.abc import Collection
from typing import Any

import numpy as np

from hicl_d2.command.errors import InputError, counted, listing
from hicl_d2.d2 import transforms as T
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import MetadataCatalog
from hicl_d2.data.custom import register_custom
from hicl_d2.data.datasets.registry import Records, check_classes, load_records
from hicl_d2.data.instances import check_instances, check_panoptic, uses_instances
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.modeling.settings import base_architecture, needs_instances, reads_label_maps
from hicl_d2.reading import image_size, label_size, read_labels, value_hint

# Files of each data set that are read whole: the first, the last, and some between.
SAMPLES = 4
# Label maps that are read, at most, to see whether training has every class.
LABEL_SAMPLES = 400
# Keys of a record, ours and Detectron2's, that hold some truth.
LABEL_KEYS = {"sem_seg_file_name", "pan_seg_file_name", "annotations", "instances"}

CROP_TYPES = ("absolute", "absolute_range", "relative", "relative_range")


def check_datasets(cfg: CfgNode, *, train: bool = True) -> None:
    """Check every data set that ``cfg`` names, those of DATASETS.TRAIN only with ``train``.

    Raises InputError, in one line, for a key of INPUT that has no meaning, a name that is not registered, a
    root that is missing or empty, images without labels, a number of classes that is not the model's, an
    ignored value that is not the model's, and a sample of the files that cannot be read or do not fit. Of test images every
    header is read: see :func:`test_image_sizes`.
    """
    register_custom(cfg)
    check_inputs(cfg)
    if train and not len(cfg.DATASETS.TRAIN):
        raise InputError("DATASETS.TRAIN names no data set; give at least one")
    names = dict.fromkeys([*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST])
    mapper = SemanticMapper(cfg, False)
    for name in names:
        records = load_records(name)
        if uses_instances(cfg, records) and not reads_label_maps(cfg):
            continue
        _check_metadata(name, cfg)
        _check_labelled(name, records, cfg, train=train and name in cfg.DATASETS.TRAIN)
        for record in _samples(records):
            mapper.read(dict(record))


def check_instance_data(cfg: CfgNode) -> None:
    """Raise InputError if the model of ``cfg`` needs instances and DATASETS.TRAIN do not hold what it trains with."""
    is_panoptic = base_architecture(cfg) == "PanopticDeepLab"
    if not is_panoptic and not needs_instances(cfg):
        return
    register_custom(cfg)
    for name in cfg.DATASETS.TRAIN:
        if is_panoptic:
            check_panoptic(name, load_records(name))
        else:
            check_instances(name, load_records(name), cfg)


def test_image_sizes(cfg: CfgNode) -> dict[tuple[int, int], str]:
    """Return the (height, width) of all images of DATASETS.TEST, each with the first file that has it.

    Only the beginning of each file is read. Raises InputError with the file for one that cannot be read, that INPUT resizes to
    nothing, or whose label map has another size.
    """
    sizes: dict[tuple[int, int], str] = {}
    for name in cfg.DATASETS.TEST:
        for record in load_records(name):
            path = str(record["file_name"])
            size = image_size(path)
            _check_label_size(record, size)
            if size not in sizes:
                _check_resized(cfg, size, path)
                sizes[size] = path
    return sizes


def _check_label_size(record: dict[str, Any], size: tuple[int, int]) -> None:
    """Raise InputError for a label map that does not fit its image, whichever of the two is turned."""
    path = record.get("sem_seg_file_name")
    if path is None:
        return
    found = label_size(path)
    if sorted(found) != sorted(size):
        raise InputError(
            f"{record['file_name']} is {size[0]} x {size[1]}, but its label map {path} is {found[0]} x {found[1]}; height and "
            "width must agree"
        )


def _check_resized(cfg: CfgNode, size: tuple[int, int], path: str) -> None:
    """Raise InputError if INPUT or TEST.AUG resizes an image of ``size`` (height, width) to nothing."""
    inputs, several = cfg.INPUT, cfg.TEST.AUG
    bounds = {"INPUT.MIN_SIZE_TEST": (inputs.MIN_SIZE_TEST, "INPUT.MAX_SIZE_TEST", inputs.MAX_SIZE_TEST)}
    if several.ENABLED:
        shortest = min(several.MIN_SIZES, default=0)
        bounds["TEST.AUG.MIN_SIZES"] = shortest, "TEST.AUG.MAX_SIZE", several.MAX_SIZE
    for key, (shortest, most, longest) in bounds.items():
        resized = T.ResizeShortestEdge.get_output_shape(*size, shortest, longest) if shortest else size
        if min(resized) < 1:
            raise InputError(
                f"{path} is {size[0]} x {size[1]}, of which {resized[0]} x {resized[1]} would be left ({key} {shortest}, "
                f"{most} {longest}); take the image out or raise {most}"
            )


def unseen_classes(cfg: CfgNode) -> str:
    """Return a warning about classes without a pixel in the training data; "" if all have some.

    Label maps are read until every class has been seen, at most LABEL_SAMPLES of them, evenly spaced: of a large
    data set, absence from the sample is no proof, and the warning says how many were read.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    records = [record for name in cfg.DATASETS.TRAIN for record in load_records(name)]
    records = [record for record in records if "sem_seg_file_name" in record]
    step = -(-len(records) // LABEL_SAMPLES)
    some = records[:: max(step, 1)]
    wanted = {number for number in range(head.NUM_CLASSES) if number != head.IGNORE_VALUE}
    seen: set[int] = set()
    for record in some:
        if wanted <= seen:
            return ""
        seen |= {*np.unique(read_labels(record["sem_seg_file_name"])).tolist()}
    absent = sorted(wanted - seen)
    if not absent or not some:
        return ""
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("stuff_classes") or range(head.NUM_CLASSES)
    where = (
        "the training data"
        if step <= 1
        else f"the {len(some)} of {len(records)} training label maps looked at"
    )
    is_are = f"class {names[absent[0]]!r} has" if len(absent) == 1 else f"{len(absent)} classes have"
    which = "" if len(absent) == 1 else f": {listing([str(names[number]) for number in absent], 6)}"
    hint = value_hint(seen, head.NUM_CLASSES, head.IGNORE_VALUE)
    return f"{is_are} no pixel in {where}{which}{hint}; check_dataset.py counts all"


def check_inputs(cfg: CfgNode) -> None:
    """Raise InputError for a value of INPUT that the reading of images cannot work with."""
    inputs = cfg.INPUT
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
    if inputs.REDUCED_DECODING and cfg.DATALOADER.KEEP_DECODED:
        raise InputError(
            "INPUT.REDUCED_DECODING decodes an image for the size of the moment, DATALOADER.KEEP_DECODED once for all sizes; "
            "set one of the two"
        )
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
    check_classes(name)
    metadata, head = MetadataCatalog.get(name), cfg.MODEL.SEM_SEG_HEAD
    _check_equal(
        name,
        "classes",
        len(metadata.stuff_classes),
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


def _check_labelled(name: str, records: Records, cfg: CfgNode, *, train: bool) -> None:
    """Raise InputError for images without a label map where they would end a training or an evaluation."""
    without = [record for record in records if not LABEL_KEYS & {*record}]
    if without and (train or not cfg.TEST.SUBMISSION):
        cure = (
            "leave them out (UNLABELLED: skip)"
            if train
            else "leave them out, or predict alone (TEST.SUBMISSION True)"
        )
        raise InputError(
            f"the data set {name!r}: no label map for {len(without)} of {counted(len(records), 'image')}, the first is "
            f"{without[0]['file_name']}; {cure}"
        )


def _check_equal(name: str, what: str, found: Any, key: str, wanted: Any) -> None:
    if found != wanted:
        raise InputError(
            f"the data set {name!r} has {found} {what}, but {key} is {wanted}; set {key} to {found}"
        )


def _samples(records: Records) -> Records:
    step = max((len(records) - 1) // (SAMPLES - 1), 1)
    return records[::step][:SAMPLES]
