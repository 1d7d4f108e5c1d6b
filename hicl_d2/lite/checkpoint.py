"""Checkpoints: fvcore's files and names, plus Detectron2's converted weights.

Files are read by :mod:`hicl_d2.weights`, which runs no code of theirs.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn

from hicl_d2.command.address import not_fetched
from hicl_d2.command.errors import InputError
from hicl_d2.lite import needs_detectron2
from hicl_d2.lite.utils import comm
from hicl_d2.lite.utils.file_io import PathManager
from hicl_d2.weights import check_names_and_tensors, read_pickle, read_torch, to_tensors

__all__ = ["DetectionCheckpointer"]

logger = logging.getLogger(__name__)


class DetectionCheckpointer(Checkpointer):
    """Save and resume a run, and load weights from ``.pth`` and Detectron2's ``.pkl`` files.

    Raises InputError for a weights file that is missing, damaged, or asks for more than weights.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """Save on the main process alone unless ``save_to_disk`` says otherwise."""
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._match_by_suffix = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` and point ``last_checkpoint`` to it; ``kwargs`` are saved beside the state.

        NumPy's numbers are saved as Python's: torch reads no others back without running code.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **_without_numpy_numbers({**state, **kwargs})}
        file = Path(self.save_dir) / f"{name}.pth"
        assert file.name == f"{name}.pth", f"the name of a checkpoint holds no folder: {name}"
        self.logger.info("Saving checkpoint to %s", file)
        with self.path_manager.open(str(file), "wb") as stream:
            torch.save(content, stream)
        self.tag_last_checkpoint(file.name)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load ``path`` (a file or URL, empty for none) and return what was saved beside the state.

        With ``?matching_heuristics=True`` at its end, the keys of a ``.pth`` are matched by suffix, as those of
        converted weights are.
        """
        if not path:
            return super().load(path, checkpointables)
        url = urlparse(str(path))
        queries = parse_qs(url.query)
        self._match_by_suffix = queries.pop("matching_heuristics", ["False"]) == ["True"]
        if queries:
            unknown = ", ".join(queries)
            raise InputError(
                f"weights {path}: unknown option {unknown}; the one known is matching_heuristics=True"
            )
        return super().load(self._local(url._replace(query="").geturl()), checkpointables)

    def _local(self, path: str) -> str:
        """Return the local file of ``path``, fetching it where it is a URL."""
        if path.startswith("catalog://"):
            raise InputError(needs_detectron2(f"weights {path}"))
        try:
            local = self.path_manager.get_local_path(path)
        except (OSError, ValueError, AssertionError) as error:
            raise not_fetched(path, error) from None
        if not Path(local).is_file():
            raise InputError(f"weights {path} do not exist; check MODEL.WEIGHTS or the last_checkpoint file")
        return local

    def _load_file(self, file: str) -> dict[str, Any]:
        if file.endswith(".pyth"):
            raise InputError(needs_detectron2(f"weights {file} (of pycls)"))
        is_converted = file.endswith(".pkl")
        content = read_pickle(file) if is_converted else self._torch_load(file)
        if is_converted and isinstance(content, dict) and not {"model", "__author__"} <= content.keys():
            raise InputError(needs_detectron2(f"weights {file} (in the format of Caffe2)"))
        checkpoint = content if isinstance(content, dict) and "model" in content else {"model": content}
        check_names_and_tensors(file, checkpoint["model"])
        to_tensors(file, checkpoint["model"])
        if self._match_by_suffix:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _torch_load(self, f: str) -> Any:
        return read_torch(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = match_by_suffix(self.model.state_dict(), checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        own_buffers = dict(self.model.named_buffers(recurse=False))
        for name in ("pixel_mean", "pixel_std"):  # the config gives them; some files hold them, some do not
            if name in own_buffers and name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        return incompatible


def match_by_suffix(model: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename ``weights`` to the names of ``model``, each of which takes the weight that is its longest suffix.

    Suffixes begin after a dot: ``backbone.res2.0.conv1.weight`` takes ``res2.0.conv1.weight`` before
    ``conv1.weight``, and not ``nv1.weight``. Weights of another shape are not renamed, with a warning; those
    that match nothing keep their names. Raises InputError if one of the weights matches two names.
    """
    taken: dict[str, str] = {}
    matched: dict[str, Tensor] = {}
    for name in sorted(model):
        source = next((end for end in _ends(name) if end in weights), None)
        if source is None:
            continue
        if weights[source].shape != model[name].shape:
            logger.warning(
                "%s has shape %s in the weights and %s as %s in the model; it is not loaded",
                source,
                tuple(weights[source].shape),
                tuple(model[name].shape),
                name,
            )
            continue
        if source in taken:
            raise InputError(f"the weights' {source} fits both {taken[source]} and {name} of the model")
        taken[source] = name
        matched[name] = weights[source]
    if taken:
        logger.info("%d of the model's %d tensors were found in the weights by name", len(taken), len(model))
    else:
        logger.warning("No weights in checkpoint matched with model.")
    return {**matched, **{name: value for name, value in weights.items() if name not in taken}}


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def _without_numpy_numbers(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):  # a module's state without such numbers stays the object that it is
        plain = {key: _without_numpy_numbers(item) for key, item in value.items()}
        return plain if any(plain[key] is not item for key, item in value.items()) else value
    if type(value) in (list, tuple):
        return type(value)(_without_numpy_numbers(item) for item in value)
    return value
