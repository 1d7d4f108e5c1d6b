"""A warning when the branch finds nothing to contrast, so that the run trains the base model alone."""

import logging

from hicl_d2.command.console import console
from hicl_d2.d2.engine import HookBase

logger = logging.getLogger(__name__)

LOSS = "hicl/loss"
KEPT = "kept"
DROPPED = ("pruned_coverage", "pruned_purity", "pruned_confidence")
ENTRIES = 5  # consecutive diagnostics


class IdleBranch(HookBase):
    """Warn once per process when the contrast was 0 in ``ENTRIES`` consecutive diagnostics.

    The branch logs its diagnostics every MODEL.HICL.LOG_PERIOD iterations. Register this on the main process: the
    diagnostics describe its part of the batch.
    """

    def __init__(self) -> None:
        self._idle = 0
        self._first = 0

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        loss, iteration = latest.get(LOSS, (None, -1))
        if self._idle >= ENTRIES or iteration != self.trainer.iter:
            return
        self._idle = self._idle + 1 if loss == 0 else 0
        if self._idle == 1:
            self._first = iteration
        if self._idle == ENTRIES:
            self._warn({name: value for name, (value, _) in latest.items()}, iteration)

    def _warn(self, figures: dict[str, float], iteration: int) -> None:
        totals = {
            ending: sum(value for name, value in figures.items() if name.endswith(f"/{ending}"))
            for ending in (KEPT, *DROPPED)
        }
        candidates = sum(totals.values())
        text = (
            f"the contrast was 0 in {ENTRIES} diagnostics running, iterations {self._first + 1} to {iteration + 1}: "
            "nothing was found to contrast, and such steps train the plain model"
        )
        if candidates:
            dropped = ", ".join(
                f"{name.partition('_')[2]} drops {totals[name] / candidates:.0%}" for name in DROPPED
            )
            text += (
                f"; of {candidates:.0f} candidates {totals[KEPT]:.0f} were kept ({dropped}): "
                "see MODEL.HICL.COVERAGE, PURITY, CONFIDENCE_LOW and CONFIDENCE_HIGH"
            )
        console.say(f"warning: {text}")
        logger.warning(text)
