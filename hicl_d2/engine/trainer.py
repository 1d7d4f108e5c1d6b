"""The trainer: Detectron2's training loop with exact resume, atomic files, bfloat16 and one data stream per seed."""

import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hicl_d2.modeling.models  # noqa: F401 - registers the project's models
from hicl_d2.command.console import console, counter
from hicl_d2.command.errors import InputError, one_line
from hicl_d2.command.interrupts import Interrupted
from hicl_d2.d2 import INSTALL_GUIDE, USES_DETECTRON2
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.engine import TrainerBase, hooks
from hicl_d2.d2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from hicl_d2.d2.modeling import build_model
from hicl_d2.d2.utils import CommonMetricPrinter, EventWriter, TensorboardXWriter, comm
from hicl_d2.data.loader import build_test_loader, build_train_loader
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.engine.hooks import (
    WRITE_PERIOD,
    BestCheckpoint,
    CatchUp,
    MetricsFile,
    Progress,
    RecentEvents,
    StepBoundary,
    Stopwatch,
)
from hicl_d2.engine.idle import IdleBranch
from hicl_d2.engine.optimizer import build_lr_scheduler, build_optimizer
from hicl_d2.engine.precision import PRECISIONS, warning_of
from hicl_d2.engine.scaling import scale_to_processes
from hicl_d2.engine.step import StepTrainer
from hicl_d2.engine.trackers import Tracking
from hicl_d2.evaluation import build_evaluator, for_testing
from hicl_d2.evaluation.inference import Named
from hicl_d2.evaluation.metrics import flat
from hicl_d2.modeling.memory_format import set_memory_format
from hicl_d2.modeling.settings import gives_semantics

logger = logging.getLogger(__name__)

MAIN_METRIC = "sem_seg/mIoU"
# Of models that predict instances alone.
BOX_METRIC = "bbox/AP"


class Trainer(TrainerBase):
    """Train and evaluate the model of a config, under either runtime; override a ``build_*`` class method to change one part.

    Nothing is written before :meth:`train`: building the parts and loading weights, which can fail on the user's input,
    come first. SOLVER.AMP.DTYPE chooses the precision; cfg.SEED must be 0 or more (:func:`hicl_d2.run.setup.resolve`
    draws one).
    """

    iter: int

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not comm.is_main_process():
            console.silence()
        cfg = scale_to_processes(cfg, comm.get_world_size())
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        self.parameters = count_parameters(model)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        if comm.get_world_size() > 1:
            model = _distributed(model)
        self.model, self.optimizer, self.data_loader = model, optimizer, data_loader
        precision = PRECISIONS[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
        warning = warning_of(precision, next(model.parameters()).device.type)
        if warning:
            console.say(f"warning: {warning}")
            logger.warning(warning)
        self._trainer = StepTrainer(
            model,
            data_loader,
            optimizer,
            seed=cfg.SEED,
            precision=precision,
            accumulate=cfg.SOLVER.ACCUMULATE,
            nonfinite_limit=cfg.SOLVER.NONFINITE_LIMIT,
            nonfinite_folder=Path(cfg.OUTPUT_DIR) / "nonfinite",
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpoints(
            model, cfg.OUTPUT_DIR, keep=cfg.SOLVER.CHECKPOINT_KEEP, trainer=weakref.proxy(self)
        )
        self._last_eval_results: dict[str, Any] = {}
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue after the last checkpoint if ``resume`` and there is one, else start from MODEL.WEIGHTS.

        Raises InputError for a checkpoint or weights of another model.
        """
        if resume and self.checkpointer.has_checkpoint():
            self.checkpointer.resume()
            self.start_iter = self.iter + 1
        else:
            self.checkpointer.load_weights(self.cfg.MODEL.WEIGHTS, whole=False)
        self.data_loader.start_iteration = self.start_iter

    def build_hooks(self) -> list[Any]:
        """Return the hooks in Detectron2's order: those that change, save and evaluate the model, then those that write."""
        cfg = self.cfg
        period = cfg.TEST.EVAL_PERIOD
        metric = MAIN_METRIC if gives_semantics(cfg) else BOX_METRIC
        metric = f"{cfg.DATASETS.TEST[0]}/{metric}" if len(cfg.DATASETS.TEST) > 1 else metric
        self.stopwatch = Stopwatch()
        self._boundary = StepBoundary(self.checkpointer)
        self._metrics = MetricsFile(Path(cfg.OUTPUT_DIR) / "metrics.json")
        evaluation = hooks.EvalHook(period, self._evaluate)
        best = BestCheckpoint(self.checkpointer, metric, period)
        main = comm.is_main_process()
        self._writers = self.build_writers() if main else []
        self._tracking = Tracking(cfg, self._metrics) if main and cfg.TRACKING.WRITERS else None
        return [
            hooks.IterationTimer(),
            self.stopwatch,
            hooks.LRScheduler(),
            self._build_precise_bn() if cfg.TEST.PRECISE_BN.ENABLED else None,
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if main else None,
            self._boundary,
            evaluation,
            best if main else None,
            RecentEvents(),
            CatchUp(
                self.checkpointer,
                [evaluation, best] if main else [evaluation],
                self._metrics,
                period,
                metric,
            ),
            IdleBranch() if main else None,
            Progress(cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.DEVICE) if main else None,
            hooks.PeriodicWriter(self._writers, period=WRITE_PERIOD) if main else None,
            self._tracking,
        ]

    def _build_precise_bn(self) -> Any:
        if not USES_DETECTRON2:
            raise InputError(
                f"TEST.PRECISE_BN.ENABLED: this needs Detectron2; to install it see {INSTALL_GUIDE}"
            )
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = self.build_train_loader(cfg)
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

    def build_writers(self) -> list[EventWriter]:
        """Return the writers of the log, metrics.json and TensorBoard; none creates its file before the first write."""
        return [CommonMetricPrinter(self.max_iter), self._metrics, TensorboardXWriter(self.cfg.OUTPUT_DIR)]

    def train(self) -> dict[str, Any]:
        """Train, and return the results of the last evaluation (empty without DATASETS.TEST).

        If a signal or an error (a test image that cannot be read, say) ends the training between two iterations, a
        checkpoint of the last iteration is saved first. An OSError, such as that of a full disk, is raised at once.
        """
        try:
            super().train(self.start_iter, self.max_iter)
        except OSError:
            raise
        except (Exception, Interrupted):
            self._boundary.save()
            raise
        return self._last_eval_results

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the training, in the format of Detectron2's DefaultTrainer."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    def after_train(self) -> None:
        """Call the hooks if all iterations are done; after an error or a signal only close the writers."""
        if self.iter >= self.max_iter:
            # Without an iteration to do, as after the resume of a finished training, the loop ends one higher.
            self.iter = self.max_iter
            super().after_train()
        else:
            for writer in self._writers:
                writer.close()
        if self._tracking is not None:
            self._tracking.close()

    def _evaluate(self) -> dict[str, Any]:
        start = time.perf_counter()
        self._last_eval_results = self.test(self.cfg, self.model)
        self.stopwatch.evaluation += time.perf_counter() - start
        return self._last_eval_results

    def last_metrics(self) -> dict[str, float]:
        """Return the figures of the last evaluation as one flat dictionary."""
        return flat(self._last_eval_results)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model. Raises InputError if the config describes none."""
        try:
            model = build_model(cfg)
        except (AssertionError, KeyError, ValueError) as error:
            reason = one_line(error) if str(error) else "an assertion failed"
            raise InputError(f"the config describes no model that can be built: {reason}") from error
        logger.info(f"Model:\n{model}")
        return set_memory_format(cfg, model)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | DatasetEvaluator | None = None,
    ) -> dict[str, Any]:
        """Evaluate ``model`` on each of DATASETS.TEST, with progress on the console.

        ``evaluators`` has one per data set; without it :meth:`build_evaluator` makes them. Return the results of the
        one data set, or a dict of results by data set.
        """
        if not comm.is_main_process():
            console.silence()
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        results: dict[str, Any] = OrderedDict()
        model = Named(for_testing(cfg, model))
        for position, name in enumerate(cfg.DATASETS.TEST):
            loader = cls.build_test_loader(cfg, name)
            evaluator = evaluators[position] if evaluators else cls.build_evaluator(cfg, name)
            progress = {"after_inference": counter(f"evaluating {name}", len(loader))}
            results[name] = inference_on_dataset(model, loader, evaluator, callbacks=progress)
            if comm.is_main_process():
                logger.info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results


def _distributed(model: nn.Module) -> nn.Module:
    """Wrap ``model`` for several processes. Raises InputError for norms that torch synchronises on GPUs alone."""
    if next(model.parameters()).is_cuda:
        device_ids = [comm.get_local_rank()]
    elif any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise InputError(
            "the model has norms SyncBN, which torch synchronises on GPUs alone; for several processes on a CPU set them to "
            "naiveSyncBN (MODEL.RESNETS.NORM, MODEL.SEM_SEG_HEAD.NORM), or run with HICL_RUNTIME=lite"
        )
    else:
        device_ids = None
    return DistributedDataParallel(model, broadcast_buffers=False, device_ids=device_ids)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters of the model at inference, and of the branch, which exists in training alone."""
    branch = sum(p.numel() for name, p in model.named_parameters() if name.startswith("hicl."))
    return {"model": sum(p.numel() for p in model.parameters()) - branch, "branch": branch}
