"""Catalogs do what Detectron2's do; the project's reader and mapper give what Detectron2's reader and mapper give."""

import copy
import itertools
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2 import transforms as T
from hicl_d2.d2.data import detection_utils
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.reading import read_image
from tests.conformance.runtimes import golden, load, needs_detectron2, plain


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


def config(cfg: Any, *, crop: bool = True) -> Any:
    """Return ``cfg`` with sizes that suit the pictures."""
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 60, 80)
    cfg.INPUT.MIN_SIZE_TEST = 50
    cfg.INPUT.CROP.ENABLED = crop
    return cfg


def _mapper(runtime: str, is_train: bool, crop: bool) -> Any:
    """Return Detectron2's mapper, or the project's with the augmentations of Detectron2's in their order."""
    if runtime == "detectron2":
        cfg = config(load(runtime, "config").get_cfg(), crop=crop)
        return load(runtime, "data").DatasetMapper(cfg, is_train)
    cfg = config(get_hicl_cfg(), crop=crop)
    augmentations = detection_utils.build_augmentation(cfg, is_train)
    if crop and is_train:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    return SemanticMapper(is_train, augmentations=augmentations, image_format=cfg.INPUT.FORMAT, num_classes=7)


def _described(mapped: dict[str, Any]) -> dict[str, Any]:
    """Return a mapped record with checksums in the place of tensors and names in the place of paths."""
    described: dict[str, Any] = {}
    for key, value in sorted(mapped.items()):
        if isinstance(value, torch.Tensor):
            value = [list(value.shape), str(value.dtype), _checksum(value.numpy())]
        described[key] = Path(value).name if key.endswith("file_name") else value
    return described


def _mapped(runtime: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    results = {}
    for label, mapper in {
        "training": _mapper(runtime, is_train=True, crop=True),
        "training without crop": _mapper(runtime, is_train=True, crop=False),
        "test": _mapper(runtime, is_train=False, crop=True),
    }.items():
        before = copy.deepcopy(records)
        np.random.seed(3)
        results[label] = [_described(mapper(record)) for record in records]
        assert records == before, "a mapper must not change the record that it is given"
    return results


def _read_images(runtime: str, folder: Path) -> dict[str, Any]:
    """Return what reading gives for several formats, modes and orientations."""
    read = read_image if runtime == "lite" else load(runtime, "data.detection_utils").read_image
    y, x = np.mgrid[:5, :8]
    colours = np.stack([20 * y, 30 * x, 10 * (x + y)], axis=-1).astype(np.uint8)
    results: dict[str, Any] = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = folder / f"{orientation}.png"
        Image.fromarray(colours).save(path, exif=exif)
        results[f"orientation {orientation}"] = read(str(path), "RGB").tolist()
    Image.fromarray(colours).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    Image.fromarray(colours[:, :, 0]).save(folder / "grey.png")
    Image.fromarray(colours).convert("RGBA").save(folder / "alpha.png")
    for name, image_format in itertools.product(("1", "palette", "grey", "alpha"), ("BGR", "RGB")):
        array = read(str(folder / f"{name}.png"), image_format)
        results[f"{name} as {image_format}"] = [list(array.shape), str(array.dtype), _checksum(array)]
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
    }
    catalog.remove(names[0])
    metadata.remove(names[0])
    return {**answers, "gone": [names[0] in catalog, names[0] in metadata.list()]}


def _sizes(runtime: str) -> dict[str, Any]:
    utils = load(runtime, "data.detection_utils")
    image, record = np.zeros((3, 5, 3), dtype=np.uint8), {"file_name": "x.png"}
    utils.check_image_size(record, image)
    wrong = {**record, "height": 4}
    return {"filled in": record, "wrong": _raised(lambda: utils.check_image_size(wrong, image))}


def figures(runtime: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            "catalogs": _catalogs(runtime),
            "sizes": _sizes(runtime),
            "images": _read_images(runtime, Path(folder)),
            "mapped": _mapped(runtime, write_pictures(Path(folder))),
        }


def test_ours_equal_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("data")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("data")
