"""Waiting for something to happen, however busy the machine is."""

import time
from collections.abc import Callable

# Seconds after which a test is said to hang. No test measures time: this only keeps a broken one from waiting forever.
PATIENCE = 900.0


def wait_for(
    condition: Callable[[], object], *, while_running: Callable[[], int | None] = lambda: None
) -> None:
    """Wait until ``condition`` holds.

    Raises AssertionError if the process ends first whose exit status ``while_running`` returns (as Popen's ``poll``), and
    TimeoutError if it hangs.
    """
    end = time.monotonic() + PATIENCE
    while not condition():
        status = while_running()
        assert status is None or condition(), f"the process ended first, with exit status {status}"
        if time.monotonic() > end:
            raise TimeoutError("it hangs")
        time.sleep(0.002)
