"""A train script of one's own needs three lines: the import, `add_hicl_config` and MODEL.META_ARCHITECTURE.

The scripts are Detectron2's two ways to train, DefaultTrainer and a plain loop, with configs of its model zoo and its projects.
Without Detectron2 the plain loop runs on what the built-in runtime has of it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from hicl_d2.config import add_hicl_config
from hicl_d2.contrast import register_contrast, strip
from hicl_d2.contrast.peers.pixel import PixelContrast
from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.config import get_cfg
from hicl_d2.d2.modeling import build_model
from hicl_d2.d2.utils import EventStorage
from tests.conformance.test_panoptic_deeplab import make_batch

real = pytest.mark.skipif(not USES_DETECTRON2, reason="Detectron2 is not installed here")
CLASSES = 3

FPN = "sem_seg_head.predictor"


@pytest.fixture
def squares(tmp_path: Path) -> Any:
    """Register squares_train as Detectron2's guide for data sets of one's own says."""
    import numpy as np
    from PIL import Image

    from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog

    records = []
    for index in range(4):
        labels = np.zeros((64, 64), np.uint8)
        labels[8 * index : 8 * index + 24, 16:48] = 1 + index % (CLASSES - 1)
        image = Image.fromarray(np.repeat(labels[..., None] * 80, 3, axis=2))
        record = {"file_name": str(tmp_path / f"{index}.jpg"), "height": 64, "width": 64, "image_id": index}
        record["sem_seg_file_name"] = str(tmp_path / f"{index}.png")
        image.save(record["file_name"])
        Image.fromarray(labels).save(record["sem_seg_file_name"])
        records.append(record)
    DatasetCatalog.register("squares_train", lambda: records)
    MetadataCatalog.get("squares_train").set(
        stuff_classes=list("abc"), ignore_label=255, evaluator_type="sem_seg"
    )
    yield
    DatasetCatalog.remove("squares_train")
    MetadataCatalog.remove("squares_train")


def read(cfg: Any, folder: Path, base: str, place: str, zoo: str = "", **sections: Any) -> Any:
    """Write a config as a user would, the branch's four lines and small sizes, and merge it into ``cfg``."""
    hicl = {
        "BASE": base,
        "FEATURE": place,
        "LOGITS": place,
        "WINDOWS": [1, 2],
        "WARMUP_ITERS": 0,
        "LOG_PERIOD": 1,
    }
    model = {"META_ARCHITECTURE": "HiCL", "HICL": hicl, "DEVICE": "cpu", "WEIGHTS": "", **sections}
    model["RESNETS"] = {"NORM": "BN", **sections.get("RESNETS", {})}
    model["SEM_SEG_HEAD"] = {"NUM_CLASSES": CLASSES, **sections.get("SEM_SEG_HEAD", {})}
    content = {
        **({"_BASE_": zoo} if zoo else {}),
        "MODEL": model,
        "INPUT": {"MIN_SIZE_TRAIN": [64]},
        "SOLVER": {"IMS_PER_BATCH": 2, "BASE_LR": 0.001, "MAX_ITER": 3},
        "DATALOADER": {"NUM_WORKERS": 0},
        "DATASETS": {"TRAIN": ["squares_train"], "TEST": []},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    cfg.merge_from_file(str(file))
    cfg.OUTPUT_DIR = str(folder / "output")
    cfg.freeze()
    return cfg


@real
def test_detectron2s_default_trainer_trains_and_resumes_the_zoos_semantic_fpn(
    tmp_path: Path, squares: None
) -> None:
    from detectron2.engine import DefaultTrainer

    zoo = pytest.importorskip("detectron2.model_zoo")
    base = zoo.get_config_file("Misc/semantic_R_50_FPN_1x.yaml")
    cfg = get_cfg()
    add_hicl_config(cfg)
    cfg = read(cfg, tmp_path, "SemanticSegmentor", FPN, base)

    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()

    logged = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").read_text().splitlines()]
    assert logged[-1]["loss_hicl"] > 0
    assert {name.split("/")[1] for name in logged[-1] if name.endswith("/kept")} == {"w1", "w2"}
    saved = torch.load(tmp_path / "output" / "model_final.pth", weights_only=False)["model"]
    plain = get_cfg()
    plain.merge_from_file(base)
    plain.MODEL.DEVICE, plain.MODEL.RESNETS.NORM, plain.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "cpu", "BN", CLASSES
    assert set(strip(saved)) == set(build_model(plain).state_dict())
    longer = cfg.clone()
    longer.defrost()
    longer.SOLVER.MAX_ITER = 4
    again = DefaultTrainer(longer)
    again.resume_or_load(resume=True)
    assert again.start_iter == 3
    for key, value in again.model.hicl.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(saved[f"hicl.{key}"])), key


@real
def test_a_plain_loop_trains_point_rends_semantic_model(tmp_path: Path, squares: None) -> None:
    point_rend = pytest.importorskip("detectron2.projects.point_rend")
    from detectron2 import model_zoo

    cfg = get_cfg()
    point_rend.add_pointrend_config(cfg)
    add_hicl_config(cfg)
    zoo = model_zoo.get_config_file("Base-RCNN-FPN.yaml")
    head = {"NAME": "PointRendSemSegHead"}
    points = {"NUM_CLASSES": CLASSES, "IN_FEATURES": ["p2"], "COARSE_SEM_SEG_HEAD_NAME": "SemSegFPNHead"}
    place = "sem_seg_head.coarse_sem_seg_head.predictor"
    cfg = read(cfg, tmp_path, "SemanticSegmentor", place, zoo, SEM_SEG_HEAD=head, POINT_HEAD=points)
    losses = plain_loop(cfg)
    assert all(each["loss_hicl"] > 0 and "loss_sem_seg_point" in each for each in losses)


@real
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_plain_step_of_panoptic_deeplab_whichever_projects_keys_come_first(
    tmp_path: Path, first: str
) -> None:
    from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config

    cfg = get_cfg()
    adders = [add_hicl_config, add_panoptic_deeplab_config]
    for add in adders if first == "ours" else adders[::-1]:
        add(cfg)
    head = {
        "IN_FEATURES": ["res2", "res3", "res5"],
        "PROJECT_FEATURES": ["res2", "res3"],
        "PROJECT_CHANNELS": [8, 16],
        "NORM": "BN",
    }
    sections = {
        "RESNETS": {"OUT_FEATURES": head["IN_FEATURES"]},
        "SEM_SEG_HEAD": {"NAME": "PanopticDeepLabSemSegHead", **head},
        "INS_EMBED_HEAD": head,
    }
    cfg.INPUT.CROP.SIZE = [64, 64]
    model = build_model(read(cfg, tmp_path, "PanopticDeepLab", FPN, **sections)).train()
    with EventStorage(0):
        losses = model(make_batch())
    assert set(losses) == {"loss_sem_seg", "loss_center", "loss_offset", "loss_hicl"}
    assert losses["loss_hicl"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.hicl.parameters())


def plain_loop(cfg: Any) -> list[dict[str, float]]:
    """Train as a script of one's own would with Detectron2's parts and no trainer; return the losses of every step."""
    from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
    from detectron2.data import build_detection_train_loader
    from detectron2.solver import build_lr_scheduler, build_optimizer

    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    schedule = build_lr_scheduler(cfg, optimizer)
    keeper = DetectionCheckpointer(model, cfg.OUTPUT_DIR, optimizer=optimizer, scheduler=schedule)
    Path(cfg.OUTPUT_DIR).mkdir()
    periodic = PeriodicCheckpointer(keeper, cfg.SOLVER.CHECKPOINT_PERIOD, max_iter=cfg.SOLVER.MAX_ITER)
    seen = []
    with EventStorage(0) as storage:
        for step, batch in zip(range(cfg.SOLVER.MAX_ITER), build_detection_train_loader(cfg), strict=False):
            storage.iter = step
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            schedule.step()
            periodic.step(step)
            seen.append({name: loss.item() for name, loss in losses.items()})
    return seen


def test_a_loop_on_either_runtime_trains_the_branch_with_the_model(tmp_path: Path) -> None:
    cfg = get_cfg()
    add_hicl_config(cfg)
    levels = ["res2", "res3", "res4", "res5"]
    sections = {
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
        "RESNETS": {"OUT_FEATURES": levels},
        "FPN": {"IN_FEATURES": levels},
        "SEM_SEG_HEAD": {"NAME": "SemSegFPNHead"},
    }
    model = build_model(read(cfg, tmp_path, "SemanticSegmentor", FPN, **sections)).train()
    before = {name: value.clone() for name, value in model.hicl.state_dict().items() if name != "steps"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    labels = (
        torch.arange(CLASSES + 1).clamp(max=CLASSES - 1).repeat_interleave(16).expand(64, 64).contiguous()
    )
    batch = [{"image": torch.randint(0, 256, (3, 64, 64)).float(), "sem_seg": labels} for _ in range(2)]
    with EventStorage(0) as storage:
        for step in range(2):
            storage.iter = step
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    assert set(losses) == {"loss_sem_seg", "loss_hicl"}
    assert losses["loss_hicl"] > 0
    after = model.hicl.state_dict()
    assert all(
        not torch.equal(value, after[name]) for name, value in before.items() if name.endswith("weight")
    )


def test_keys_of_a_contrast_of_ones_own_are_there_once_it_is_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hicl_d2.contrast import build

    monkeypatch.setattr(build, "_CLASSES", dict(build._CLASSES))

    @register_contrast("of_a_script")
    class OfAScript(PixelContrast):
        def __init__(
            self, in_channels: int, num_classes: int, *, share_of_it: float = 0.25, **shared: Any
        ) -> None:
            super().__init__(in_channels, num_classes, **shared)

    assert issubclass(OfAScript, nn.Module)
    cfg = get_cfg()
    add_hicl_config(cfg)
    cfg.merge_from_list(["MODEL.HICL.SHARE_OF_IT", 0.5])
    assert cfg.MODEL.HICL.SHARE_OF_IT == 0.5
