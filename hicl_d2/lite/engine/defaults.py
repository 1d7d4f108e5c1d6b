"""What most runs share: arguments, set-up, writers, a predictor and a trainer that a config defines."""

import argparse
import logging
import os
import sys
import weakref
from argparse import ArgumentParser, Namespace
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hicl_d2.lite import needs_detectron2
from hicl_d2.lite.checkpoint import DetectionCheckpointer
from hicl_d2.lite.config import CfgNode
from hicl_d2.lite.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from hicl_d2.lite.data import transforms as T
from hicl_d2.lite.engine import hooks
from hicl_d2.lite.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from hicl_d2.lite.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from hicl_d2.lite.modeling import build_model
from hicl_d2.lite.solver import build_lr_scheduler, build_optimizer
from hicl_d2.lite.utils import comm
from hicl_d2.lite.utils.collect_env import collect_env_info
from hicl_d2.lite.utils.env import seed_all_rng
from hicl_d2.lite.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from hicl_d2.lite.utils.file_io import PathManager
from hicl_d2.lite.utils.logger import setup_logger

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]

logger = logging.getLogger(__name__)


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap ``model`` in DistributedDataParallel (with ``kwargs``) if there is more than one process.

    A model on the CPU gets no device ids, one on a GPU the rank's own.
    """
    if comm.get_world_size() == 1:
        return model
    if "device_ids" not in kwargs and next(model.parameters()).is_cuda:
        kwargs["device_ids"] = [comm.get_local_rank()]
    parallel = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        parallel.register_comm_hook(state=None, hook=fp16_compress_hook)
    return parallel


def default_argument_parser(epilog: str | None = None) -> ArgumentParser:
    """Return the parser of a training script: config, resume, evaluation only, processes, overrides."""
    program = sys.argv[0]
    examples = f"""examples:
  {program} --config-file cfg.yaml --num-gpus 8
  {program} --config-file cfg.yaml MODEL.WEIGHTS weights.pth SOLVER.BASE_LR 0.001
  {program} --config-file cfg.yaml --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT  (on each)
"""
    parser = ArgumentParser(epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--config-file", default="", metavar="FILE", help="config file")
    flag("--resume", action="store_true", help="go on from OUTPUT_DIR's last checkpoint, if it has one")
    flag("--eval-only", action="store_true", help="evaluate and do not train")
    flag("--num-gpus", type=int, default=1, help="processes on this machine, one per GPU")
    flag("--num-machines", type=int, default=1, help="number of machines")
    flag("--machine-rank", type=int, default=0, help="this machine's number, from 0")
    # A port that is the same for every run of one user: a process left over from an earlier run shows itself.
    port = 2**15 + 2**14 + hash(os.getuid() if sys.platform != "win32" else 1) % 2**14
    flag("--dist-url", default=f"tcp://127.0.0.1:{port}", help="where processes meet; auto takes a free port")
    flag("opts", nargs=argparse.REMAINDER, default=None, help="overrides of the config, as KEY VALUE pairs")
    return parser


def default_setup(cfg: CfgNode, args: Namespace) -> None:
    """Start the logs with environment, arguments and config; save config.yaml; seed each rank apart."""
    rank = comm.get_rank()
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        PathManager.mkdirs(cfg.OUTPUT_DIR)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore")
    log = setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)
    log.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    log.info(f"Environment info:\n{collect_env_info()}")
    log.info(f"Command line arguments: {args}")
    if getattr(args, "config_file", ""):
        with PathManager.open(args.config_file, "r") as file:
            log.info(f"Contents of args.config_file={args.config_file}:\n{file.read()}")
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        log.info(f"Running with full config:\n{cfg.dump()}")
        path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with PathManager.open(path, "w") as file:
            file.write(cfg.dump())
        log.info(f"Full config saved to {path}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION:
        log.info(f"Set fp32 precision to {cfg.FLOAT32_PRECISION}")
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
            torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Return the writers of a run: the log line, metrics.json and TensorBoard."""
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]


class DefaultPredictor:
    """The model of a config with its weights, applied to one image at a time.

    ``metadata`` is that of the first test data set.
    """

    def __init__(self, cfg: CfgNode) -> None:
        assert cfg.INPUT.FORMAT in ("RGB", "BGR"), cfg.INPUT.FORMAT
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        short = cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([short, short], cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> Any:
        """Return the model's output for ``original_image`` (H, W, 3), uint8, channels in the order BGR."""
        height, width = original_image.shape[:2]
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        image = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
        return self.model([{"image": tensor, "height": height, "width": width}])[0]


def _of_step(name: str) -> Any:
    """Return a property that stands for an attribute of the trainer that does the step."""

    def put(trainer: "DefaultTrainer", value: Any) -> None:
        setattr(trainer._trainer, name, value)

    return property(lambda trainer: getattr(trainer._trainer, name), put)


class DefaultTrainer(TrainerBase):
    """A trainer that a config defines; override a ``build_*`` class method to change one part.

    Call ``resume_or_load()`` and then ``train()``, which runs SOLVER.MAX_ITER iterations with timing,
    schedule, checkpoints, evaluation and writers as hooks.
    """

    model = _of_step("model")
    data_loader = _of_step("data_loader")
    optimizer = _of_step("optimizer")

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("hicl_d2.lite").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        step = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = step(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on after the last checkpoint if ``resume`` and there is one, else load MODEL.WEIGHTS."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1  # the checkpoint names the iteration that was done

    def build_hooks(self) -> list[HookBase | None]:
        """Return the hooks in their order: what changes the model comes before what saves or writes it."""
        cfg = self.cfg
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise ImportError(needs_detectron2("TEST.PRECISE_BN.ENABLED"))

        def evaluate() -> Any:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if main else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate),
            hooks.PeriodicWriter(self.build_writers(), period=20) if main else None,
        ]

    def build_writers(self) -> list[EventWriter]:
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> Any:  # type: ignore[override]
        """Train, and return the last evaluation's results if TEST.EXPECTED_RESULTS checks them."""
        super().train(self.start_iter, self.max_iter)
        if not len(self.cfg.TEST.EXPECTED_RESULTS) or not comm.is_main_process():
            return None
        assert hasattr(self, "_last_eval_results"), "No evaluation results obtained during training!"
        verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logger.info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator | None:
        """Return what judges the model on ``dataset_name``; a subclass must say."""
        raise NotImplementedError("override build_evaluator() to have DefaultTrainer evaluate")

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | DatasetEvaluator | None = None,
    ) -> dict[str, Any]:
        """Evaluate ``model`` on DATASETS.TEST with ``evaluators`` (one each) or those of build_evaluator.

        Return the results of the one data set, or a dict of them by data set.
        """
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None:
            assert len(names) == len(evaluators), f"{len(names)} != {len(evaluators)}"
        results: dict[str, Any] = OrderedDict()
        for position, name in enumerate(names):
            loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = evaluators[position] if evaluators else cls.build_evaluator(cfg, name)
            except NotImplementedError:
                logger.warning("No evaluator: pass `evaluators` to test(), or override build_evaluator().")
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                logger.info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Return ``cfg`` scaled from SOLVER.REFERENCE_WORLD_SIZE processes (0: as it is) to ``num_workers``.

        Batch and learning rate grow with the processes, iterations and periods shrink. Source: Goyal et al.,
        "Accurate, Large Minibatch SGD", https://arxiv.org/abs/1706.02677.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        assert cfg.SOLVER.IMS_PER_BATCH % reference == 0, "Invalid REFERENCE_WORLD_SIZE in config!"
        scale = num_workers / reference
        scaled = cfg.clone()
        scaled.defrost()
        solver = scaled.SOLVER
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
        solver.BASE_LR *= scale
        for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[key] = round(solver[key] / scale)
        solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
        scaled.TEST.EVAL_PERIOD = round(scaled.TEST.EVAL_PERIOD / scale)
        solver.REFERENCE_WORLD_SIZE = num_workers
        logger.info(
            f"Auto-scaling the config to batch_size={solver.IMS_PER_BATCH}, learning_rate={solver.BASE_LR}, "
            f"max_iter={solver.MAX_ITER}, warmup={solver.WARMUP_ITERS}."
        )
        if cfg.is_frozen():
            scaled.freeze()
        return scaled
