"""How urgent the signals are that a harness has got."""

import os
import signal

import pytest

from hicl_d2.command.interrupts import Interrupted
from hicl_d2.harness.signals import DRAIN, GO, KILL, STOP, Signals


@pytest.mark.parametrize(
    ("signals", "level"),
    [
        ([], GO),
        ([signal.SIGINT], DRAIN),
        ([signal.SIGINT] * 2, STOP),
        ([signal.SIGINT] * 3, KILL),
        ([signal.SIGINT] * 5, KILL),
        ([signal.SIGTERM], STOP),
        ([signal.SIGTERM] * 2, KILL),
        ([signal.SIGHUP], STOP),
        ([signal.SIGHUP] * 3, STOP),
        ([signal.SIGINT, signal.SIGHUP], STOP),
    ],
)
def test_each_ctrl_c_is_more_urgent_and_a_lost_terminal_never_kills(signals: list[int], level: int) -> None:
    came = Signals()

    def work() -> None:
        with came.handled(), came.noted():
            for signum in signals:
                os.kill(os.getpid(), signum)
            assert came.level == level

    if not signals:
        work()
        return
    with pytest.raises(Interrupted) as raised:
        work()
    assert raised.value.signum == signals[-1]


def test_outside_of_a_run_a_signal_ends_at_once() -> None:
    came = Signals()
    with came.handled():
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signal.SIGHUP)  # told twice
