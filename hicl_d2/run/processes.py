"""Starting the processes of a run, and hearing from them: one message, whichever process failed."""

import contextlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from multiprocessing import active_children, resource_tracker
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from hicl_d2.command import interrupts
from hicl_d2.command.cli import explain, stop_signal
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError
from hicl_d2.command.files import write_json
from hicl_d2.d2.engine import launch
from hicl_d2.d2.utils import comm
from hicl_d2.process_groups import leave_process_groups
from hicl_d2.run.meeting import check_dist_url, explain_meeting

ENDED = ".ended"
FAILED = 3  # exit status of a process that has left a record of its failure
# Seconds that a process has to end by itself once another one has failed, before it is ended.
GRACE = 10.0


def start(main: Callable[..., None], args: Namespace, device: str, arguments: tuple[Any, ...]) -> None:
    """Run ``main(*arguments)`` in as many processes as ``args`` asks for, or as one of those that torchrun
    started.

    Raises InputError with the message of the process that failed first, Interrupted if they were asked to
    stop.
    """
    check(args, device)
    if under_torchrun():
        _run_under_torchrun(main, args, device, arguments)
        return
    if args.num_gpus * args.num_machines == 1:
        main(*arguments)
        return
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # then the processes meet over gloo
    _quieten()
    with tempfile.TemporaryDirectory(prefix="hicl_d2_") as records:
        try:
            launch(
                _run_recorded,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(records, main, arguments),
            )
        except interrupts.Interrupted:
            _stop_children()
            raise
        except (ProcessRaisedException, ProcessExitedException) as error:
            first = args.machine_rank * args.num_gpus
            ranks = range(first, first + args.num_gpus)
            raise _failure(Path(records), error, ranks, args.dist_url) from None


def _quieten() -> None:
    """Keep two messages about processes that failed off the console: what they failed of is said in one line."""
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    # Python's tracker of semaphores, a process of its own that takes over these options, tells of each that was left.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


def check(args: Namespace, device: str) -> None:
    """Raise InputError if ``args`` asks for more GPUs than there are, or for machines that do not fit together."""
    if under_torchrun():
        return
    found = torch.cuda.device_count() if device != "cpu" else args.num_gpus
    if args.num_gpus > found:
        raise InputError(f"--num-gpus {args.num_gpus} asks for more GPUs than this machine has ({found})")
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(f"--machine-rank {args.machine_rank} is not between 0 and {args.num_machines - 1}")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise InputError(
            "--dist-url auto works on one machine; give all of them the first one's tcp://HOST:PORT"
        )
    is_first = args.machine_rank == 0 and args.num_gpus * args.num_machines > 1
    check_dist_url(args.dist_url, is_first=is_first)


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def silence_all_but_the_first() -> None:
    """Let only the first of the processes that torchrun started speak on the console, from before they have met."""
    if under_torchrun():
        console.silence(int(os.environ.get("RANK", "0")) > 0)


def is_restarted() -> bool:
    """Return whether torchrun started the processes again, because one was lost."""
    return under_torchrun() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def count(args: Namespace) -> int:
    """Return how many processes the run has, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else args.num_gpus * args.num_machines


def _run_under_torchrun(
    main: Callable[..., None], args: Namespace, device: str, arguments: tuple[Any, ...]
) -> None:
    if args.num_gpus * args.num_machines > 1:
        raise InputError("torchrun starts the processes; leave out --num-gpus and --num-machines")
    try:
        _join_torchrun(device)
        with interrupts.handled(patient=True, follows=not comm.is_main_process()):
            main(*arguments)
        leave_process_groups(comm)
    except (Exception, KeyboardInterrupt) as error:
        if explain(error) is not None or stop_signal(error) is not None:
            leave_process_groups(comm)  # no collective operation is under way
        else:
            # Most likely another process failed. Then torchrun stops this one too, and has that one's message.
            time.sleep(GRACE)
        if stop_signal(error) is None:
            get_error_handler().record_exception(error)
        raise


def _join_torchrun(device: str) -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    if device != "cpu":
        if local_rank >= torch.cuda.device_count():
            raise InputError(f"torchrun started more processes than this machine has GPUs ({local_rank})")
        torch.cuda.set_device(local_rank)
    store, rank, size = next(iter(dist.rendezvous("env://")))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # The agent keeps its store when it starts the processes again, and with it the addresses of those that are gone.
        # (Of several agents each counts its own restarts, so that the number would not be the same for all.)
        store = dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("gloo" if device == "cpu" else "nccl", store=store, rank=rank, world_size=size)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def _run_recorded(records: str, main: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run ``main`` as one process of several; leave a record of what went wrong, and a sign that it ended by itself."""
    place = Path(records) / str(comm.get_rank())
    console.silence(not comm.is_main_process())
    _share_cores()
    threading.Thread(target=_leave_with_others, args=(place,), daemon=True).start()
    try:
        with interrupts.handled(patient=True, follows=not comm.is_main_process()):
            main(*arguments)
        leave_process_groups(comm)
    except (Exception, KeyboardInterrupt) as error:
        _record(place, error)
        _end(place)
    _sign(place)


def _sign(place: Path) -> None:
    """Say that this process has ended by itself; ``place`` is where its record would be, but for the suffix."""
    with contextlib.suppress(OSError):  # nobody is there to read it
        place.with_suffix(ENDED).touch()


def _end(place: Path) -> NoReturn:
    """End this process at once: a shutdown would wait for collective operations that never end, or abort."""
    _sign(place)
    for worker in active_children():
        worker.kill()
    os._exit(FAILED)


def _leave_with_others(place: Path) -> None:
    """End this process some time after another one failed, if it has not ended by itself.

    It may wait for that one in a collective operation, where no signal reaches it.
    """
    while not any(place.parent.glob("*.json")):
        if not place.parent.exists():
            return
        time.sleep(0.5)
    time.sleep(GRACE)
    _end(place)


def _share_cores() -> None:
    """Divide the cores between the processes of this machine, unless the user has set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))


def _record(place: Path, error: BaseException) -> None:
    signum = stop_signal(error)
    message = explain(error)
    if signum is None and message is None:
        signum = interrupts.received()  # a process that is stopped may fail of what it then misses
    content = {
        "kind": "stopped" if signum is not None else "fault" if message is None else "input",
        "time": time.monotonic(),
        "signal": signum,
        "message": message or traceback.format_exc(),
    }
    write_json(place.with_suffix(".json"), content)


def _failure(records: Path, error: Exception, ranks: Sequence[int], dist_url: str = "auto") -> BaseException:
    """Return what to raise: the user's mistake before a process that was killed before whatever came first, a stop or a fault.

    When one process ends, the others fail too, because they can no longer reach it, or are stopped by the launcher: those
    records come later. ``ranks`` are the processes of this machine, in the order in which ``error`` counts them.
    """
    found = [json.loads(path.read_text()) for path in records.glob("*.json")]
    first = min(found, key=lambda record: (record["kind"] != "input", record["time"]), default=None)
    if first is not None and first["kind"] == "input":
        return InputError(first["message"])
    if isinstance(error, ProcessExitedException) and error.exit_code < 0:
        return _killed(ranks[error.error_index], f"ended by {error.signal_name}")
    if first is None:
        return explain_meeting(error, dist_url) or error
    lost = [rank for rank in ranks if not (records / str(rank)).with_suffix(ENDED).exists()]
    if lost:
        return _killed(lost[0], "ended from outside")
    if first["kind"] == "stopped":
        return interrupts.Interrupted(first["signal"])
    return RuntimeError(f"a process of the run failed:\n{first['message']}")


def _killed(rank: int, how: str) -> InputError:
    return InputError(
        f"process {rank} of the run was {how}; look whether memory ran out, then go on with --resume"
    )


def _stop_children() -> None:
    """Pass the signal on and wait until the processes have saved what they can, or a second signal comes."""
    children = active_children()
    for child in children:
        child.terminate()
    try:
        for child in children:
            child.join()
    finally:
        for child in children:
            child.kill()
