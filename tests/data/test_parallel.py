"""Workers end with the process that started them."""

import os
import signal
import time

from hicl_d2.data.parallel import end_with_parent


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_whose_parent_is_killed_ends_by_itself() -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            end_with_parent()
            os.write(writing, str(os.getpid()).encode())
        while True:
            signal.pause()
    worker = int(os.read(reading, 20))
    assert _exists(worker)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while _exists(worker):
        time.sleep(0.001)
