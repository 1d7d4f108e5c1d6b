"""Processes of a run whose communication threads hardly get any time, so that they outlive what they work for.

``python -m tests.support.starved WAY TRIALS FOLDER`` forks two processes per trial, lets them pass objects in the way that
``launch`` or ``torchrun`` has them meet, ends them as Python ends a script, and prints their exit statuses as JSON.
"""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

RANKS = 2


def starve() -> None:
    """Let every other thread of this process run only when the core would be idle, which it never is."""
    for name in os.listdir("/proc/self/task"):
        if int(name) != os.getpid():
            with suppress(ProcessLookupError):
                os.sched_setscheduler(int(name), os.SCHED_IDLE, os.sched_param(0))


def pass_objects() -> None:
    """What the last moments of a run are: an object from everyone to everyone."""
    from hicl_d2.d2.utils import comm

    starve()
    comm.all_gather(comm.get_rank())


def as_launched(rank: int, meeting: str) -> None:
    """Be one process of ``launch``."""
    from hicl_d2.lite.engine.launch import _run_rank

    _run_rank(rank, pass_objects, (), RANKS, RANKS, 0, f"file://{meeting}", timedelta(minutes=5))


def as_launched_by_detectron2(rank: int, meeting: str) -> None:
    """Be one process of Detectron2's ``launch`` as train_net.py has it."""
    from detectron2.engine.launch import _distributed_worker

    from hicl_d2.run.processes import _run_recorded

    arguments = (str(Path(meeting).parent), pass_objects, ())
    _distributed_worker(rank, _run_recorded, RANKS, RANKS, 0, f"file://{meeting}", arguments)


def under_torchrun(rank: int, meeting: str) -> None:
    """Be one process that torchrun started."""
    import torch.distributed as dist

    from hicl_d2.run import processes

    os.environ.update(TORCHELASTIC_RUN_ID="test", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(RANKS))
    # By a file: a port could be taken by another test.
    dist.rendezvous = lambda url: iter([(dist.FileStore(meeting, RANKS), rank, RANKS)])
    processes.start(pass_objects, Namespace(num_gpus=1, num_machines=1), "cpu", ())


def as_in_tests(rank: int, meeting: str) -> None:
    """Be one process of a test that has its own process group."""
    from tests.support.process_group import in_process_group

    Path(meeting).mkdir(exist_ok=True)
    in_process_group(_all_gather)(rank, meeting)


def _all_gather(rank: int, folder: str) -> None:
    from hicl_d2.lite.utils import comm

    starve()
    comm.all_gather(rank)


WAYS: dict[str, Callable[[int, str], None]] = {
    "launch": as_launched,
    "detectron2": as_launched_by_detectron2,
    "torchrun": under_torchrun,
    "tests": as_in_tests,
}


def main() -> None:
    way, trials, folder = WAYS[sys.argv[1]], int(sys.argv[2]), Path(sys.argv[3])
    from hicl_d2.run import processes  # noqa: F401  (torch is loaded once)

    # On one core a main thread that wakes up takes it from the thread that woke it.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    statuses = []
    for trial in range(trials):
        pids = []
        for rank in range(RANKS):
            pid = os.fork()
            if pid == 0:
                way(rank, str(folder / f"meeting{trial}"))
                sys.exit(0)  # unlike os._exit, the end of a script
            pids.append(pid)
        for pid in pids:
            _, status = os.waitpid(pid, 0)
            statuses.append(os.waitstatus_to_exitcode(status))
    sys.stdout.write(json.dumps(statuses))


if __name__ == "__main__":
    main()
