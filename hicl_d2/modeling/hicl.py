"""The meta-architecture ``HiCL``: any registered meta-architecture with a contrast branch attached to it.

The branch is attached, not wrapped around: the model keeps its class (a subclass of it, to be exact), its attributes and
its checkpoint keys, and gains one child, ``hicl``. A checkpoint of the plain model loads into it, and its own checkpoint
loads into the plain model. At inference nothing of the branch runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicl_d2.command.errors import InputError
from hicl_d2.contrast import ramp
from hicl_d2.contrast.build import build_contrast
from hicl_d2.contrast.frame import Contrast, zero_with_graph
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.modeling import META_ARCH_REGISTRY
from hicl_d2.d2.utils import comm, get_event_storage
from hicl_d2.modeling.features import Tap, add_tap, armed, feature_channels
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
    "START_ITER",
    "WARMUP_ITERS",
    "LOG_PERIOD",
}


@dataclass(frozen=True)
class Schedule:
    """When the branch works and how much its loss weighs."""

    weight: float
    start_iter: int
    warmup_iters: int
    log_period: int
    seed: int


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
    settings = cfg.MODEL.HICL
    taps = {
        "feature": add_tap(model, settings.FEATURE, settings.FEATURE_SIDE, "MODEL.HICL.FEATURE"),
        "image": add_tap(model, settings.IMAGE, "input", "MODEL.HICL.IMAGE"),
    }
    if settings.LOGITS:
        taps["logits"] = add_tap(model, settings.LOGITS, "output", "MODEL.HICL.LOGITS")
    channels = feature_channels(model, taps["feature"], blank_size(cfg))
    seed = max(cfg.SEED, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.hicl = _build(cfg, channels)
    model._hicl_taps = taps  # type: ignore[assignment]
    model._hicl_schedule = Schedule(  # type: ignore[assignment]
        settings.WEIGHT, settings.START_ITER, settings.WARMUP_ITERS, settings.LOG_PERIOD, seed
    )
    model.__class__ = _with_branch(type(model))
    return model


def _build(cfg: CfgNode, channels: int) -> Contrast:
    head = cfg.MODEL.SEM_SEG_HEAD
    settings = {key.lower(): value for key, value in cfg.MODEL.HICL.items() if key not in PLACEMENT_KEYS}
    try:
        return build_contrast(
            cfg.MODEL.HICL.CONTRAST, channels, head.NUM_CLASSES, ignore_value=head.IGNORE_VALUE, **settings
        )
    except ValueError as error:
        raise InputError(f"MODEL.HICL: {error}") from None


class ModelWithBranch(nn.Module):
    """What a model's class gains when the branch is attached; stands before the model's own class."""

    hicl: Contrast
    _hicl_taps: dict[str, Tap]
    _hicl_schedule: Schedule

    @torch.compiler.disable(recursive=False)
    def forward(self, batched_inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        """Run the model; in training, add ``loss_hicl`` to its losses.

        Each input holds "image" (3, H, W) and, in training, "sem_seg" (H, W), class ids with the head's ignore value.
        """
        if not self.training:
            return super().forward(batched_inputs, *args, **kwargs)
        schedule, iteration = self._hicl_schedule, _iteration()
        weight = schedule.weight
        if iteration is not None:
            weight *= ramp(iteration, schedule.warmup_iters, schedule.start_iter)
        # Before the model has work on the device, which a copy from the host would wait for.
        device = next(self.hicl.parameters()).device
        labels = [upload_labels(label, device) for label in _labels(batched_inputs)] if weight else []
        with armed(self._hicl_taps):
            losses = super().forward(batched_inputs, *args, **kwargs)
        return {**losses, "loss_hicl": self._branch_loss(labels, weight, iteration)}

    def _branch_loss(self, labels: list[Tensor], weight: float, iteration: int | None) -> Tensor:
        seen = {role: tap.take() for role, tap in self._hicl_taps.items()}
        features = self._hicl_taps["feature"].check(seen["feature"])
        if weight == 0:
            return zero_with_graph(self.hicl) + features.flatten()[:0].sum()
        schedule = self._hicl_schedule
        seed = (schedule.seed * 1_000_003 + (iteration or 0)) * 4096 + comm.get_rank()
        is_logged = iteration is not None and (iteration + 1) % schedule.log_period == 0
        logits = self._logits(seen.get("logits"))
        batch = _pad_to(labels, seen["image"], self.hicl.ignore_value)
        loss, diagnostics = self.hicl(features, batch, logits, seed=seed, describe=is_logged)
        if is_logged:
            _log(diagnostics)
        return weight * loss

    def _logits(self, seen: Any) -> Tensor | None:
        """Return class logits (B, K, h, w), or None if none are read.

        Of predictions of queries logits are made, without a second forward.
        """
        return None if seen is None else self._hicl_taps["logits"].check(class_logits(seen))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by the model's own class: the combined one is made when it is needed."""
        return _restore, (type(self).__mro__[2],), self.__dict__


# One class per base, so that models of one base are of one class.
_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _with_branch(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _classes:
        _classes[base] = type(f"HiCL{base.__name__}", (ModelWithBranch, base), {"__doc__": base.__doc__})
    return _classes[base]


def _restore(base: type[nn.Module]) -> nn.Module:
    cls = _with_branch(base)
    return cls.__new__(cls)


def _iteration() -> int | None:
    """Return the trainer's iteration, or None where no trainer is at work (the branch is then fully on)."""
    try:
        return get_event_storage().iter
    except AssertionError:
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


def _pad_to(labels: list[Tensor], images: Tensor, ignore_value: int) -> Tensor:
    """Return the labels (B, H, W) of the padded image batch (B, 3, H, W), padding ignored."""
    height, width = images.shape[-2:]
    return torch.stack([_pad(label, height, width, ignore_value) for label in labels])


def _pad(label: Tensor, height: int, width: int, ignore_value: int) -> Tensor:
    if label.shape == (height, width):
        return label
    value = (
        ignore_value if ignore_value <= torch.iinfo(label.dtype).max else -1
    )  # in int16 neither is a class
    return F.pad(label, (0, width - label.shape[1], 0, height - label.shape[0]), value=value)
