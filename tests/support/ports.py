"""Ports of this machine."""

import socket


def free_port() -> int:
    """Return a port that nothing listens on, so that a test may run several times at once on a machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
