"""A place where processes cannot meet is one line before one of them is started."""

import socket
import traceback
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessRaisedException

from hicl_d2.command.errors import InputError
from hicl_d2.run import processes
from hicl_d2.run.meeting import check_dist_url, explain_meeting
from tests.support.ports import free_port


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that another program listens on, at one address of this machine or at all of them."""
    with socket.create_server((request.param, 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "url",
    [
        *(
            "foo",
            "",
            "tcp://",
            "tcp://localhost",
            "tcp://localhost:",
            "tcp://localhost:x",
            "tcp://localhost:0",
        ),
        *(
            "tcp://localhost:65536",
            "tcp://localhost:-1",
            "tcp://:29500",
            "tcp:/localhost:29500",
            "localhost:29500",
        ),
        *("http://localhost:29500", "AUTO", "tcp://no host:29500", "tcp://no-such-host.invalid:29500"),
        *(
            "file://",
            "file://relative/path",
            "file:///",
            "file:///no/such/folder/x",
            "env://",
            "tcp://[::1:29500",
        ),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_no_place_is_one_line_with_what_is_one(
    url: str, is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        InputError, match=r"--dist-url .*; give tcp://HOST:PORT of the first machine"
    ) as caught:
        check_dist_url(url, is_first=is_first)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_is_free_or_named(host: str, taken: int) -> None:
    check_dist_url(f"tcp://{host}:{free_port()}", is_first=True)
    with pytest.raises(InputError, match=f"the port {taken} cannot be opened .*already in use"):
        check_dist_url(f"tcp://{host}:{taken}", is_first=True)
    check_dist_url(f"tcp://{host}:{taken}", is_first=False)  # there it must be open


def test_the_other_ways_of_torch_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_dist_url("auto", is_first=True)
    check_dist_url(f"file://{tmp_path}/meet", is_first=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    check_dist_url("env://", is_first=True)
    monkeypatch.setenv("MASTER_PORT", "many")
    with pytest.raises(InputError, match="MASTER_PORT many"):
        check_dist_url("env://", is_first=True)


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_run_starts_with_the_check(gpus: int) -> None:
    args = Namespace(num_gpus=gpus, num_machines=1, machine_rank=0, dist_url="foo")
    with pytest.raises(InputError, match=r"--dist-url foo is no address"):
        processes.start(lambda: None, args, "cpu", ())


def test_a_port_that_is_taken_after_the_check_is_one_line_too(taken: int) -> None:
    try:
        dist.TCPStore("127.0.0.1", taken, is_master=True)
    except dist.DistNetworkError:
        text = traceback.format_exc()
    failure = explain_meeting(ProcessRaisedException(text, 0, 1), f"tcp://127.0.0.1:{taken}")
    assert isinstance(failure, InputError)
    assert f"--dist-url tcp://127.0.0.1:{taken}: the processes did not meet" in str(failure)
    assert "\n" not in str(failure)
    assert explain_meeting(ProcessRaisedException("KeyError: 'a'", 0, 1), "auto") is None
