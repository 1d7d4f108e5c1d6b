"""Trainers that go on one iteration at a time: the project's, and Detectron2's as its own train scripts make it."""

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from hicl_d2.d2 import USES_DETECTRON2
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.d2.utils import EventStorage
from hicl_d2.data.color import ColorAugSSDTransform
from hicl_d2.data.datasets.registry import load_records
from hicl_d2.engine.trainer import Trainer
from hicl_d2.modeling.settings import base_architecture
from speed.mask2former import (
    has_mask2former,
    import_mask2former,
    mask2former_mapper,
    mask2former_model,
    mask2former_on_several_sizes,
    with_instances,
)

__all__ = [
    "Driven",
    "detectron2_evaluation",
    "detectron2_loader",
    "detectron2_model",
    "has_detectron2",
    "has_peer_evaluation",
    "is_mask2former",
    "original_model",
    "our_evaluation",
    "ours",
    "peer_batches",
    "theirs",
]

# Iterations that a schedule is made for; none of what comes last is reached.
MANY = 1_000_000


class Driven:
    """A trainer of either kind, between two iterations; calling it does the next one, with all hooks."""

    def __init__(self, trainer: Any, storage: Any, step: Any, batches: str) -> None:
        """``step`` has model, optimizer and, in the attribute ``batches``, the iterator over batches."""
        self.trainer, self.step, self.batches = trainer, step, batches
        trainer.iter = trainer.start_iter = 0
        trainer.max_iter = MANY
        self._storage = trainer.storage = storage
        with self._storage:
            trainer.before_train()

    def __call__(self) -> None:
        with self._storage:
            self.trainer.before_step()
            self.trainer.run_step()
            self.trainer.after_step()
        self.trainer.iter += 1

    @property
    def hooks(self) -> list[Any]:
        return list(self.trainer._hooks)


class _Repeated:
    """A training loader that gives the same batches over and over."""

    start_iteration = 0

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(self._batches)


def ours(cfg: CfgNode, folder: Path, batches: list[Any] | None) -> Driven:
    """Return the project's trainer of ``cfg``, on ``batches`` or, where that is None, on the training data.

    It writes below ``folder``. Raises InputError for what cannot be trained.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = MANY, MANY, 0
    folder.mkdir(parents=True)

    class OnBatches(Trainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            return super().build_train_loader(cfg) if batches is None else _Repeated(batches)

    torch.manual_seed(0)
    trainer = OnBatches(cfg)
    return Driven(trainer, EventStorage(0), trainer._trainer, "_batches")


def has_detectron2() -> bool:
    """Return whether Detectron2 can be measured beside the project, which runs without it (HICL_RUNTIME=lite)."""
    return not USES_DETECTRON2 and importlib.util.find_spec("detectron2") is not None


def detectron2_model(cfg: CfgNode) -> nn.Module | None:
    """Return the model of ``cfg`` that Detectron2 itself builds, or None if it has no such model."""
    modeling = _detectron2("modeling")
    _detectron2("projects.deeplab")
    names = (
        (modeling.META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE),
        (modeling.BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME),
        (modeling.SEM_SEG_HEADS_REGISTRY, cfg.MODEL.SEM_SEG_HEAD.NAME),
    )
    return modeling.build_model(_their_config(cfg)) if all(name in known for known, name in names) else None


def original_model(cfg: CfgNode, ours: nn.Module) -> nn.Module | None:
    """Return the model of ``cfg`` as its own authors build it, of the weights of ``ours``, or None where there is none.

    That is Detectron2's, or the original Mask2Former with the project's backbone where its checkout is on the Python path.
    """
    if is_mask2former(cfg):
        return mask2former_model(_their_config(cfg), ours)
    model = detectron2_model(cfg)
    if model is not None:
        model.load_state_dict(ours.state_dict())
    return model


def is_mask2former(cfg: CfgNode) -> bool:
    """Return whether the original Mask2Former is the peer of the model of ``cfg``."""
    return base_architecture(cfg) == "MaskFormer" and has_mask2former()


def peer_batches(cfg: CfgNode, batches: list[Any]) -> list[Any]:
    """Return the batches as the peer of ``cfg`` trains on them."""
    if not is_mask2former(cfg):
        return batches
    return [with_instances(batch, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE) for batch in batches]


def theirs(
    cfg: CfgNode, model: nn.Module, folder: Path, batches: Any, precision: torch.dtype | None = None
) -> Driven:
    """Return Detectron2's trainer of ``model`` with the hooks and writers of its DefaultTrainer.

    That is its SimpleTrainer, or in half precision, for which it needs a GPU, its AMPTrainer.
    """
    engine, events = _detectron2("engine"), _detectron2("utils.events")
    folder.mkdir(parents=True)
    optimizer = _their_optimizer(cfg, model)
    trainer = (
        engine.SimpleTrainer(model, batches, optimizer)
        if precision is None
        else engine.AMPTrainer(model, batches, optimizer, precision=precision)
    )
    settings = _their_config(cfg)
    settings.SOLVER.MAX_ITER = MANY
    writers = [
        events.CommonMetricPrinter(MANY),
        events.JSONWriter(str(folder / "metrics.json")),
        events.TensorboardXWriter(str(folder)),
    ]
    trainer.register_hooks(
        [
            engine.hooks.IterationTimer(),
            engine.hooks.LRScheduler(
                optimizer, _detectron2("projects.deeplab").build_lr_scheduler(settings, optimizer)
            ),
            engine.hooks.PeriodicWriter(writers, period=20),
        ]
    )
    return Driven(trainer, events.EventStorage(0), trainer, "_data_loader_iter_obj")


def _their_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return SGD as Detectron2 builds it, or AdamW as the train scripts of Mask2Former do."""
    solver = _detectron2("solver")
    settings = cfg.SOLVER
    if settings.OPTIMIZER == "SGD":
        return solver.build_optimizer(_their_config(cfg), model)
    kinds: dict[str, Any] = {"ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}
    kind = kinds[settings.OPTIMIZER]
    if settings.CLIP_GRADIENTS.ENABLED and settings.CLIP_GRADIENTS.CLIP_TYPE == "full_model":
        kind = _clipping(kind, settings.CLIP_GRADIENTS.CLIP_VALUE)
    groups = solver.get_default_optimizer_params(
        model,
        base_lr=settings.BASE_LR,
        weight_decay=settings.WEIGHT_DECAY,
        weight_decay_norm=settings.WEIGHT_DECAY_NORM,
    )
    return kind(groups, lr=settings.BASE_LR)


def _clipping(kind: Any, bound: float) -> Any:
    class Clipping(kind):
        def step(self, closure: Callable[[], float] | None = None) -> Any:
            clip_grad_norm_(itertools.chain(*(group["params"] for group in self.param_groups)), bound)
            return super().step(closure)

    return Clipping


def detectron2_loader(cfg: CfgNode) -> Any:
    """Return Detectron2's training loader of the data of ``cfg``, with the same augmentations.

    Its mapper is Detectron2's, or the original Mask2Former's where that is the peer.
    """
    data, transforms = _detectron2("data"), _detectron2("data.transforms")
    crop = cfg.INPUT.CROP
    augmentations = [
        transforms.ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        )
    ]
    if crop.ENABLED:
        augmentations.append(
            transforms.RandomCrop_CategoryAreaConstraint(
                crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
            )
        )
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(_their_colours()(cfg.INPUT.FORMAT))
    augmentations.append(transforms.RandomFlip())
    if is_mask2former(cfg):
        mapper = mask2former_mapper(_their_config(cfg), augmentations)
    else:
        mapper = data.DatasetMapper(True, augmentations=augmentations, image_format=cfg.INPUT.FORMAT)
    return data.build_detection_train_loader(
        [record for name in cfg.DATASETS.TRAIN for record in load_records(name)],
        mapper=mapper,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def our_evaluation(cfg: CfgNode, model: nn.Module, folder: Path, images: int) -> Callable[[], Any]:
    """Return what ``train_net.py --eval-only`` does with the first ``images`` of the test data, once the model is built."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    name = cfg.DATASETS.TEST[0]
    first = f"{name}_first_{images}"
    if first not in DatasetCatalog:
        DatasetCatalog.register(first, lambda: load_records(name)[:images])
        MetadataCatalog.get(first).set(**_metadata(name))
    cfg.DATASETS.TEST = (first,)
    return lambda: Trainer.test(cfg, model)["sem_seg"]["mIoU"]


def has_peer_evaluation(cfg: CfgNode) -> bool:
    """Return whether a peer evaluates as ``cfg`` asks: none has sliding windows, and only Mask2Former's several sizes.

    (Detectron2's test-time augmentation is of instances.)
    """
    return has_detectron2() and not cfg.TEST.WINDOW and (not cfg.TEST.AUG.ENABLED or is_mask2former(cfg))


def detectron2_evaluation(cfg: CfgNode, model: nn.Module, folder: Path, images: int) -> Callable[[], Any]:
    """Return Detectron2's inference_on_dataset on the same images, with its loader and its SemSegEvaluator.

    TEST.AUG is that of the original Mask2Former.
    """
    if cfg.TEST.AUG.ENABLED:
        model = mask2former_on_several_sizes(_their_config(cfg), model)
    data, transforms, evaluation = (_detectron2(name) for name in ("data", "data.transforms", "evaluation"))
    name = cfg.DATASETS.TEST[0]
    first = f"{name}_first_{images}"
    records = load_records(name)[:images]
    if first not in data.DatasetCatalog:
        data.DatasetCatalog.register(first, lambda: records)
        data.MetadataCatalog.get(first).set(**{"ignore_label": 255, **_metadata(name)})
    resize = transforms.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    mapper = data.DatasetMapper(False, augmentations=[resize], image_format=cfg.INPUT.FORMAT)
    evaluator = evaluation.SemSegEvaluator(first, distributed=False, output_dir=str(folder))
    evaluator._compute_boundary_iou = False  # a figure that ours gives only where it is asked for
    folder.mkdir(parents=True, exist_ok=True)

    def evaluate() -> Any:
        loader = data.build_detection_test_loader(
            records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
        )
        return evaluation.inference_on_dataset(model, loader, evaluator)["sem_seg"]["mIoU"]

    return evaluate


def _metadata(name: str) -> dict[str, Any]:
    known = MetadataCatalog.get(name)
    return {key: known.get(key) for key in ("stuff_classes", "evaluator_type") if known.get(key)}


def _their_colours() -> Any:
    """Return Detectron2's colours, or ours where OpenCV, which they need, is not installed."""
    try:
        return _detectron2("projects.point_rend").ColorAugSSDTransform
    except ModuleNotFoundError:
        return ColorAugSSDTransform


def _their_config(cfg: CfgNode) -> Any:
    theirs = _detectron2("config").get_cfg()
    _detectron2("projects.deeplab").add_deeplab_config(theirs)
    if is_mask2former(cfg):
        import_mask2former().add_maskformer2_config(theirs)
    _copy(cfg, theirs)
    return theirs


def _copy(source: CfgNode, target: Any) -> None:
    for key, value in source.items():
        if isinstance(value, CfgNode):
            if key in target:
                _copy(value, target[key])
        elif key in target:
            target[key] = value


def _detectron2(module: str) -> Any:
    return importlib.import_module(f"detectron2.{module}")
