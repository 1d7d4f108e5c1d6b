"""What becomes of freed memory, in a process of its own: whether the next step must ask the system for it again."""

import os
import subprocess
import sys

import pytest

from hicl_d2.config import get_hicl_cfg
from hicl_d2.engine import memory
from hicl_d2.run import setup

# Without torch, of which some small block may happen to lie above the large ones and keep them, whatever is asked for.
COUNT = """
import ctypes
import resource
import runpy
import sys
import types

sys.modules["torch"] = types.ModuleType("torch")
keep_freed_memory = runpy.run_path(sys.argv[1])["keep_freed_memory"]
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
SIZE = 2**23

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [ctypes.c_void_p(libc.malloc(SIZE)) for _ in range(16)]
    for block in blocks:
        libc.memset(block, 1, SIZE)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(), faults()
print(faults())
print(keep_freed_memory())
faults(), faults()
print(faults())
"""


def run(**environment: str) -> list[str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    return subprocess.run(
        [sys.executable, "-c", COUNT, memory.__file__],
        env={**own, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


@pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") is None, reason="another C library")
def test_kept_memory_is_not_asked_for_again() -> None:
    many, kept, few = run()
    assert kept == "True"
    assert int(few) < int(many) / 10


def test_settings_of_ones_own_stay() -> None:
    many, kept, as_before = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False"
    assert int(as_before) > int(many) / 2


@pytest.mark.parametrize(("device", "keeps"), [("cpu", True), ("cuda", False)])
def test_only_on_a_cpu_a_run_keeps_it(device: str, keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(setup, "keep_freed_memory", lambda: asked.append(True))
    cfg = get_hicl_cfg()
    cfg.MODEL.DEVICE, cfg.FLOAT32_PRECISION = device, ""
    setup.configure_torch(cfg, training=False)
    assert asked == [True] * keeps
