"""Where the processes of a run meet (``--dist-url``): checked before one of them is started.

What is wrong there would otherwise end each of them in a traceback, or let them wait for half an hour.
"""

import os
import socket
from pathlib import Path
from urllib.parse import urlparse

from hicl_d2.command.errors import InputError

WANTED = "give tcp://HOST:PORT of the first machine, or auto on one machine"
# What torch calls that no process could be reached.
NETWORK_ERRORS = ("DistNetworkError", "DistStoreError")


def check_dist_url(url: str, *, is_first: bool) -> None:
    """Raise InputError for a ``--dist-url`` where no processes can meet; ``is_first``: this machine opens the port.

    Taken are auto, tcp://HOST:PORT, file:///PATH and env:// with MASTER_ADDR and MASTER_PORT, as torch does.
    """
    if url == "auto":
        return
    place, said = url, f"--dist-url {url}"
    if url.startswith("env://"):
        names = ("MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise InputError(f"{said}: {' and '.join(missing)} are not set; {WANTED}")
        host, port = (os.environ[name] for name in names)
        place = f"tcp://{f'[{host}]' if ':' in host else host}:{port}"
        said += f" (MASTER_ADDR {host}, MASTER_PORT {port})"
    if place.startswith("file:///"):
        _check_file(Path(urlparse(place).path), said)
    elif place.startswith("tcp://"):
        _check_address(place, said, is_first)
    else:
        raise InputError(f"{said} is no address; {WANTED}")


def _check_file(path: Path, said: str) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{said} must be a file in a folder that is there; {WANTED}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{said}: no permission to write there; {WANTED}")


def _check_address(place: str, said: str, is_first: bool) -> None:
    try:
        host, port = urlparse(place).hostname, urlparse(place).port
    except ValueError:  # no number, or none below 65536
        host, port = None, None
    if not host or not port:
        raise InputError(f"{said} has no host, or no port from 1 to 65535; {WANTED}")
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{said}: the host {host} cannot be found ({reason}); {WANTED}") from None
    if is_first:
        _check_port(port, said)


def _check_port(port: int, said: str) -> None:
    """Open and close the port as torch will: for all addresses of this machine, or at least for those of IPv4."""
    ways = [(socket.AF_INET6, True)] if socket.has_dualstack_ipv6() else []
    for family, both in [*ways, (socket.AF_INET, False)]:
        try:
            socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
        else:
            return
    raise InputError(f"{said}: the port {port} cannot be opened ({reason}); choose another one, or auto")


def explain_meeting(error: BaseException, url: str) -> InputError | None:
    """Return what to say where processes did not find each other, None for any other error."""
    last = str(error).strip().rsplit("\n", 1)[-1]
    if not any(name in last for name in NETWORK_ERRORS):
        return None
    return InputError(
        f"--dist-url {url}: the processes did not meet ({last.split(': ', 1)[-1]:.200}); {WANTED}"
    )
