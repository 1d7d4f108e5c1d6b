"""Catalogs, image reading, mapper and loaders do what Detectron2's do."""

import contextlib
import copy
import itertools
import random
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conformance.runtimes import golden, load, needs_detectron2, plain

NAME = "conformance_data"


def _checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def write_pictures(folder: Path) -> list[dict[str, Any]]:
    """Write six images of two shapes with their label maps, and return their records."""
    records = []
    for number in range(6):
        height, width = (60, 90) if number % 3 else (90, 60)
        y, x = np.mgrid[:height, :width]
        image = np.stack([(3 * x + y * number) % 256, (x * y) % 251, (5 * y + 9 * number) % 256], axis=-1)
        labels = (x // 20 + 3 * (y // 25)) % 7
        labels[:2] = 255
        paths = folder / f"{number}.png", folder / f"{number}_labels.png"
        for path, array in zip(paths, (image, labels), strict=True):
            Image.fromarray(array.astype(np.uint8)).save(path)
        record = {"file_name": str(paths[0]), "sem_seg_file_name": str(paths[1]), "image_id": number}
        records.append({**record, "height": height, "width": width})
    return records


@contextlib.contextmanager
def pictures(data: Any) -> Iterator[list[dict[str, Any]]]:
    """Register the pictures for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        records = write_pictures(Path(folder))
        data.DatasetCatalog.register(NAME, lambda: copy.deepcopy(records))
        try:
            yield records
        finally:
            data.DatasetCatalog.remove(NAME)


def config(runtime: str, *, crop: bool = True, grouping: bool = True) -> Any:
    """Return a config that trains on the pictures at a small size."""
    cfg = load(runtime, "config").get_cfg()
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 60, 80)
    cfg.INPUT.MIN_SIZE_TEST = 50
    cfg.INPUT.CROP.ENABLED = crop
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 11
    return cfg


def _described(mapped: dict[str, Any]) -> dict[str, Any]:
    """Return a mapped record with checksums in the place of tensors and names in the place of paths."""
    described: dict[str, Any] = {}
    for key, value in sorted(mapped.items()):
        if isinstance(value, torch.Tensor):
            value = [list(value.shape), str(value.dtype), _checksum(value.numpy())]
        described[key] = Path(value).name if key.endswith("file_name") else value
    return described


def _mapped(runtime: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    mapper_class = load(runtime, "data").DatasetMapper
    results = {}
    for label, mapper in {
        "training": mapper_class(config(runtime), True),
        "training without crop": mapper_class(config(runtime, crop=False), is_train=True),
        "test": mapper_class(config(runtime), False),
    }.items():
        before = copy.deepcopy(records)
        np.random.seed(3)
        results[label] = [_described(mapper(record)) for record in records]
        assert records == before, "a mapper must not change the record that it is given"
    return results


def _batches(runtime: str, grouping: bool) -> list[list[dict[str, Any]]]:
    loader = load(runtime, "data").build_detection_train_loader(config(runtime, grouping=grouping))
    np.random.seed(7)
    random.seed(7)
    return [[_described(mapped) for mapped in batch] for batch in itertools.islice(iter(loader), 5)]


def _test_records(runtime: str) -> list[Any]:
    loader = load(runtime, "data").build_detection_test_loader(config(runtime), NAME)
    return [len(loader), [[_described(mapped) for mapped in batch] for batch in loader]]


def _read_images(runtime: str, folder: Path) -> dict[str, Any]:
    """Return what reading gives for several formats, modes and orientations."""
    utils = load(runtime, "data.detection_utils")
    y, x = np.mgrid[:5, :8]
    colours = np.stack([20 * y, 30 * x, 10 * (x + y)], axis=-1).astype(np.uint8)
    results: dict[str, Any] = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = folder / f"{orientation}.png"
        Image.fromarray(colours).save(path, exif=exif)
        results[f"orientation {orientation}"] = utils.read_image(str(path), "RGB").tolist()
    Image.fromarray(colours).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    Image.fromarray(colours[:, :, 0]).save(folder / "grey.png")
    Image.fromarray(colours).convert("RGBA").save(folder / "alpha.png")
    for name, image_format in itertools.product(("1", "palette", "grey", "alpha"), ("BGR", "RGB", "L", None)):
        array = utils.read_image(str(folder / f"{name}.png"), image_format)
        results[f"{name} as {image_format}"] = [list(array.shape), str(array.dtype), _checksum(array)]
    for image_format in ("BGR", "RGB"):
        results[f"{image_format} to RGB"] = utils.convert_image_to_rgb(colours, image_format).tolist()
    results["L to RGB"] = utils.convert_image_to_rgb(colours[:, :, :1], "L").tolist()
    return results


def _raised(action: Any) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what is recorded
        action()
    return caught.type.__name__


def _catalogs(runtime: str) -> dict[str, Any]:
    """Return how the catalogs answer, and which exceptions they raise."""
    data = load(runtime, "data")
    catalog, metadata = data.DatasetCatalog, data.MetadataCatalog
    names = "conformance_a", "conformance_b"
    catalog.register(names[0], lambda: [{"file_name": "x"}])
    meta = metadata.get(names[0]).set(stuff_classes=["a", "b"], ignore_label=255)
    answers = {
        "records": catalog.get(names[0]),
        "listed": names[0] in catalog.list(),
        "again": _raised(lambda: catalog.register(names[0], lambda: [])),
        "no function": _raised(lambda: catalog.register(names[1], [])),
        "unknown": _raised(lambda: catalog.get(names[1])),
        "removed unknown": _raised(lambda: catalog.remove(names[1])),
        "same metadata": metadata.get(names[0]) is meta,
        "as_dict": meta.as_dict(),
        "get": [meta.get("ignore_label"), meta.get("nothing"), meta.get("nothing", 3)],
        "missing attribute": _raised(lambda: meta.nothing),
        "changed attribute": _raised(lambda: setattr(meta, "ignore_label", 0)),
        "same value again": meta.set(ignore_label=255).ignore_label,
        "nameless": _raised(lambda: metadata.get("")),
        "empty data set": _raised(lambda: _load_empty(data)),
        "no data set": _raised(lambda: data.get_detection_dataset_dicts([])),
    }
    catalog.remove(names[0])
    metadata.remove(names[0])
    return {**answers, "gone": [names[0] in catalog, names[0] in metadata.list()]}


def _load_empty(data: Any) -> None:
    data.DatasetCatalog.register("conformance_empty", lambda: [])
    try:
        data.get_detection_dataset_dicts("conformance_empty")
    finally:
        data.DatasetCatalog.remove("conformance_empty")


def _sizes(runtime: str) -> dict[str, Any]:
    utils = load(runtime, "data.detection_utils")
    image, record = np.zeros((3, 5, 3), dtype=np.uint8), {"file_name": "x.png"}
    utils.check_image_size(record, image)
    wrong = {**record, "height": 4}
    return {"filled in": record, "wrong": _raised(lambda: utils.check_image_size(wrong, image))}


def figures(runtime: str) -> dict[str, Any]:
    data = load(runtime, "data")
    with pictures(data) as records, tempfile.TemporaryDirectory() as folder:
        twice = data.get_detection_dataset_dicts([NAME, NAME])
        return {
            "catalogs": _catalogs(runtime),
            "sizes": _sizes(runtime),
            "images": _read_images(runtime, Path(folder)),
            "mapped": _mapped(runtime, records),
            "batches": _batches(runtime, grouping=False),
            "grouped batches": _batches(runtime, grouping=True),
            "test records": _test_records(runtime),
            "two data sets": [record["image_id"] for record in twice],
        }


def test_lite_equals_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("data")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("data")


def _batches_of_workers(runtime: str, records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    data = load(runtime, "data")
    loader = data.build_detection_train_loader(
        records,
        mapper=data.DatasetMapper(config(runtime), True),
        sampler=load(runtime, "data.samplers").TrainingSampler(len(records), seed=2),
        total_batch_size=2,
        aspect_ratio_grouping=False,
        num_workers=2,
        seed=4,
    )
    return [[_described(mapped) for mapped in batch] for batch in itertools.islice(iter(loader), 4)]


@needs_detectron2
def test_workers_of_both_draw_the_same_augmentations(tmp_path: Path) -> None:
    records = write_pictures(tmp_path)
    assert _batches_of_workers("lite", records) == _batches_of_workers("detectron2", records)
