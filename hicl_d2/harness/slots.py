"""Slots for trainings: GPUs, shared by memory, or a number of slots on the CPU."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from hicl_d2.command.errors import InputError, counted
from hicl_d2.harness.cells import Resources
from hicl_d2.harness.environment import visible_gpus

# GiB reserved for a cell that does not say how much memory it needs: the whole GPU.
ALL = float("inf")


@dataclass
class Gpu:
    """A GPU and the memory in GiB that is reserved for each cell on it."""

    index: int
    memory_gb: float
    reserved: list[float] = field(default_factory=list)

    def fits(self, memory_gb: float, per_gpu: int, alone: bool) -> bool:
        if not self.reserved:
            return True
        return not alone and len(self.reserved) < per_gpu and sum(self.reserved) + memory_gb <= self.memory_gb


@dataclass(frozen=True)
class Slot:
    """Where a cell runs: on GPUs, or on the CPU if there are none; ``reserved`` is its memory on each GPU in GiB.

    ``processes`` is the number of GPUs where the cluster has chosen them.
    """

    gpus: tuple[int, ...] = ()
    reserved: float = 0.0
    threads: int | None = None
    processes: int = 0

    def variables(self) -> dict[str, str]:
        """Return the environment variables that confine a training to this slot."""
        variables = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.gpus))} if self.gpus else {}
        if self.threads is not None:
            variables["OMP_NUM_THREADS"] = str(self.threads)
        return variables

    def arguments(self) -> list[str]:
        """Return the options that the training needs to use this slot."""
        count = max(len(self.gpus), self.processes)
        return ["--num-gpus", str(count)] if count > 1 else []

    def __str__(self) -> str:
        return f"gpu {','.join(map(str, self.gpus))}" if self.gpus else "cpu"


class Slots:
    """The slots of this machine. Cells that want GPUs run on the CPU where there are none."""

    def __init__(self, gpus: Sequence[Gpu], per_gpu: int = 1, cpu_slots: int = 1) -> None:
        self._gpus = list(gpus)
        self._per_gpu = per_gpu
        self._cpu_slots = cpu_slots
        self._free_cpu_slots = cpu_slots

    @property
    def gpus(self) -> int:
        return len(self._gpus)

    def take(self, needs: Resources, alone: bool = False) -> Slot | None:
        """Return a slot for a cell, None if none is free now; ``alone``: its GPUs run no other cell."""
        if not needs.gpus or not self._gpus:
            if not self._free_cpu_slots:
                return None
            self._free_cpu_slots -= 1
            return Slot(threads=self._threads())
        memory = needs.memory_gb or ALL
        if alone:
            memory = ALL
        free = [gpu for gpu in self._gpus if gpu.fits(memory, self._per_gpu, alone)]
        if len(free) < needs.gpus:
            return None
        # Shared GPUs first, the fullest of them: large cells find empty ones.
        free.sort(key=lambda gpu: (-len(gpu.reserved), -sum(gpu.reserved), gpu.index))
        chosen = free[: needs.gpus]
        for gpu in chosen:
            gpu.reserved.append(memory)
        return Slot(tuple(gpu.index for gpu in chosen), memory)

    def is_shared(self, slot: Slot) -> bool:
        """Return whether another cell is on one of the slot's GPUs."""
        return any(len(gpu.reserved) > 1 for gpu in self._gpus if gpu.index in slot.gpus)

    def give_back(self, slot: Slot) -> None:
        """Free a slot."""
        if not slot.gpus:
            self._free_cpu_slots += 1
        for gpu in self._gpus:
            if gpu.index in slot.gpus:
                gpu.reserved.remove(slot.reserved)

    def check(self, needs: Resources, name: str) -> None:
        """Raise InputError for a cell that fits no slot of this machine."""
        if self._gpus and needs.gpus > len(self._gpus):
            raise InputError(
                f"{name} needs {counted(needs.gpus, 'GPU')} and {counted(len(self._gpus), 'is', 'are')} to be used; see --gpus"
            )
        largest = max((gpu.memory_gb for gpu in self._gpus), default=ALL)
        if needs.gpus and needs.memory_gb > largest:
            raise InputError(
                f"{name} needs {needs.memory_gb:g} GiB of GPU memory and the largest GPU here has {largest:.0f}"
            )

    def _threads(self) -> int | None:
        """Return the number of threads of a training on the CPU, None to leave the choice to it."""
        if self._cpu_slots == 1 or "OMP_NUM_THREADS" in os.environ:
            return None
        return max(1, (os.cpu_count() or 1) // self._cpu_slots)

    def __str__(self) -> str:
        if not self._gpus:
            return f"{self._cpu_slots} on the CPU"
        return f"GPUs {','.join(str(gpu.index) for gpu in self._gpus)}, {self._per_gpu} on each at most"


def find_slots(wanted: str | None, per_gpu: int, cpu_slots: int) -> Slots:
    """Return the slots of this machine; ``wanted`` is ``--gpus``: "0,2", "" for none, None for all.

    Raises InputError for a GPU that is not there.
    """
    gpus = [Gpu(index, memory) for index, _, memory in visible_gpus()]
    if wanted is not None:
        there = {str(gpu.index): gpu for gpu in gpus}
        names = [name.strip() for name in wanted.split(",") if name.strip()]
        for name in names:
            if name not in there:
                known = ", ".join(there) or "none"
                raise InputError(f"--gpus {wanted}: GPU {name} is not there; here are: {known}")
            if names.count(name) > 1:
                raise InputError(f"--gpus {wanted}: GPU {name} is named twice")
        gpus = [there[name] for name in names]
    return Slots(gpus, per_gpu, cpu_slots)
