"""Time, memory and arithmetic of a step."""

import contextlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from speed.cases import Step

__all__ = ["gigaflops", "restart_keeping_memory", "measure", "median_ratio", "peak_bytes", "processor"]

# How glibc is told to keep what is freed instead of giving it back to the system.
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def processor(device: torch.device) -> str:
    """Return the name of the processor or the graphics card that ``device`` is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def restart_keeping_memory() -> None:
    """Start this program anew, once, with an allocator that keeps freed memory, as that of a GPU does.

    By default glibc gives every large block back at once, and the system hands out zeroed pages one by one when it is
    asked again: 30 % of a step at 1 x 1024 x 2048 on two cloud cores, which says more of the system than of the method. Other
    C libraries do not know the settings and go on as they are.
    """
    if not KEEPING.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEEPING})


def measure(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Time each step once per round, in milliseconds.

    It runs twice, and the second time counts: a step of training comes after one like itself, with caches and memory as that
    one left them, not after another method's.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()
            times[name].append(_time(step, device))
    return times


def _time(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    before = clock()
    step()
    return (clock() - before) * 1e3


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios within rounds."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def peak_bytes(step: Step, device: torch.device) -> int:
    """Return the most memory that a step holds at a time, above what was held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return int(torch.cuda.max_memory_allocated() - before)
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def gigaflops(step: Step) -> float:
    """Count the floating point operations of the matrix products in a step, in units of 1e9."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_flops}) as counter:
        step()
    return counter.get_total_flops() / 1e9


def _addmm_flops(added: Sequence[int], first: Sequence[int], second: Sequence[int], **others: object) -> int:
    """Count a product that is added in place, which torch's counter passes over."""
    return 2 * first[0] * first[1] * second[1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's own chatter, which is written by C++, off standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
