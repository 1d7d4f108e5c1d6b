"""Checkpoints that are written atomically, and weights that are checked against the model.

File names and contents are Detectron2's: ``model_0000099.pth``, ``model_final.pth``, ``last_checkpoint``.
``model_best.pth`` (the weights alone) and ``best.json`` are added; ``last_checkpoint`` never names the best one. A run
resumes from the newest undamaged checkpoint, and names the damaged ones that it passes over.
"""

import logging
import os
import pickle
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import torch
from torch import nn

from hicl_d2.command.address import check_address, checksum, is_address, not_fetched
from hicl_d2.command.cli import explain
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError, listing, one_line
from hicl_d2.command.files import atomic_open, check_regular, read_json, write_json
from hicl_d2.d2.checkpoint import DetectionCheckpointer
from hicl_d2.d2.projects import original
from hicl_d2.d2.utils import PathManager, comm
from hicl_d2.modeling.efficientnet_lite.weights import PREFIX, package_file
from hicl_d2.modeling.layouts import find_weights, without_wrappers
from hicl_d2.modeling.memory_format import contiguous
from hicl_d2.modeling.weights import read_foreign_file, with_known_names
from hicl_d2.weights import (
    DamagedError,
    check_content,
    check_names_and_tensors,
    check_plain,
    check_whole,
    read_pickle,
    read_torch,
    to_tensors,
)

logger = logging.getLogger(__name__)

BEST = "model_best"
FINAL = "model_final"  # as Detectron2 calls the checkpoint of the last iteration
BEST_RECORD = "best.json"
LAST = "last_checkpoint"
NUMBERED = re.compile(r"model_(\d+)\.pth")
# Before training starts from a file, at least this share of its tensors (or of the model's) must fit ...
ENOUGH = 0.5
# ... and no more than these, and this share of those that fit, may have another shape: another number of classes
# changes a few tensors, another depth many.
RESHAPED, RESHAPED_SHARE = 4, 0.1
# What torch and pickle raise for a file that is damaged or holds something else.
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError)
# What a trainer, an optimizer or a schedule raises for a state that lacks something or is another one's.
STATE_ERRORS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError)
# What ends a path in MODEL.WEIGHTS to name the key of the file that holds the weights: ?key=model_ema.
KEY = re.compile(r"[?&]key=([^&#]+)")
# Addresses of Detectron2's older models, by a name that it looks up.
CATALOG = "catalog://"
# Child of a model that exists in training alone: a plain checkpoint has none of it.
BRANCH = "hicl."
# Running counts of norm layers: older files lack them and nothing depends on them.
COUNTER = "num_batches_tracked"


class _AtomicFiles:
    """Detectron2's path manager, except that local files are written atomically."""

    def open(self, path: str, mode: str = "r", **options: Any) -> AbstractContextManager[IO[Any]]:
        if "w" in mode and "://" not in path:
            return atomic_open(path, mode)
        return PathManager.open(path, mode, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(PathManager, name)


@dataclass(frozen=True)
class Fit:
    """How the tensors of a file match those of a model, without those of the branch and the norms' counters."""

    in_model: int
    in_file: int
    missing: list[str]
    left_over: list[str]
    other_shape: list[str]

    @property
    def fitting(self) -> int:
        # The smaller count of both sides: frozen norms fill in what a file lacks, and some loaders drop what is left over.
        of_file = self.in_file - len(self.left_over) - len(self.other_shape)
        return max(0, min(self.in_model - len(self.missing), of_file))

    @property
    def absent(self) -> int:
        return self.in_model - self.fitting - len(self.other_shape)

    @property
    def is_whole(self) -> bool:
        """Whether every tensor of the model was in the file."""
        return self.fitting == self.in_model

    @property
    def is_enough(self) -> bool:
        """Whether enough matches for the file to be of this model, of a part of it (a backbone), or to contain one."""
        share = self.fitting / max(1, min(self.in_model, self.in_file))
        return share >= ENOUGH and len(self.other_shape) <= RESHAPED + RESHAPED_SHARE * self.fitting

    def __str__(self) -> str:
        return (
            f"{self.fitting} of the model's {self.in_model} tensors fit, {self.absent} are missing, "
            f"{len(self.other_shape)} have another shape, {len(self.left_over)} of the file are left over"
        )


class Checkpoints(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic files, a best checkpoint, and a check of what was loaded."""

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, keep: int = 0, **checkpointables: Any
    ) -> None:
        """``keep``: number of newest numbered checkpoints to keep; 0 keeps all."""
        super().__init__(model, save_dir, **checkpointables)
        self.path_manager = _AtomicFiles()
        self.keep = keep
        self.fit: Fit | None = None
        self._file = ""  # the file that was read last
        self._key = ""  # key of the file being loaded under which its weights are
        self.parts: set[str] = set()  # top-level keys of the file read last
        self.resumed: Path | None = None  # checkpoint that this process resumed from
        self.saved: int | None = (
            None  # iteration of the newest checkpoint that this process wrote or resumed from
        )

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` and its name to ``last_checkpoint``; if that fails, both stay as they were."""
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {"model": self.model, **self.checkpointables}
        content = {key: contiguous(part.state_dict()) for key, part in parts.items()} | kwargs
        file = os.path.join(self.save_dir, f"{name}.pth")
        logger.info(f"Saving checkpoint to {file}")
        try:
            with self.path_manager.open(file, "wb") as stream:
                torch.save(content, stream)
        except RuntimeError as error:  # torch's zip writer hides what the disk said
            raise _disk_error(error, Path(file)) from None
        self.tag_last_checkpoint(os.path.basename(file))
        self.saved = kwargs.get("iteration", self.saved)
        if self.keep and self.saved is not None:
            self._remove_old(self.saved)

    def _remove_old(self, iteration: int) -> None:
        """Keep the newest ``keep`` of the numbered checkpoints up to ``iteration``."""
        numbered = [
            (number, path) for number, path in numbered_checkpoints(self.save_dir) if number <= iteration
        ]
        for _, path in numbered[self.keep :]:
            path.unlink(missing_ok=True)

    def save_best(self, iteration: int, metrics: dict[str, float | None]) -> None:
        """Write the weights to ``model_best.pth`` and their metrics to ``best.json``."""
        if not self.save_to_disk:
            return
        folder = Path(self.save_dir)
        path = folder / f"{BEST}.pth"
        save_whole({"model": contiguous(self.model.state_dict()), "iteration": iteration}, path)
        write_json(
            folder / BEST_RECORD, {"checkpoint": path.name, "iteration": iteration, "metrics": metrics}
        )

    def best(self) -> dict[str, Any] | None:
        """Return the content of ``best.json``, None if there is none."""
        path = Path(self.save_dir) / BEST_RECORD
        return read_json(path) if path.exists() else None

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load ``path`` as Detectron2 does, after checking what would be downloaded and read.

        ``?key=NAME`` at its end names the key of the file that holds the weights, where there are several. Raises
        InputError for a URL that may not be downloaded and for a file that holds more than weights, and its subclass
        DamagedError for a file that cannot be read.
        """
        try:
            path, self._key = _split_key(os.path.expanduser(path or ""))
            return super().load(self._fetched(path) if path else path, checkpointables)
        except BaseException:
            self._parsed_url_during_load = None  # Detectron2 would refuse to load another file after this one
            raise
        finally:
            self._key = ""

    def _fetched(self, path: str) -> str:
        """Return the local file of a package's weights or of a URL, whose checksum is compared; any other ``path`` as it is."""
        if path.startswith(PREFIX):
            packaged, pinned = package_file(path)
            check_content(str(packaged), pinned, path, is_fetched=False)
            return str(packaged)
        check_address(path)
        catalog = original("checkpoint.catalog", "ModelCatalog") if path.startswith(CATALOG) else None
        if catalog is not None:
            try:
                path = catalog.get(path.removeprefix(CATALOG))
            except (KeyError, RuntimeError):
                raise InputError(f"weights {path}: Detectron2's catalog has no such model") from None
        if not is_address(path) or path.startswith(CATALOG):  # which Detectron2 alone knows
            return path
        expected = checksum(path)
        address, _, options = path.partition("#")[0].partition("?")
        try:
            file = self.path_manager.get_local_path(address)
        except (OSError, ValueError, AssertionError) as error:
            raise not_fetched(address, error) from None
        if expected is not None:
            check_content(file, expected, address)
        return f"{file}?{options}" if options else file

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._file = filename
        try:
            content = self._read(filename)
        except UNREADABLE as error:
            reason = one_line(error)[:160] or "it ends too early"
            raise DamagedError(
                f"weights {filename} cannot be read ({type(error).__name__}: {reason})"
            ) from None
        self.parts = set(content)
        return content

    def _read(self, filename: str) -> dict[str, Any]:
        """Return the checkpoint in ``filename``; weights of other projects are renamed so that they can be matched."""
        read_folder = getattr(self.model, "read_folder", None)
        if read_folder is not None and Path(filename).is_dir():  # a model of transformers knows its own names
            return {"model": read_folder(Path(filename))}
        foreign = read_foreign_file(filename)
        if self._key and (foreign is not None or filename.endswith(".pkl")):
            raise InputError(f"weights {filename} hold one model alone; leave out ?key={self._key}")
        if foreign is None:
            check_whole(filename)
            if filename.endswith(".pkl"):
                read_pickle(filename)  # Detectron2's own reader would run any code in it
            content = super()._load_file(filename)
            check_names_and_tensors(filename, content["model"])
            to_tensors(filename, content["model"])
            self._check_plain(filename, content["model"])
            content["model"] = without_wrappers(content["model"], self.model.state_dict().keys(), filename)
            foreign = with_known_names(content["model"])
            if foreign is None:
                return content
        self._check_plain(filename, foreign)
        return {"model": foreign, "matching_heuristics": True}

    def _check_plain(self, filename: str, weights: dict[str, Any]) -> None:
        state = self.model.state_dict()
        check_plain(filename, weights, {name for name, value in state.items() if value.is_floating_point()})

    def _torch_load(self, filename: str) -> Any:
        """Stand in for Detectron2's reader, which an environment variable can make run code and which knows one layout."""
        content = read_torch(filename)
        weights, others = find_weights(content, filename, self._key)
        if others:
            console.say(
                f"weights {filename}: beside those that are taken there are {listing(others)} (?key=...)"
            )
        if isinstance(content, dict) and content.get("model") is weights:
            return content
        return {"model": weights}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        in_file = sum(_counts(name) for name in checkpoint["model"])
        in_model = sum(_counts(name) for name in self.model.state_dict())
        incompatible = super()._load_model(checkpoint)
        missing, left_over, other_shape = incompatible
        self.fit = Fit(
            in_model,
            in_file,
            list(filter(_counts, missing)),
            list(filter(_counts, left_over)),
            [name for name, *_ in other_shape if _counts(name)],
        )
        self._check_finite()
        return incompatible

    def _check_finite(self) -> None:
        """Raise InputError for a NaN that was loaded, and for an infinity where no model has one."""
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, tensor in tensors.items():
            may_be_infinite = not isinstance(tensor, nn.Parameter) and "running_" not in name  # a mask, say
            wrong = tensor.isnan() if may_be_infinite else ~tensor.isfinite()
            if wrong.any():
                raise InputError(
                    f"weights {self._file}: {int(wrong.sum())} of the {tensor.numel()} values of {name} are NaN or infinite; "
                    "take an earlier checkpoint"
                )

    def load_weights(self, path: str, *, whole: bool) -> None:
        """Load the model alone from ``path`` (empty: nothing), and check that the file is of this model.

        With ``whole``, as for an evaluation, the file must have every tensor of the model; otherwise a part such as the
        backbone is enough. Raises InputError with the numbers of tensors missing, left over and of another shape.
        """
        path = os.path.expanduser(path)
        if path and Path(path).is_dir():  # a Hugging Face folder, which no checkpointer takes for a file
            self._load_model(self._load_file(path))
        else:
            self.load(path, checkpointables=[])
        if self.fit is None:
            return
        if not self.fit.is_enough or (whole and not self.fit.is_whole):
            raise InputError(
                f"weights {path} are of another model: {self.fit}; check MODEL.WEIGHTS and MODEL"
            )
        if not self.fit.is_whole:
            console.say(f"weights {path}: {self.fit}")
        logger.info(f"weights {path}: {self.fit}")

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to resume from, or a ``last_checkpoint`` that names one."""
        return named_last(self.save_dir) is not None or bool(resumable_checkpoints(self.save_dir))

    def resume(self) -> None:
        """Load the newest undamaged checkpoint with the whole state of training.

        A damaged one is named and the one before it taken. Raises InputError if none can be read, or if its tensors are
        not exactly the model's.
        """
        state = self._load_newest()
        if self.fit is None or not self.fit.is_whole or self.fit.left_over:
            raise InputError(
                f"checkpoint {self.resumed} is of another model: {self.fit}; it cannot be resumed with this config"
            )
        self.saved = state.get("iteration")
        if not isinstance(self.saved, int) or isinstance(self.saved, bool) or self.saved < 0:
            raise InputError(
                f"checkpoint {self.resumed} was made after the iteration {self.saved!r:.40}; expected a number"
            )

    def _load_newest(self) -> dict[str, Any]:
        # Every process uses the main one's list: file systems may show the others an older state.
        found: list[Path] = comm.all_gather(resumable_checkpoints(self.save_dir))[0]
        damaged: list[str] = []
        for path in found:
            try:
                state = self.load(str(path))
            except DamagedError as error:
                damaged.append(one_line(error))
                continue
            except STATE_ERRORS as error:
                if explain(error) is not None:
                    raise
                raise InputError(
                    f"checkpoint {path}: the state of its training cannot be taken over ({type(error).__name__}: "
                    f"{one_line(error)[:160]}); it is of another optimizer, or was not saved by a training"
                ) from None
            if not self.checkpointables.keys() <= self.parts:
                raise InputError(f"checkpoint {path} holds weights alone, without the state of a training")
            self.resumed = path
            if path.name != named_last(self.save_dir):
                damaged.append(
                    f"{LAST} names {named_last(self.save_dir)!r}: going on from {path.name} instead"
                )
            for line in damaged:
                console.say(line)
                logger.info(line)
            return state
        reason = damaged[0] if damaged else "there is none"
        raise InputError(f"no checkpoint in {self.save_dir} can be resumed: {reason}")


def numbered_checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """Return the checkpoints named after an iteration, as (iteration, path), the newest first."""
    found = ((NUMBERED.fullmatch(path.name), path) for path in Path(folder).glob("model_*.pth"))
    return sorted(((int(match[1]), path) for match, path in found if match and path.is_file()), reverse=True)


def named_last(folder: str | Path) -> str | None:
    """Return what ``last_checkpoint`` in ``folder`` says, None if there is no such file."""
    check_regular(Path(folder) / LAST)
    try:
        return (Path(folder) / LAST).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def resumable_checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints that a run in ``folder`` can resume from, in the order in which to try them.

    First the one that ``last_checkpoint`` names; then, in case it is damaged or lost, the numbered ones, the newest first.
    """
    folder = Path(folder)
    name = named_last(folder) or ""
    named = [folder / name] if name and name == Path(name).name and (folder / name).is_file() else []
    return named + [path for _, path in numbered_checkpoints(folder) if path not in named]


def _split_key(path: str) -> tuple[str, str]:
    """Return ``path`` without its ``key=``, and that key."""
    found = KEY.search(path)
    if found is None:
        return path, ""
    before, after = path[: found.start()], path[found.end() :]
    if found[0].startswith("?") and after.startswith("&"):
        after = f"?{after[1:]}"
    return before + after, unquote(found[1])


def _counts(name: str) -> bool:
    return not (name.startswith(BRANCH) or name.endswith(COUNTER))


def save_whole(content: Any, path: Path) -> None:
    """Write ``content`` as torch does, whole or not at all; an error of the disk is an OSError that names ``path``."""
    try:
        with atomic_open(path, "wb") as stream:
            torch.save(content, stream)
    except RuntimeError as error:  # torch's zip writer hides what the disk said
        raise _disk_error(error, path) from None


def _disk_error(error: RuntimeError, path: Path) -> Exception:
    """Return the system's error behind torch's, or torch's where there is none."""
    cause = error.__context__
    if isinstance(cause, OSError) and cause.errno is not None:
        return OSError(cause.errno, cause.strerror, str(path))
    return error
