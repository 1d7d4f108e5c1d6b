"""Why trainings fail, and what is done about each kind."""

import re
import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """What to do about a kind of failure.

    ``retries``: how often one run of the harness tries again at once; ``again``: whether a plain ``run`` tries
    again later (others wait for ``--retry failed``); ``ends_run``: whether no further cell is started.
    """

    retries: int
    again: bool
    advice: str
    ends_run: bool = False


OUT_OF_MEMORY, NOT_FINITE, TIME_OUT, PORT, DISK, DATA, INPUT, KILLED, NO_RESULT, UNKNOWN = (
    "out of memory",
    "not finite",
    "time-out",
    "port",
    "disk",
    "data",
    "input",
    "killed",
    "no result",
    "unknown",
)

RULES = {
    # It may fit on a GPU of its own; the local executor retries it there if it shared one.
    OUT_OF_MEMORY: Rule(0, False, "lower SOLVER.IMS_PER_BATCH, or raise resources: memory_gb"),
    # The same seed gives the same numbers: trying again changes nothing.
    NOT_FINITE: Rule(0, False, "look at metrics.json, then lower SOLVER.BASE_LR or clip gradients"),
    TIME_OUT: Rule(
        0, False, "raise resources: timeout_hours; --retry failed goes on from the last checkpoint"
    ),
    PORT: Rule(3, True, "another program took the port"),
    DISK: Rule(0, True, "make room; the same command goes on", ends_run=True),
    DATA: Rule(0, True, "put the data right; the same command goes on"),
    INPUT: Rule(0, True, "put the config right; the same command goes on"),
    KILLED: Rule(3, True, "if the machine's memory ran out, run fewer cells at a time"),
    NO_RESULT: Rule(0, False, "see the log; --retry failed tries again"),
    UNKNOWN: Rule(0, False, "see the log; --retry failed goes on from the last checkpoint"),
}

# Patterns searched for, in this order, in the last part of the training's standard error.
SIGNS = (
    (OUT_OF_MEMORY, r"out of memory|OutOfMemoryError|Cannot allocate memory|not enough memory"),
    (DISK, r"no space left|No space left on device|Disk quota exceeded"),
    (PORT, r"EADDRINUSE|[Aa]ddress already in use"),
    (NOT_FINITE, r"not finite|[Nn]on-?finite|FloatingPointError|infinite or NaN"),
)
INPUT_STATUS = 2  # train_net.py's for what the user can put right
DATA_SIGN = r"\bdata\b|data ?set|DATASETS|\bimage|\blabel|annotation"


@dataclass(frozen=True)
class Failure:
    """Why a training left no result."""

    kind: str
    message: str

    @property
    def rule(self) -> Rule:
        return RULES.get(self.kind, RULES[UNKNOWN])


def classify(status: int, last_line: str, tail: str) -> Failure:
    """Return the failure behind an exit status (negative: a signal) and the end of standard error."""
    if status < 0:
        message = f"killed by {signal.Signals(-status).name}: {last_line or 'no message'}"
    else:
        message = f"exit {status}: {last_line or 'no message'}"
    for kind, sign in SIGNS:
        if re.search(sign, tail):
            return Failure(kind, message)
    if status < 0:
        return Failure(KILLED, message)
    if status == 0:
        return Failure(NO_RESULT, "it ended without a result.json")
    if status == INPUT_STATUS:
        return Failure(DATA if re.search(DATA_SIGN, last_line) else INPUT, message)
    return Failure(UNKNOWN, message)
