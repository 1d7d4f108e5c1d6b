"""A terminal of 80 columns that a command writes to."""

import os
import pty
import subprocess
from collections.abc import Sequence


def run_on_a_terminal(command: Sequence[str], *, stdout: int | None = None, **environment: str) -> str:
    """Run ``command`` with a terminal as its standard error, and as its output without ``stdout``; return what it shows.

    The command must end with status 0.
    """
    reader, writer = pty.openpty()
    variables = {**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment}
    process = subprocess.Popen(
        command, stdout=writer if stdout is None else stdout, stderr=writer, env=variables
    )
    os.close(writer)
    shown = b""
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(reader)
    assert process.wait() == 0, shown
    return shown.decode()
