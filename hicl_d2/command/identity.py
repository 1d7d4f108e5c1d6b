"""What makes a run the run that it is, in one function for the run itself and for the harness that starts it.

The identity is of everything that enters the result: the whole resolved config, the defaults of the code in it; the content of
MODEL.WEIGHTS; the data's fingerprint; the code behind IMPORTS. Keys that only say where a run happens are left out.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from hicl_d2.command import imports
from hicl_d2.command.address import is_address, local_file, masked
from hicl_d2.command.checksums import content_checksum
from hicl_d2.command.layout import PLACE_KEYS

WEIGHTS_KEY, SEED_KEY = "MODEL.WEIGHTS", "SEED"
# Keys that enter by what they stand for, or that cells of one kind differ in.
APART = (*PLACE_KEYS, WEIGHTS_KEY, SEED_KEY, imports.KEY)
# How weights begin that are not there, and whose content is not known.
MISSING = "missing:"
# Digits of a part's digest, and of the whole.
PART_DIGITS, DIGITS = 16, 12


@dataclass(frozen=True)
class Identity:
    """The parts of an identity; equal parts are one run.

    ``config`` is the digest of the config's values, ``weights`` and ``data`` say which content they have, ``imports`` holds a
    digest for each module.
    """

    config: str
    seed: int
    weights: str = ""
    data: str = ""
    imports: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits of all parts."""
        return _digest([self.config, self.seed, self.weights, self.data, dict(self.imports)])[:DIGITS]

    def parts(self) -> dict[str, Any]:
        """Return the parts and the digest, for a manifest."""
        return {
            "digest": self.digest,
            "config": self.config,
            "weights": self.weights,
            "data": self.data,
            "imports": dict(self.imports),
        }


def config_digest(flat: Mapping[str, Any]) -> str:
    """Return the digest of a config's values, given on one level with dotted keys; two spellings of a value are one.

    ``flat`` holds every key, those that have their default too.
    """
    values = {key: literal(value) for key, value in flat.items() if key not in APART}
    return _digest({key: value for key, value in values.items() if value != {}})[:PART_DIGITS]


def identity_of(flat: Mapping[str, Any], data: str = "") -> Identity:
    """Return the identity of the run whose whole config is ``flat``, on data with the fingerprint ``data``.

    Raises InputError for a module of IMPORTS that is not there and for weights that cannot be read; weights that are not there
    are known by their path.
    """
    return Identity(
        config_digest(flat),
        flat.get(SEED_KEY, -1),
        weights_content(flat.get(WEIGHTS_KEY) or ""),
        data,
        imports.content_of(flat.get(imports.KEY) or ()),
    )


def weights_content(weights: str) -> str:
    """Return what stands for the content of MODEL.WEIGHTS: the checksum of a file or folder, or an address as it is.

    An address with a checksum says its content; without one it has to be trusted. What is not there keeps its path. What
    follows a ``?`` says how the weights are read and stays.
    """
    if not weights or is_address(weights):
        return masked(weights)
    digits = content_checksum(local_file(weights))
    if digits is None:
        return f"{MISSING}{weights}"
    return f"sha256:{digits[:32]}{''.join(weights.partition('?')[1:])}"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def literal(value: Any) -> Any:
    """Return ``value`` as the training will understand it, in JSON's types; two spellings give one value."""
    if isinstance(value, str):
        return _parsed(value)
    if isinstance(value, list | tuple):
        return [literal(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): literal(item) for key, item in value.items()}
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


@cache
def _parsed(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return text if isinstance(value, str | bytes | set) else literal(value)


def flat_values(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with dotted keys, as JSON has them, without passwords and tokens of addresses."""
    for key in sorted(node, key=str):
        value = node[key]
        if isinstance(value, Mapping):
            yield from flat_values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(masked(json.dumps(value, default=str)))
