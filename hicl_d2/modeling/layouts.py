"""Where files of weights keep their tensors: under which key, and with which wrappers' names before the model's own.

DistributedDataParallel writes ``module.``, torch.compile ``_orig_mod.``, Lightning ``state_dict`` with the attribute's name
before each; timm, torchvision and others keep ``model`` beside an average of it.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from hicl_d2.command.errors import InputError, listing
from hicl_d2.weights import check_names_and_tensors

# Keys of weights as they were trained, the usual one first; an average beside them is taken only where it is asked for.
HOLDERS = ("model", "state_dict", "model_state_dict", "model_state", "network", "net", "weights", "params")
# What wrappers put before all names; the model's own attribute in Lightning's is any of the later ones.
WRAPPERS = ("module", "model", "net", "network")
COMPILED = "_orig_mod"


def find_weights(content: Any, file: str, key: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return the tensors or arrays by name in the ``content`` of ``file``, and other keys that hold as many.

    With ``key`` they are those under this key ("ema.state_dict": in a section), or those whose names begin so. Raises
    InputError if there are none, if they lie under several keys of which none is a usual one, and for anything but
    tensors among them.
    """
    if not isinstance(content, dict):
        check_names_and_tensors(file, content)
    holders = dict(_holders(content))
    if key:
        below = holders.get(key) or _part_of(find_weights(content, file)[0], key)
        if not below:
            there = f"there are {listing(holders)}" if holders else "no key of it holds weights"
            raise InputError(f"weights {file}: no tensors by their names are under {key}; {there}")
        return below, []
    usual = [name for name in HOLDERS if name in holders]
    if "model" in content and not any(name.partition(".")[0] == "model" for name in holders):
        usual, holders = [], {}  # whatever it is, it is what the file calls its model
    largest = max(map(len, holders.values()), default=0)
    if not usual and sum(_is_named_tensor(*item) for item in content.items()) >= largest:
        weights = content.get("model", content)
        check_names_and_tensors(file, weights)
        return weights, []
    if not usual and len(holders) > 1:
        raise InputError(
            f"weights {file} hold tensors under {listing(holders)}; name one of them: {file}?key={min(holders)}"
        )
    chosen = usual[0] if usual else next(iter(holders))
    others = [name for name in holders if name != chosen and 2 * len(holders[name]) > len(holders[chosen])]
    return holders[chosen], others


def _holders(content: dict[Any, Any], above: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the keys of ``content`` and of its sections whose values are tensors or arrays by name, and those."""
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, dict):
            continue
        if value and all(_is_named_tensor(*item) for item in value.items()):
            yield f"{above}{name}", value
        elif not above:
            yield from _holders(value, f"{name}.")


def _is_named_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor | np.ndarray | np.generic)


def without_wrappers(weights: dict[str, Any], wanted: Collection[str], file: str) -> dict[str, Any]:
    """Return ``weights`` without what wrappers put before the names of a model, whose tensors are ``wanted``.

    The names of a first part are taken without it where more of the model is found so. Raises InputError where several
    parts (a student and a teacher) are as good.
    """
    if all(name in wanted for name in weights):
        return weights
    names = {_without_compiled(name): name for name in weights}
    if len(names) < len(weights):
        names = {name: name for name in weights}
    while (first := _wrapper(names, wanted, file)) is not None:
        rest = {name: old for name, old in names.items() if not name.startswith(f"{first}.")}
        names = {**rest, **_below(names, first)}
    if all(name == old for name, old in names.items()):
        return weights
    return {name: weights[old] for name, old in names.items()}


def _part_of(weights: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return what lies below ``key`` in the names of ``weights``, without it."""
    return {name: weights[old] for name, old in _below({name: name for name in weights}, key).items()}


def _wrapper(names: dict[str, str], wanted: Collection[str], file: str) -> str | None:
    """Return the first part that is no part of the model's own names, None if there is none."""
    firsts = list(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))
    found = sum(name in wanted for name in names)
    scores = {first: sum(name in wanted for name in _below(names, first)) for first in firsts}
    best = max(scores.values(), default=0)
    if best > found:
        good = [first for first in firsts if scores[first] == best]
        usual = [first for first in WRAPPERS if first in good]
        if len(good) > 1 and not usual:
            raise InputError(
                f"weights {file} hold the model under {listing(good)}; name one of them: {file}?key={good[0]}"
            )
        return usual[0] if usual else good[0]
    # Of names that are yet to be translated none is found: one wrapper around all of them is none of theirs.
    is_around_all = len(firsts) == 1 and all("." in name for name in names)
    return firsts[0] if not found and is_around_all and firsts[0] in WRAPPERS else None


def _below(names: dict[str, str], first: str) -> dict[str, str]:
    start = f"{first}."
    return {name.removeprefix(start): old for name, old in names.items() if name.startswith(start)}


def _without_compiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != COMPILED)
