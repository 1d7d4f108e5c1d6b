"""The whole Panoptic-DeepLab of the real Detectron2 trains with the branch, and reads our config keys."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg, load_config
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.modeling.check import check_model_config
from tests.conformance.runtimes import load, needs_detectron2
from tests.modeling.deeplab.models import deeplab_cfg

CONFIG = Path(__file__).parents[2] / "configs/cityscapes/panoptic_deeplab_R_52_90k_bs32_instances_hicl.yaml"
door_to_detectron2 = pytest.mark.skipif(
    not USES_DETECTRON2, reason="the door does not lead to Detectron2 here"
)


def make_cfg(with_branch: bool) -> Any:
    cfg = deeplab_cfg("PanopticDeepLabSemSegHead", crop=(64, 64), OUT_FEATURES=["res2", "res3", "res5"])
    cfg.MODEL.META_ARCHITECTURE = "HiCL" if with_branch else "PanopticDeepLab"
    cfg.MODEL.HICL.BASE = "PanopticDeepLab"
    cfg.MODEL.HICL.WARMUP_ITERS, cfg.MODEL.HICL.WINDOWS = 0, [1, 2]
    head = cfg.MODEL.INS_EMBED_HEAD
    head.PROJECT_CHANNELS, head.ASPP_CHANNELS, head.CONVS_DIM, head.HEAD_CHANNELS = [4, 8], 16, 16, 8
    head.NORM, head.ASPP_DROPOUT = "BN", 0.0
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DROPOUT = 0.0
    cfg.DATASETS.TRAIN = ("panoptic_of_a_test",)
    return cfg


def make_batch() -> list[dict[str, Any]]:
    """Return two images with one thing (class 1) on stuff (class 0), and the targets that Detectron2 makes of them."""
    generator = load(
        "detectron2", "projects.panoptic_deeplab.target_generator"
    ).PanopticDeepLabTargetGenerator
    targets = generator(ignore_label=255, thing_ids=[1], sigma=10, ignore_stuff_in_offset=True)
    batch = []
    for index in range(2):
        segments = np.full((64, 64), 7)
        segments[10 + 8 * index : 40, 20:50] = 9
        info = [
            {"id": 7, "category_id": 0, "iscrowd": 0, "area": int((segments == 7).sum())},
            {"id": 9, "category_id": 1, "iscrowd": 0, "area": int((segments == 9).sum())},
        ]
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        batch.append({"image": image, "height": 64, "width": 64, **targets(segments, info)})
    return batch


@needs_detectron2
@door_to_detectron2
def test_it_trains_with_the_branch_and_keeps_its_own_losses_and_predictions() -> None:
    from hicl_d2.d2.data import MetadataCatalog
    from hicl_d2.d2.modeling import build_model

    MetadataCatalog.get("panoptic_of_a_test").set(
        thing_dataset_id_to_contiguous_id={1: 1}, label_divisor=1000
    )
    torch.manual_seed(0)
    batch, models = make_batch(), []
    for with_branch in (False, True):
        cfg = make_cfg(with_branch)
        check_model_config(cfg)
        torch.manual_seed(1)
        models.append(build_model(cfg))
    plain, model = models
    assert set(plain.state_dict()) == {key for key in model.state_dict() if not key.startswith("hicl.")}
    expected, found = plain(batch), model(batch)
    assert set(found) - set(expected) == {"loss_hicl"}
    assert {"loss_sem_seg", "loss_center", "loss_offset"} == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    sum(found.values()).backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    with torch.no_grad():
        for a, b in zip(plain.eval()(batch), model.eval()(batch), strict=True):
            assert torch.equal(a["sem_seg"], b["sem_seg"])
            assert torch.equal(a["panoptic_seg"][0], b["panoptic_seg"][0])


@needs_detectron2
@door_to_detectron2
@pytest.mark.parametrize("crop", [(64, 64), (60, 72)])
def test_images_of_any_size_are_tested_also_where_detectron2s_pooling_refuses_them(crop: Any) -> None:
    from hicl_d2.d2.data import MetadataCatalog
    from hicl_d2.d2.modeling import build_model

    MetadataCatalog.get("panoptic_of_a_test").set(
        thing_dataset_id_to_contiguous_id={1: 1}, label_divisor=1000
    )
    cfg = make_cfg(False)
    cfg.INPUT.CROP.SIZE = list(crop)
    check_model_config(cfg)
    model = build_model(cfg).eval()
    for size in ((64, 64), (50, 81), (33, 20)):
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        with torch.no_grad():
            output = model([{"image": image, "height": size[0], "width": size[1]}])[0]
        assert output["sem_seg"].shape[1:] == size
        assert output["panoptic_seg"][0].shape == size


@needs_detectron2
def test_our_keys_have_its_defaults() -> None:
    cfg = load("detectron2", "config").get_cfg()
    load("detectron2", "projects.panoptic_deeplab").add_panoptic_deeplab_config(cfg)
    ours = get_hicl_cfg()
    assert ours.MODEL.INS_EMBED_HEAD == cfg.MODEL.INS_EMBED_HEAD
    assert ours.MODEL.PANOPTIC_DEEPLAB == cfg.MODEL.PANOPTIC_DEEPLAB
    for key in ("GAUSSIAN_SIGMA", "IGNORE_STUFF_IN_OFFSET", "SMALL_INSTANCE_AREA", "SMALL_INSTANCE_WEIGHT"):
        assert ours.INPUT[key] == cfg.INPUT[key], key
    assert ours.INPUT.IGNORE_CROWD_IN_SEMANTIC == cfg.INPUT.IGNORE_CROWD_IN_SEMANTIC


@needs_detectron2
@door_to_detectron2
def test_segment_ids_are_read_from_colours_as_coco_writes_them() -> None:
    from hicl_d2.d2.projects import _ids_of_colours

    colours = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [255, 255, 255]]], dtype=np.uint8)
    assert _ids_of_colours(colours).tolist() == [[1, 256], [65536, 2**24 - 1]]


@pytest.mark.skipif(USES_DETECTRON2, reason="Detectron2 has the model")
def test_without_detectron2_the_config_loads_and_the_check_names_the_guide() -> None:
    cfg = load_config(CONFIG, ["MODEL.DEVICE", "cpu"])
    with pytest.raises(
        InputError, match=r"HICL.BASE 'PanopticDeepLab' is not registered.*Detectron2 has others"
    ):
        check_model_config(cfg)


@door_to_detectron2
@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("SEM_SEG_HEAD", "NAME", "DeepLabV3PlusHead", "PanopticDeepLab needs PanopticDeepLabSemSegHead"),
        ("INS_EMBED_HEAD", "IN_FEATURES", ["res2", "res4"], "INS_EMBED_HEAD.IN_FEATURES names res4"),
        ("PANOPTIC_DEEPLAB", "USE_DEPTHWISE_SEPARABLE_CONV", True, "make them equal"),
    ],
)
def test_heads_that_do_not_go_together_are_refused(section: str, key: str, value: Any, message: str) -> None:
    cfg = make_cfg(True)
    cfg.MODEL[section][key] = value
    with pytest.raises(InputError, match=message):
        check_model_config(cfg)
