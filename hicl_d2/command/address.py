"""Addresses of weights: what may be fetched, what it must be, and where it is kept on this machine."""

import os
import re
from pathlib import Path
from urllib.parse import urlparse

from hicl_d2.command.errors import InputError, one_line
from hicl_d2.command.files import expanded

# Set (by --download) to fetch weights from an address that comes without a checksum.
DOWNLOAD = "HICL_DOWNLOAD"
# Addresses that stand for Detectron2's own model zoo, which Detectron2 (or the built-in runtime) fetches over https.
ZOO = ("detectron2", "catalog")
ZOO_SERVER = "https://dl.fbaipublicfiles.com/detectron2/"
# How many hexadecimal digits a checksum has.
ALGORITHMS = {64: "sha256", 96: "sha384", 128: "sha512"}
# The least of a SHA-256 that will do: as many as torchvision publishes, in the names of its files.
FEWEST = 8


# What of a URL is a secret: user and password, and values of a query that let their owner in.
USER = re.compile(r"(?<=://)[^/?#\s'\"]*@")
SECRET = re.compile(
    r"([?&][\w.-]*(?:token|secret|sig|signature|password|passwd|credential|access_?key|api_?key)=)[^&#\s'\"]+",
    re.I,
)


def masked(text: str) -> str:
    """Return ``text`` with ``***`` in the place of users, passwords and tokens of the URLs in it."""
    return SECRET.sub(r"\1***", USER.sub("***@", text))


def is_address(path: str) -> bool:
    """Return whether ``path`` is a URL and no local path."""
    return "://" in path


def local_file(path: str) -> Path:
    """Return the file or folder of a local path of weights, without what follows a ``?``."""
    return expanded(path.partition("?")[0])


def check_address(path: str) -> None:
    """Raise InputError if ``path`` is a URL that is not to be fetched.

    That is any but https, and https without a checksum (:func:`checksum`) unless the user asked for it. A local path and
    the addresses of Detectron2's model zoo pass.
    """
    url = urlparse(path)
    if not is_address(path) or url.scheme in ZOO:
        return
    if url.scheme != "https":
        raise InputError(
            f"weights {path}: only https is fetched, not {url.scheme}; download the file yourself"
        )
    if checksum(path) is None and os.environ.get(DOWNLOAD) != "1":
        raise InputError(
            f"weights {path} are on another machine and have no checksum; add #sha256= and its 64 digits, or allow the "
            f"download with --download, or put the file into {place_of(path).parent} and add its checksum"
        )


def checksum(path: str) -> str | None:
    """Return the digits of the checksum that ends a URL, None if there is none.

    It is ``#sha256=``, ``#sha384=`` or ``#sha512=`` and all the digits, or the first eight or more of a SHA-256. Eight tell
    a damaged file; against one that was made to pass give all. Raises InputError for what is no checksum.
    """
    fragment = urlparse(path).fragment if is_address(path) else ""
    if not fragment:
        return None
    found = re.fullmatch(r"(sha256|sha384|sha512)=([0-9a-fA-F]+)", fragment)
    if found is not None:
        algorithm, digits = found[1], found[2].lower()
        is_whole = ALGORITHMS.get(len(digits)) == algorithm
        if is_whole or (algorithm == "sha256" and FEWEST <= len(digits) < 64):
            return digits
    raise InputError(
        f"weights {path}: what follows # must be sha256= and 64 hexadecimal digits (or the first {FEWEST} or more of them), "
        "sha384= and 96, or sha512= and 128"
    )


def place_of(address: str) -> Path:
    """Return the local file that stands for a URL: what lies there is taken, and nothing is fetched."""
    url = urlparse(address)
    if url.scheme == "detectron2":
        url = urlparse(ZOO_SERVER + address.removeprefix("detectron2://"))
    cache = expanded(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache"))
    return cache / url.path.lstrip("/")


def not_fetched(address: str, error: BaseException) -> InputError:
    """Return what to say when ``address`` cannot be fetched: why, and where to put the file by hand."""
    place = place_of(address)
    return InputError(
        f"weights {address} cannot be fetched: {one_line(error)}; without a connection fetch {place.name} elsewhere and put "
        f"it into {place.parent}"
    )
