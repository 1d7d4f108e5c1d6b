"""Reading weights that strangers made: arrays, tensors and plain containers, and nothing that runs code.

A pickle may ask for any function of any module. A ``.pth`` file is read with torch's ``weights_only``; a
``.pkl`` file by an unpickler that knows what weights are made of and refuses everything else by its name.
"""

import collections
import hashlib
import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hicl_d2.command.address import ALGORITHMS
from hicl_d2.command.errors import InputError, one_line

# What torch's own files ask for besides tensors and their storages.
_KEPT_BY_TORCH = (
    "torch.device",
    "torch.layout",
    "torch.nn.parameter.Parameter",
    "torch._tensor._rebuild_from_type_v2",
)
# The attribute by which a zip archive's list of records marks a folder.
_FOLDER = 0x10


class DamagedError(InputError):
    """Raised for a file of weights that cannot be read: cut off, changed, or no such file at all."""


def check_content(file: str | Path, expected: str, address: str, *, is_fetched: bool = True) -> None:
    """Raise InputError if the checksum of ``file`` does not begin with the ``expected`` digits; remove it if it was fetched."""
    algorithm = ALGORITHMS.get(len(expected), "sha256")
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if not found.startswith(expected):
        name = algorithm.upper().replace("SHA", "SHA-")
        if not is_fetched:
            raise InputError(
                f"weights {address}: {file} has the {name} {found}, not {expected}; install its package anew"
            )
        Path(file).unlink()
        raise InputError(
            f"weights {address}: the file that came has the {name} {found}; it was removed again"
        )


def check_whole(file: str | Path) -> None:
    """Raise DamagedError if a record of the zip archive that torch wrote is not what it was when written.

    torch itself does not look at the checksums of the records: a bit that flipped on the disk would be trained
    on. Files in other formats pass.
    """
    file = str(file)
    try:
        with open(file, "rb") as stream:
            begins_as_zip = stream.read(4) == b"PK\x03\x04"
        if not begins_as_zip and not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as archive:
            wrong = archive.testzip()
            # torch takes such a record for a folder and leaves its tensor as the memory was.
            folders = [record.filename for record in archive.infolist() if record.external_attr & _FOLDER]
    except Exception as error:  # a damaged archive raises anything at all
        raise _damaged(file, error) from None
    if wrong is not None:
        raise _damaged(file, ValueError(f"the checksum of {wrong} does not fit"))
    if folders:
        raise _damaged(file, ValueError(f"{folders[0]} is marked as a folder"))


def check_names_and_tensors(file: str, weights: Any) -> None:
    """Raise InputError if ``weights``, read from ``file``, are anything but tensors or arrays by their names."""
    if not isinstance(weights, dict):
        raise InputError(f"weights {file} are of type {type(weights).__name__}; expected names and tensors")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise InputError(
                f"weights {file}: a tensor is called {name!r:.40}, of type {type(name).__name__}; expected text"
            )
        if not isinstance(value, torch.Tensor | np.ndarray | np.generic):
            kind = type(value).__name__
            raise InputError(f"weights {file}: {name} is of type {kind}; expected a tensor")


def to_tensors(file: str, weights: dict[str, Any]) -> None:
    """Put tensors in the place of NumPy's arrays and numbers. Raises InputError for one that holds no numbers."""
    for name, value in weights.items():
        if isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
            try:
                weights[name] = torch.from_numpy(native)
            except (TypeError, ValueError):
                raise InputError(
                    f"weights {file}: {name} is an array of {array.dtype}; expected numbers"
                ) from None


def check_plain(file: str, weights: Mapping[str, Any], floating: Collection[str] = ()) -> None:
    """Raise InputError for a tensor that cannot stand for weights as it is: no values, another layout, another dtype.

    A whole number is refused where a weight or bias stands, or what the model has in floating point (``floating``): it is a
    quantised one, whose scale is lost.
    """
    for name, tensor in weights.items():
        kind = _unfit(tensor, name in floating or name.endswith((".weight", ".bias")))
        if kind:
            raise InputError(
                f"weights {file}: {name} is a tensor that is {kind}; save plain weights in floating point"
            )


def _unfit(tensor: torch.Tensor, is_weight: bool) -> str:
    """Return in a word what is wrong with a tensor; "" if nothing is."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else "sparse"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_meta:
        return "without values (meta)"
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() < 2):
        return f"of {tensor.dtype}"
    return f"of {tensor.dtype}" if is_weight and not tensor.is_floating_point() else ""


def read_torch(file: str) -> Any:
    """Return the content of a file that torch wrote, on the CPU; NumPy's arrays and numbers may be in it.

    Raises DamagedError if it cannot be read, InputError if it asks for more than weights.
    """
    try:
        with torch.serialization.safe_globals(_SAFE_FOR_TORCH):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything at all
        asked = _asked_for(file)
        raise (_refused(file, asked) if asked else _damaged(file, error)) from None


def read_pickle(file: str) -> Any:
    """Return the content of a pickle of weights, as Detectron2 converts them.

    Raises DamagedError if it cannot be read, InputError if it asks for more than weights.
    """
    try:
        with open(file, "rb") as stream:
            return _WeightsUnpickler(stream, file).load()
    except InputError:
        raise
    except Exception as error:
        raise _damaged(file, error) from None


def _asked_for(file: str) -> str:
    """Return the first function or class that the pickle in a file of torch asks for and that no weights need; "" if none.

    The pickle is looked through and not run, so that one that torch cannot read for another reason is named too.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                content = archive.read(name)
        else:
            content = Path(file).read_bytes()
        return next((name for name in _globals_in(content) if not _is_known(name)), "")
    except Exception:  # a damaged file raises anything at all
        return ""


def _globals_in(content: bytes) -> Iterator[str]:
    """Yield the dotted names that the pickles in ``content``, one after the other, ask for, up to what is no pickle."""
    stream = io.BytesIO(content)
    while True:
        texts: list[str] = []
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".", 1)
            elif operation.name == "STACK_GLOBAL":
                yield ".".join(texts[-2:])
            elif operation.name.startswith("EXT"):
                yield f"the extension {argument}"
            elif isinstance(argument, str):
                texts.append(argument)


def _is_known(name: str) -> bool:
    kept = name in _SAFE or name in _KEPT_BY_TORCH or name.startswith("torch._utils._rebuild_")
    return kept or re.fullmatch(r"torch(\.storage|\.cuda)?\.\w*(Storage|[a-z]\d+|bool)", name) is not None


def _refused(file: str, what: str) -> InputError:
    return InputError(
        f"weights {file} ask for {what}, which is no tensor, array or plain container, and are refused"
    )


def _damaged(file: str, error: BaseException) -> DamagedError:
    # Around what it found torch wraps the advice to read the file without weights_only, which is no good one.
    found = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))
    reason = (found[1].strip() if found else one_line(error))[:160]
    return DamagedError(
        f"weights {file} cannot be read ({type(error).__name__}: {reason}); fetch or save them again"
    )


class _WeightsUnpickler(pickle.Unpickler):
    """Read arrays, tensors and plain containers; refuse any other class or function by its name."""

    def __init__(self, stream: Any, file: str) -> None:
        super().__init__(stream, encoding="latin1")  # Detectron2's files come from Python 2
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        known = _SAFE.get(f"{module}.{name}")
        if known is None:
            raise _refused(self._file, f"{module}.{name}")
        return known


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which pickles of NumPy write bytes, for that one use."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


def _storage(content: bytes) -> Any:
    """Stand in for torch's own function of a pickled storage, which would run the code in it."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _safe_names() -> dict[str, Callable[..., Any]]:
    array = np.zeros(1)
    of_numpy = {  # what NumPy itself names when it pickles
        "multiarray._reconstruct": array.__reduce__()[0],
        "multiarray.scalar": array[0].__reduce__()[0],
        "numeric._frombuffer": array.__reduce_ex__(5)[0],
    }
    plain: list[type] = [bytes, bytearray, complex, frozenset, set]
    return {
        **{
            f"numpy.{core}.{name}": function
            for core in ("core", "_core")
            for name, function in of_numpy.items()
        },
        **{f"{home}.{kind.__name__}": kind for home in ("builtins", "__builtin__") for kind in plain},
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        "_codecs.encode": _encode,
        "collections.OrderedDict": collections.OrderedDict,
        "torch.Size": torch.Size,
        "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
        "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
        "torch.storage._load_from_bytes": _storage,
    }


_SAFE = _safe_names()


def _named(path: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` under the name ``path``, by which torch's reader looks it up."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    call.__module__, _, call.__qualname__ = path.rpartition(".")
    call.__name__ = call.__qualname__
    return call


def _safe_for_torch() -> list[Any]:
    """Return what torch's reader may call besides its own: what NumPy's arrays and numbers are made of."""
    functions = [
        _named(path, function)
        for path, function in _SAFE.items()
        if path.startswith(("numpy.core.", "numpy._core."))
    ]
    # The classes of the dtypes are never asked for by name, but their objects get their state from the file.
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
    return [*functions, np.ndarray, np.dtype, *kinds, bytes, frozenset]


_SAFE_FOR_TORCH = _safe_for_torch()
