"""The meta-architecture ``HiCL``: any registered meta-architecture with a contrast branch attached to it.

The branch is attached, not wrapped around (`hicl_d2.contrast.attach`): the model keeps its class, its attributes and its
checkpoint keys, and gains one child, ``hicl``. Hooks around the model's forward add its loss to the model's in training,
so the model must be called as a module, not by its ``forward``. A checkpoint of the plain model loads into it, and its
own checkpoint loads into the plain model. At inference nothing of the branch runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicl_d2.command.errors import InputError
from hicl_d2.contrast import Contrast, attach, build_contrast
from hicl_d2.contrast.attach import check_settings
from hicl_d2.contrast.frame import uncompiled
from hicl_d2.contrast.taps import SIDES, find_module
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.modeling import META_ARCH_REGISTRY
from hicl_d2.d2.utils import get_event_storage
from hicl_d2.modeling.features import blank_batch
from hicl_d2.modeling.predictions import class_logits
from hicl_d2.modeling.settings import blank_size

# Keys of MODEL.HICL that say where and when the branch works; all others are settings of the contrast, in lower case.
PLACEMENT_KEYS = {
    "ENABLED",
    "BASE",
    "FEATURE",
    "FEATURE_SIDE",
    "LOGITS",
    "IMAGE",
    "CONTRAST",
    "WEIGHT",
    "WEIGHT_OF",
    "START_ITER",
    "WARMUP_ITERS",
    "LOG_PERIOD",
}


@META_ARCH_REGISTRY.register()
def HiCL(cfg: CfgNode) -> nn.Module:  # noqa: N802 - the registry takes the function's name
    """Build MODEL.HICL.BASE and attach the branch; with MODEL.HICL.ENABLED off, build the base and nothing else.

    The base is built first and the branch with a random state of its own, so that the base's parameters, and everything
    random after it, are those of the plain model under the same seed.
    """
    settings = cfg.MODEL.HICL
    if settings.BASE == "HiCL":
        raise InputError('MODEL.HICL.BASE must name the model to attach to, not "HiCL" itself')
    model = META_ARCH_REGISTRY.get(settings.BASE)(cfg)
    return attach_branch(model, cfg) if settings.ENABLED else model


def attach_branch(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Attach the branch of ``cfg.MODEL.HICL`` to ``model``, in place, and return it.

    Do this before the model is moved, compiled or given to DistributedDataParallel. Raises InputError for a module name
    that ``model`` does not have and for settings that the contrast refuses.
    """
    hicl, head = cfg.MODEL.HICL, cfg.MODEL.SEM_SEG_HEAD
    for key in ("FEATURE", "IMAGE", "LOGITS"):
        _check_module(model, key, hicl[key])
    _check_side(cfg)
    try:
        return with_hicl(
            model,
            feature=hicl.FEATURE,
            side=hicl.FEATURE_SIDE,
            logits=hicl.LOGITS or None,
            image=hicl.IMAGE,
            num_classes=head.NUM_CLASSES,
            example_size=blank_size(cfg),
            contrast=hicl.CONTRAST,
            weight=hicl.WEIGHT,
            weight_of=hicl.WEIGHT_OF,
            start_iter=hicl.START_ITER,
            warmup_iters=hicl.WARMUP_ITERS,
            log_period=hicl.LOG_PERIOD,
            seed=max(cfg.SEED, 0),
            **_contrast_settings(cfg),
        )
    except ValueError as error:
        raise InputError(f"MODEL.HICL: {error}") from None


def check_branch(cfg: CfgNode) -> None:
    """Raise InputError for settings of MODEL.HICL that no contrast takes; a module's name is checked once there is a model."""
    hicl = cfg.MODEL.HICL
    if cfg.MODEL.META_ARCHITECTURE != "HiCL" or not hicl.ENABLED:
        return
    _check_side(cfg)
    settings = _contrast_settings(cfg)
    if settings["windows"] == "auto":
        del settings["windows"]
    try:
        check_settings(hicl.WEIGHT, hicl.WEIGHT_OF, hicl.START_ITER, hicl.WARMUP_ITERS, max(cfg.SEED, 0))
        build_contrast(hicl.CONTRAST, 1, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, **settings)
    except ValueError as error:
        raise InputError(f"MODEL.HICL: {error}") from None


def _check_side(cfg: CfgNode) -> None:
    side = cfg.MODEL.HICL.FEATURE_SIDE
    if side not in SIDES:
        raise InputError(f"MODEL.HICL.FEATURE_SIDE must be input or output, not {side!r}")


def _contrast_settings(cfg: CfgNode) -> dict[str, Any]:
    """Return the keywords of the contrast."""
    own = {key.lower(): value for key, value in cfg.MODEL.HICL.items() if key not in PLACEMENT_KEYS}
    return {"ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, **own}


def with_hicl(
    model: nn.Module,
    *,
    feature: str,
    num_classes: int,
    side: str = "input",
    logits: str | None = None,
    image: str = "backbone",
    in_channels: int | None = None,
    example_size: tuple[int, int] = (128, 128),
    contrast: str = "hicl",
    weight: float = 0.1,
    weight_of: str = "loss",
    start_iter: int = 0,
    warmup_iters: int = 1000,
    log_period: int = 20,
    seed: int = 0,
    **settings: Any,
) -> nn.Module:
    """Attach a contrast to a meta-architecture, in place, and return it; in training its losses gain ``loss_hicl``.

    For models that no yacs config describes, as Detectron2's LazyConfig: ``model = L(with_hicl)(model=model, feature=...,
    num_classes=..., windows=[1, 2, 4, 8])``. The model takes Detectron2's batches: entries with "image" (3, H, W) and, in
    training, "sem_seg" (H, W).

    Args:
        model: the meta-architecture.
        feature: name of the module whose ``side``, "input" or "output", is the per-pixel feature map (B, C, h, w).
        num_classes: K; labels are 0 to K - 1.
        side: see ``feature``.
        logits: name of the module whose output is the class logits, or predictions of queries; None does without.
        image: name of the module whose input is the padded batch of images (B, 3, H, W).
        in_channels: C, where one forward of a blank image of ``example_size`` (height, width) is not to find it.
        example_size: see ``in_channels``.
        contrast: name of the contrast (`hicl_d2.contrast.CONTRASTS`).
        weight: of the loss, after the ramp.
        weight_of: what the weight is of, as in `hicl_d2.contrast.attach`.
        start_iter: iteration at which the contrast starts.
        warmup_iters: iterations over which its weight then rises linearly from 0.
        log_period: iterations between two entries of its diagnostics in the event storage.
        seed: of its parameters and of what it draws.
        settings: keywords of the contrast, such as ``windows`` and ``ignore_value``.

    Raises ValueError for a module that does not exist and for settings that the contrast refuses.
    """
    branch = attach(
        model,
        feature=feature,
        side=side,
        logits=logits,
        image=image,
        num_classes=num_classes,
        in_channels=in_channels,
        example=(blank_batch(example_size),),
        contrast=contrast,
        weight=weight,
        weight_of=weight_of,
        start_iter=start_iter,
        warmup_iters=warmup_iters,
        seed=seed,
        **settings,
    )
    hooks = LossHooks(log_period)
    branch.attachment.handles += [
        model.register_forward_pre_hook(hooks.before, with_kwargs=True),
        model.register_forward_hook(hooks.after),
    ]
    return model


def _check_module(model: nn.Module, key: str, name: str) -> None:
    """Raise InputError, naming the key, for a module that ``model`` does not have; LOGITS may be empty."""
    if key == "LOGITS" and not name:
        return
    try:
        find_module(model, name)
    except ValueError as error:
        raise InputError(f"MODEL.HICL.{key}: {error}") from None


class LossHooks:
    """Add ``loss_hicl`` to the losses that the model returns in training: two hooks around its forward.

    The model is called with a list whose entries hold "image" (3, H, W) and, in training, "sem_seg" (H, W), class ids
    with the head's ignore value. Step and weight are those of the trainer's iteration; where no trainer is at work the
    branch is fully on.
    """

    def __init__(self, log_period: int) -> None:
        """``log_period``: iterations between two entries of the diagnostics in the event storage."""
        self.log_period = log_period
        self.step: tuple[list[Tensor], bool, int | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "step": None}

    @uncompiled
    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Upload the labels before the model has work on the device, which a copy from the host would wait for."""
        if not model.training:
            return
        branch = _branch(model)
        iteration = _iteration()
        is_on = branch.attachment.weight_at(iteration) != 0
        device = next(branch.parameters()).device
        inputs = next(iter((*args, *kwargs.values())))
        labels = [upload_labels(label, device) for label in _labels(inputs)] if is_on else []
        self.step = labels, is_on, iteration

    @uncompiled
    def after(self, model: nn.Module, args: tuple[Any, ...], losses: Any) -> Any:
        """Return the losses with the branch's among them, and log its diagnostics when it is their turn."""
        if not model.training or self.step is None:
            return losses
        (labels, is_on, iteration), self.step = self.step, None
        branch = _branch(model)
        attachment = branch.attachment
        with _named(RuntimeError):
            seen = attachment.take()
            found = branch_logits(model, seen.logits) if is_on else None
        is_logged = iteration is not None and (iteration + 1) % self.log_period == 0
        with _named(ValueError):
            padded = _pad_to(labels, seen.images, branch.ignore_value) if is_on else None
            loss = attachment.compute(branch, seen, padded, found, iteration, describe=is_logged)
        if is_logged and branch.diagnostics:
            _log(branch.diagnostics)
        return {**losses, "loss_hicl": loss}


class BranchError(InputError, RuntimeError, ValueError):
    """Raised where the modules that MODEL.HICL names turn out not to pass what the branch reads."""


@contextmanager
def _named(*kinds: type[Exception]) -> Iterator[None]:
    """Raise BranchError in the place of an error of exactly these ``kinds``."""
    try:
        yield
    except kinds as error:
        if type(error) not in kinds:
            raise
        raise BranchError(f"MODEL.HICL: {error}") from None


def _branch(model: nn.Module) -> Contrast:
    return cast(Contrast, model.hicl)


def branch_logits(model: nn.Module, found: Any) -> Tensor | None:
    """Return class logits (B, K, h, w) of what the module that LOGITS names gave, None if none is named.

    Of predictions of queries logits are made, without a second forward.
    """
    return None if found is None else _branch(model).attachment.taps["logits"].as_map(class_logits(found))


def _iteration() -> int | None:
    """Return the trainer's iteration, or None where no trainer is at work (the branch is then fully on)."""
    try:
        return get_event_storage().iter
    except (AssertionError, IndexError):  # the second is Detectron2's under python -O
        return None


def _log(diagnostics: dict[str, Tensor]) -> None:
    """Put the diagnostics into the event storage, with one transfer from the device for all of them."""
    values = torch.stack([value.detach().float() for value in diagnostics.values()]).tolist()
    get_event_storage().put_scalars(smoothing_hint=False, **dict(zip(diagnostics, values, strict=True)))


def _labels(batched_inputs: list[dict[str, Any]]) -> Iterator[Tensor]:
    for entry in batched_inputs:
        if "sem_seg" not in entry:
            name = entry.get("file_name", "an input")
            raise InputError(f"{name} has no semantic labels (sem_seg), which Hi-CL needs in training")
        yield entry["sem_seg"]


def upload_labels(labels: Tensor, device: torch.device) -> Tensor:
    """Bring labels (H, W) to ``device``; on the way there as int16, a quarter of what Detectron2's mappers give.

    Values from 32,768 to 65,535, the most that a label file holds, turn negative, and so stay outside of all classes.
    """
    return labels if labels.device == device else labels.to(torch.int16).to(device, non_blocking=True)


def _pad_to(labels: list[Tensor], images: Any, ignore_value: int) -> Tensor:
    """Return the labels (B, H, W) of the padded image batch (B, 3, H, W), padding ignored.

    Raises ValueError where what the module IMAGE takes is no batch that these labels could be of.
    """
    is_batch = isinstance(images, Tensor) and images.dim() == 4 and len(images) == len(labels)
    height, width = images.shape[-2:] if is_batch else (0, 0)
    if any(label.shape[0] > height or label.shape[1] > width for label in labels):
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"the module that IMAGE names takes {found}, which is not the batch of images: there are {len(labels)} label "
            f"maps, the first of {labels[0].shape[0]} x {labels[0].shape[1]}"
        )
    return torch.stack([_pad(label, height, width, ignore_value) for label in labels])


def _pad(label: Tensor, height: int, width: int, ignore_value: int) -> Tensor:
    if label.shape == (height, width):
        return label
    value = (
        ignore_value if ignore_value <= torch.iinfo(label.dtype).max else -1
    )  # in int16 neither is a class
    return F.pad(label, (0, width - label.shape[1], 0, height - label.shape[0]), value=value)
