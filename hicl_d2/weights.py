"""Reading weights that strangers made: arrays, tensors and plain containers, and nothing that runs code.

A pickle may ask for any function of any module. A ``.pth`` file is read with torch's ``weights_only``; a
``.pkl`` file by an unpickler that knows what weights are made of and refuses everything else by its name.
"""

import collections
import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch

from hicl_d2.command.errors import InputError, one_line

# Set (by --download) to fetch weights from an address that comes without a checksum.
DOWNLOAD = "HICL_DOWNLOAD"
# Addresses that stand for Detectron2's own model zoo, which Detectron2 (or the built-in runtime) fetches over https.
ZOO = ("detectron2", "catalog")
# The attribute by which a zip archive's list of records marks a folder.
_FOLDER = 0x10


class DamagedError(InputError):
    """Raised for a file of weights that cannot be read: cut off, changed, or no such file at all."""


def check_address(path: str) -> None:
    """Raise InputError if ``path`` is a URL that is not to be fetched.

    That is any but https, and https without a checksum (``#sha256=`` and 64 hexadecimal digits at its end)
    unless the user asked for it. A local path and the addresses of Detectron2's model zoo pass.
    """
    url = urlparse(path)
    if "://" not in path or url.scheme in ZOO:
        return
    if url.scheme != "https":
        raise InputError(
            f"weights {path}: only https is fetched, not {url.scheme}; download the file yourself"
        )
    if checksum(path) is None and os.environ.get(DOWNLOAD) != "1":
        raise InputError(
            f"weights {path} are on another machine and have no checksum; add #sha256= and its 64 digits, or "
            "allow the download with --download"
        )


def checksum(path: str) -> str | None:
    """Return the SHA-256 that ends a URL, None if there is none; InputError for one that is no SHA-256."""
    fragment = urlparse(path).fragment if "://" in path else ""
    if not fragment:
        return None
    found = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if found is None:
        raise InputError(f"weights {path}: what follows # must be sha256= and 64 hexadecimal digits")
    return found[1].lower()


def check_content(file: str | Path, expected: str, address: str) -> None:
    """Raise InputError, and remove ``file``, if its SHA-256 is not the ``expected`` one."""
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        Path(file).unlink()
        raise InputError(
            f"weights {address}: the file that came has the SHA-256 {found}; it was removed again"
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
        if not isinstance(value, torch.Tensor | np.ndarray):
            kind = type(value).__name__
            raise InputError(f"weights {file}: {name} is of type {kind}; expected a tensor")


def read_torch(file: str) -> Any:
    """Return the content of a file that torch wrote, on the CPU.

    Raises DamagedError if it cannot be read, InputError if it asks for more than weights.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything at all
        asked = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        raise (_refused(file, asked[1]) if asked else _damaged(file, error)) from None


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
