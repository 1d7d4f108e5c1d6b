"""Figures of a training in Weights & Biases or MLflow, beside metrics.json and TensorBoard.

A tracker gets the lines of metrics.json as they are written, each once, also over resumes: a resumed run goes on in the same
run of the tracker. Where the figures go is the library's own matter (WANDB_MODE, MLFLOW_TRACKING_URI, ...). A tracker that
fails later is left out with a warning; the training goes on.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from hicl_d2.command.errors import InputError, listing, nearest, one_line
from hicl_d2.command.extras import check_extra
from hicl_d2.command.files import read_json, write_json
from hicl_d2.command.identity import flat_values
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.engine import HookBase
from hicl_d2.engine.hooks import MetricsFile

logger = logging.getLogger(__name__)

RUNS_FILE = "trackers.json"
# What MLflow takes as a parameter's value.
LONGEST_VALUE = 500


class Tracker(Protocol):
    """A run in a tracker's library; ``run`` is its id there."""

    run: str

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one iteration."""

    def close(self) -> None:
        """End the run."""


class WandbTracker:
    """A run of Weights & Biases. WANDB_MODE=offline needs neither account nor network."""

    def __init__(self, cfg: CfgNode, folder: Path, run: str | None) -> None:
        import wandb

        self._run = wandb.init(
            project=cfg.TRACKING.PROJECT,
            name=folder.name,
            dir=str(folder),
            id=run,
            resume="allow",
            config=dict(flat_values(cfg)),
        )
        self.run = self._run.id

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=iteration)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """A run of MLflow; without MLFLOW_TRACKING_URI it is in MLflow's own default place."""

    def __init__(self, cfg: CfgNode, folder: Path, run: str | None) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(cfg.TRACKING.PROJECT)
        self.run = mlflow.start_run(run_id=run, run_name=None if run else folder.name).info.run_id
        if run is None:
            mlflow.log_params({key: str(value)[:LONGEST_VALUE] for key, value in flat_values(cfg)})

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(figures), step=iteration, run_id=self.run)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[CfgNode, Path, str | None], Tracker]] = {
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}


def check_trackers(cfg: CfgNode) -> None:
    """Raise InputError if TRACKING.WRITERS names a tracker that is not known, or not installed."""
    for name in cfg.TRACKING.WRITERS:
        if name not in TRACKERS:
            raise InputError(
                f"TRACKING.WRITERS names {name!r}{nearest(str(name), TRACKERS)}; it may hold {listing(TRACKERS)}"
            )
        check_extra(name)


class Tracking(HookBase):
    """Give the lines of metrics.json to the trackers of TRACKING.WRITERS."""

    def __init__(self, cfg: CfgNode, metrics: MetricsFile) -> None:
        self._cfg, self._metrics = cfg, metrics
        self._trackers: dict[str, Tracker] = {}

    def before_train(self) -> None:
        folder = Path(self._cfg.OUTPUT_DIR).absolute()
        file = folder / RUNS_FILE
        is_new = not self.trainer.start_iter
        runs = read_json(file) if file.exists() and not is_new else {}
        for name in self._cfg.TRACKING.WRITERS:
            try:
                self._trackers[name] = TRACKERS[name](self._cfg, folder, runs.get(name))
            except Exception as error:  # of a library: no account, no network, a server that refuses
                raise InputError(
                    f"TRACKING.WRITERS: {name} does not start: {one_line(error)[:300]}; see its own documentation, or "
                    "leave it out"
                ) from error
        write_json(file, runs | {name: tracker.run for name, tracker in self._trackers.items()})
        self._metrics.followers.append(self._log)

    def _log(self, iteration: int, figures: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.log(iteration, figures))

    def close(self) -> None:
        """End the runs; call it when the training is over or has stopped, after the last line was written."""
        self._each(lambda tracker: tracker.close())

    def _each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                work(tracker)
            except Exception as error:
                del self._trackers[name]
                logger.warning(f"{name} fails and is left out from here on: {one_line(error)[:300]}")
