"""Small trees in the layouts and encodings of the official downloads, with the classes that were meant.

Every builder writes below ``root`` and returns the intended label map (H, W), 255 ignored, of each label file
that the conversion should make, by its path below ``root``.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

UNUSED_10K = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
# Cityscapes' ids by training id, from the benchmark's published table.
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
CITYSCAPES_NAMES = [
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
]

Labels = dict[str, np.ndarray]


def scene(classes: int, number: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Return a label map of 4 x 4 blocks of classes, some of it ignored; over few scenes every class occurs."""
    height, width = size
    generator = np.random.default_rng(number)
    blocks = (np.arange(height // 4 * (width // 4)) * 7 + number * 48) % classes
    blocks = generator.permutation(blocks)
    blocks[generator.random(blocks.size) < 0.1] = 255
    return np.kron(blocks.reshape(height // 4, width // 4), np.ones((4, 4), dtype=int)).astype(np.uint8)


def picture(labels: np.ndarray, number: int) -> Image.Image:
    """Return an image from which the labels can be learnt: a colour per class, and noise."""
    noise = np.random.default_rng(1000 + number).integers(0, 25, (*labels.shape, 3))
    classes = labels.astype(int)
    colours = np.stack([classes * 37 % 200, classes * 91 % 211, classes * 59 % 223], axis=-1)
    return Image.fromarray((colours + noise).clip(0, 255).astype(np.uint8))


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_cityscapes(root: Path, *, count: int = 3, ids: bool = True, train_ids: bool = False) -> Labels:
    """Write leftImg8bit and gtFine with polygons, instanceIds and, as told, labelIds and labelTrainIds."""
    intended = {}
    for split, city in (("train", "ulm"), ("val", "bern"), ("test", "bonn")):
        for number in range(count):
            seed = number + 10 * (split == "val")
            labels = scene(19, seed)
            stem = f"{city}_{number:06}_000019"
            folder = root / "cityscapes" / "gtFine" / split / city
            image = root / "cityscapes" / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
            _save(picture(labels, seed), image)
            if split == "test":
                continue
            raw = np.zeros(labels.shape, dtype=np.uint8)  # unlabeled
            for train_id, number_ in enumerate(CITYSCAPES_IDS):
                raw[labels == train_id] = number_
            # Ignored pixels are of several kinds: ids 0 to 6, 9, 10 ... are all not trained on.
            raw[labels == 255] = (0, 4, 6, 9, 30)[number % 5]
            instances = raw.astype(np.uint16)
            instances[raw >= 24] = raw[raw >= 24].astype(np.uint16) * 1000
            folder.mkdir(parents=True, exist_ok=True)
            if ids:
                _save(Image.fromarray(raw), folder / f"{stem}_gtFine_labelIds.png")
            if train_ids:
                _save(Image.fromarray(labels), folder / f"{stem}_gtFine_labelTrainIds.png")
            _save(Image.fromarray(instances), folder / f"{stem}_gtFine_instanceIds.png")
            (folder / f"{stem}_gtFine_polygons.json").write_text(json.dumps(_polygons(labels)))
            intended[f"cityscapes/gtFine/{split}/{city}/{stem}_gtFine_labelTrainIds.png"] = labels
    return intended


def _polygons(labels: np.ndarray) -> dict[str, object]:
    """Return each block as a polygon; cityscapesscripts draws a polygon with its last pixel."""
    objects = []
    for top in range(0, labels.shape[0], 4):
        for left in range(0, labels.shape[1], 4):
            label = labels[top, left]
            name = "static" if label == 255 else CITYSCAPES_NAMES[label]
            corners = [[left, top], [left + 3, top], [left + 3, top + 3], [left, top + 3]]
            objects.append({"label": name, "polygon": corners})
    return {"imgHeight": labels.shape[0], "imgWidth": labels.shape[1], "objects": objects}


def write_ade20k(root: Path, *, count: int = 4) -> Labels:
    """Write images and annotations of ADEChallengeData2016: 0 not evaluated, 1 to 150."""
    intended = {}
    base = root / "ADEChallengeData2016"
    for folder, prefix in (("training", "ADE_train"), ("validation", "ADE_val")):
        for number in range(count):
            seed = number + 20 * (folder == "validation")
            labels, name = scene(150, seed), f"{prefix}_{number + 1:08}"
            _save(picture(labels, seed), base / "images" / folder / f"{name}.jpg")
            raw = np.where(labels == 255, 0, labels.astype(int) + 1).astype(np.uint8)
            _save(Image.fromarray(raw), base / "annotations" / folder / f"{name}.png")
            intended[f"{base.name}/annotations_detectron2/{folder}/{name}.png"] = labels
    return intended


def write_coco_10k(root: Path, version: str, *, count: int = 4, transposed: bool = False) -> Labels:
    """Write images, annotations (.mat) and imageLists of COCO-Stuff 10k in version 1.0 or 1.1."""
    intended = {}
    base = root / "coco" / "coco_stuff_10k"
    used = [number for number in range(1, 183) if number not in UNUSED_10K]
    encode: Callable[[int], int] = (
        (lambda c: 1 if c == 255 else c + 2) if version == "1.0" else (lambda c: 0 if c == 255 else used[c])
    )
    for split in ("train", "test"):
        stems = [f"COCO_train2014_{number + 100 * (split == 'test'):012}" for number in range(count)]
        for number, stem in enumerate(stems):
            labels = scene(171, number + 30 * (split == "test"), (20, 36))
            _save(picture(labels, number), base / "images" / f"{stem}.jpg")
            raw = np.vectorize(encode)(labels.astype(int)).astype(np.uint8)
            (base / "annotations").mkdir(parents=True, exist_ok=True)
            content = {"S": raw.T if transposed else raw, "names": np.array(["a", "b"], dtype=object)}
            savemat(base / "annotations" / f"{stem}.mat", content)
            intended[f"coco/coco_stuff_10k/annotations_detectron2/{split}/{stem}.png"] = labels
        (base / "imageLists").mkdir(parents=True, exist_ok=True)
        (base / "imageLists" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return intended


def write_coco_164k(root: Path, *, count: int = 4) -> Labels:
    """Write images and stuffthingmaps of COCO-Stuff 164k: 0 to 181 with unused ids, 255."""
    intended = {}
    used = [number - 1 for number in range(1, 183) if number not in UNUSED_10K]
    for split in ("train", "val"):
        for number in range(count):
            labels = scene(171, number + 40 * (split == "val"), (20, 36))
            name = f"{number + 1:012}"
            _save(picture(labels, number), root / "coco" / f"{split}2017" / f"{name}.jpg")
            raw = np.vectorize(lambda c: 255 if c == 255 else used[c])(labels.astype(int)).astype(np.uint8)
            _save(Image.fromarray(raw), root / "coco" / "stuffthingmaps" / f"{split}2017" / f"{name}.png")
            intended[f"coco/stuffthingmaps_detectron2/{split}2017/{name}.png"] = labels
    return intended
