"""Every recipe below configs/ starts: its model can be built, and all that a start checks holds on data of the nominal sizes.

The data sets hold two blank images for each split, of the size that the real ones have or, where those come in many sizes,
of a common one. Models are built at full size on the meta device, which allocates nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hicl_d2.command.address import DOWNLOAD
from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.modeling import build_model
from hicl_d2.data.datasets.registry import data_root
from hicl_d2.run.setup import check_before_start
from hicl_d2.tools.arguments import train_arguments

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-"))
# Image, label map, and (height, width): {split} and {number} are filled in.
CITY = "cityscapes/{kind}/{split}/city/city_00000{number}_000019_{kind}"
DATA = {
    "camvid": (
        ("train", "val", "test"),
        "camvid/images/{split}/{number}.png",
        "camvid/annotations/{split}/{number}.png",
        (360, 480),
    ),
    "cityscapes": (
        ("train", "val"),
        CITY.replace("{kind}", "leftImg8bit") + ".png",
        CITY.replace("{kind}", "gtFine") + "_labelTrainIds.png",
        (1024, 2048),
    ),
    "ade20k": (
        ("training", "validation"),
        "ADEChallengeData2016/images/{split}/{number}.jpg",
        "ADEChallengeData2016/annotations_detectron2/{split}/{number}.png",
        (512, 683),
    ),
    "coco_stuff_10k": (
        ("train", "test"),
        "coco/coco_stuff_10k/images/{split}{number}.jpg",
        "coco/coco_stuff_10k/annotations_detectron2/{split}/{split}{number}.png",
        (480, 640),
    ),
    "coco_stuff_164k": (
        ("train", "val"),
        "coco/{split}2017/{number}.jpg",
        "coco/stuffthingmaps_detectron2/{split}2017/{number}.png",
        (427, 640),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def blank_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    root = tmp_path_factory.mktemp("blank")
    for splits, image, labels, (height, width) in DATA.values():
        for split in splits:
            for number in (0, 1):
                for pattern, picture in (
                    (image, Image.new("RGB", (width, height), (90, 90, 90))),
                    (labels, Image.fromarray(np.zeros((height, width), np.uint8))),
                ):
                    path = root / pattern.format(split=split, number=number)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture.save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        patch.setenv(DOWNLOAD, "1")  # whether weights may be fetched is the user's to say
        yield


def start(path: Path, tmp_path: Path) -> None:
    output = ["OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu"]
    args = train_arguments(["--config-file", str(path), *output])
    assert check_before_start(load_config(args.config_file, args.opts), args) == "fresh"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_passes_its_whole_start_up_check(path: Path, tmp_path: Path) -> None:
    assert data_root().is_dir()
    if "_instances" not in path.stem:
        start(path, tmp_path)
        return
    # The whole Panoptic-DeepLab is Detectron2's, and so are the panoptic labels of Cityscapes that it trains on.
    expected = "cityscapes_fine_panoptic_train" if USES_DETECTRON2 else "'PanopticDeepLab' is not registered"
    with pytest.raises(InputError, match=expected):
        start(path, tmp_path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_model_of_a_recipe_is_built(path: Path) -> None:
    if "_instances" in path.stem and not USES_DETECTRON2:
        pytest.skip("Detectron2's own model")
    cfg = load_config(path, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    assert hasattr(model, "hicl") == path.stem.endswith("_hicl")
