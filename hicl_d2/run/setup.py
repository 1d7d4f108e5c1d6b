"""What is settled before a run starts: good input, its seed, its device. Nothing is written here."""

import logging
import resource
import secrets
from argparse import Namespace
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from hicl_d2.command.address import check_address, is_address, local_file
from hicl_d2.command.errors import InputError, counted, listing, nearest
from hicl_d2.command.files import check_regular, check_writable
from hicl_d2.command.imports import import_modules
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.utils import comm, seed_all_rng
from hicl_d2.data.custom import register_custom
from hicl_d2.data.fingerprint import fingerprint
from hicl_d2.data.loader import check_sampler
from hicl_d2.data.preflight import check_datasets, check_instance_data, test_image_sizes
from hicl_d2.engine.checkpoint import LAST, named_last, resumable_checkpoints
from hicl_d2.engine.memory import keep_freed_memory
from hicl_d2.engine.optimizer import build_lr_scheduler, build_optimizer
from hicl_d2.engine.precision import PRECISIONS
from hicl_d2.engine.scaling import scaled_config
from hicl_d2.engine.trackers import check_trackers
from hicl_d2.evaluation import build_evaluator, for_testing
from hicl_d2.evaluation.instances import check_kind
from hicl_d2.modeling.check import check_model_config
from hicl_d2.modeling.efficientnet_lite.weights import PREFIX, package_file
from hicl_d2.modeling.hicl import check_branch
from hicl_d2.modeling.memory_format import check_memory_format
from hicl_d2.modeling.settings import needs_instances
from hicl_d2.run.manifest import State, changed_keys, check_output, differences, identity, read_manifest
from hicl_d2.run.processes import count

logger = logging.getLogger(__name__)

# What torch calls the precisions of float32 products.
FLOAT32_PRECISIONS = ("highest", "high", "medium")
# Files that a run has open without loaders' workers, and for each of them, at least; and what is asked of the system.
FILES, FILES_OF_WORKER, MOST_FILES = 64, 16, 65536


def check_before_start(cfg: CfgNode, args: Namespace) -> State:
    """Check all that can be known without building the model; return what starting means for OUTPUT_DIR.

    Raises InputError for an unknown name, a data set or a weights file that is not there, numbers that do not
    fit together, and an OUTPUT_DIR that cannot be written or holds another run.
    """
    check_model_config(cfg)
    check_branch(cfg)
    _check_numbers(cfg, args)
    _check_weights(cfg, args)
    check_writable(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    state: State = "fresh" if args.eval_only else check_output(cfg, args.resume)
    if not args.eval_only:
        check_instance_data(cfg)
    check_datasets(cfg, train=not args.eval_only)
    test_image_sizes(cfg)
    _check_testing(cfg)
    return state


def _check_numbers(cfg: CfgNode, args: Namespace) -> None:
    processes = count(args)
    if not args.eval_only:
        cfg = scaled_config(cfg, processes)
        _check_training(cfg, processes)
    solver = cfg.SOLVER
    if solver.AMP.DTYPE not in PRECISIONS:
        raise InputError(
            f"SOLVER.AMP.DTYPE is {solver.AMP.DTYPE!r}{nearest(solver.AMP.DTYPE, PRECISIONS)}; "
            f"it is one of {listing(PRECISIONS)}"
        )
    if cfg.FLOAT32_PRECISION not in ("", *FLOAT32_PRECISIONS):
        raise InputError(
            f"FLOAT32_PRECISION is {cfg.FLOAT32_PRECISION!r}{nearest(cfg.FLOAT32_PRECISION, FLOAT32_PRECISIONS)}; it is one of "
            f"{listing(FLOAT32_PRECISIONS)}, or empty"
        )
    check_memory_format(cfg)
    check_trackers(cfg)
    if solver.RESCALE_INTERVAL and solver.WARMUP_ITERS >= solver.MAX_ITER:
        raise InputError(
            f"SOLVER.RESCALE_INTERVAL leaves nothing after SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} of SOLVER.MAX_ITER "
            f"{counted(solver.MAX_ITER, 'iteration')}; warm up for fewer"
        )
    _allow_open_files(cfg.DATALOADER.NUM_WORKERS)
    if not cfg.DATASETS.TEST and args.eval_only:
        raise InputError("DATASETS.TEST names no data set to evaluate on")


def _check_training(cfg: CfgNode, processes: int) -> None:
    """Raise InputError for names of the optimiser, its schedule and the sampler, and for a batch that cannot be shared."""
    solver = cfg.SOLVER
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    build_lr_scheduler(cfg, optimizer)
    check_sampler(cfg)
    share, rest = divmod(solver.IMS_PER_BATCH, processes)
    if rest:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, which {processes} processes cannot share evenly"
        )
    if share % solver.ACCUMULATE:
        raise InputError(
            f"a process has {counted(share, 'image')} of a batch, which SOLVER.ACCUMULATE {solver.ACCUMULATE} cannot divide "
            "evenly"
        )


def _allow_open_files(workers: int) -> None:
    """Raise this process's limit of open files as far as the system lets it; InputError if loaders cannot work with that.

    The tensors that a worker hands over are files until they have arrived.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MOST_FILES)), hard))
    least = FILES + FILES_OF_WORKER * workers
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if workers and allowed != resource.RLIM_INFINITY and allowed < least:
        raise InputError(
            f"DATALOADER.NUM_WORKERS is {workers}, which takes {least} open files or more, and {allowed} are allowed here "
            "(ulimit -n); raise the limit or give fewer workers"
        )


def _check_testing(cfg: CfgNode) -> None:
    """Raise InputError for what would end the run at its first evaluation."""
    for_testing(cfg, torch.nn.Identity())
    for name in cfg.DATASETS.TEST:
        if needs_instances(cfg):  # the evaluators may write files as soon as they are built
            check_kind(name)
        else:
            build_evaluator(cfg, name)
    for row in cfg.TEST.EXPECTED_RESULTS:
        if not isinstance(row, list | tuple) or [*map(type, row[:2])] != [str, str] or len(row) != 4:
            raise InputError(
                f"TEST.EXPECTED_RESULTS has a row {row!r}; a row is [task, metric, value, tolerance], as ['sem_seg', "
                "'mIoU', 71.5, 0.3]"
            )


def _check_weights(cfg: CfgNode, args: Namespace) -> None:
    weights = cfg.MODEL.WEIGHTS
    if weights.startswith(PREFIX):
        package_file(weights)
    else:
        check_address(weights)
    name = named_last(cfg.OUTPUT_DIR)
    if args.resume and name is not None:
        is_there = (Path(cfg.OUTPUT_DIR) / name).is_file()
        if not is_there and (args.eval_only or not resumable_checkpoints(cfg.OUTPUT_DIR)):
            raise InputError(
                f"{Path(cfg.OUTPUT_DIR) / LAST} names {name or 'nothing'}, which is not there; write an existing file's name "
                "into it"
            )
    elif weights and not is_address(weights):
        if not local_file(weights).exists():
            raise InputError(f"weights file {weights} (MODEL.WEIGHTS) does not exist")
        if not local_file(weights).is_dir():
            check_regular(local_file(weights), "weights file")
    elif args.eval_only and not weights:
        file, last = args.weights_by
        other = (
            f", or {last} for {Path(cfg.OUTPUT_DIR) / name}"
            if name
            else f" (OUTPUT_DIR {cfg.OUTPUT_DIR} holds no checkpoint)"
        )
        raise InputError(f"nothing says which weights to evaluate: give {file}{other}")


def known_device(name: str) -> torch.device | None:
    """Return the device of this name where it is a CPU or a CUDA device, whether or not it is there; None for any other."""
    try:
        device = torch.device(name)
    except RuntimeError:
        return None
    return device if device.type in ("cuda", "cpu") else None


def resolve_device(cfg: CfgNode) -> str:
    """Return where the model runs: MODEL.DEVICE, or the CPU where there is no CUDA.

    Raises InputError for a device that is neither, and for a GPU that this machine does not have.
    """
    name = cfg.MODEL.DEVICE
    device = known_device(name)
    if device is None:
        raise InputError(f"MODEL.DEVICE is {name!r}; it must be cuda, cuda:N or cpu")
    if device.type == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        logger.info(f"MODEL.DEVICE is {name} and there is no CUDA here: running on the CPU")
        return "cpu"
    found = torch.cuda.device_count()
    if (device.index or 0) >= found:
        raise InputError(
            f"MODEL.DEVICE is {name}, but this machine has {counted(found, 'GPU')}, cuda:0 to cuda:{found - 1}"
        )
    return name


def device_in_words(cfg: CfgNode, device: str) -> str:
    """Return which device, of :func:`resolve_device`, a run of ``cfg`` uses, and why where it is the CPU."""
    if device != "cpu":
        return f"running on {device}: {torch.cuda.get_device_name(device)}"
    is_asked = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    return f"running on the CPU: {'MODEL.DEVICE is cpu' if is_asked else 'no CUDA device'}"


def check_same_config(cfg: CfgNode) -> None:
    """Raise InputError, in every process, if the processes of this run were started with different configs.

    That is a mistake on one of several machines, or another run that meets at the same address.
    """
    configs = comm.all_gather(identity(cfg))
    for rank, other in enumerate(configs):
        if keys := changed_keys(configs[0], other):
            where = ("in process 0", f"in process {rank}")
            raise InputError(
                f"the processes of this run have different configs: {differences(keys, configs[0], other, where)}; give all "
                "machines the same command, and each run a port of its own (--dist-url)"
            )


def data_of_all(names: Iterable[str]) -> dict[str, str]:
    """Return the fingerprint of each data set of ``names``, which one process of each machine takes.

    Raises InputError, in every process, if a machine has other files, as of a copy that is not whole: its processes would
    take other images than the stream has.
    """
    own = {name: fingerprint(name) for name in names} if comm.get_local_rank() == 0 else None
    found: list[dict[str, str]] = comm.all_gather(own)
    for rank, other in enumerate(found):
        if other is not None and (changed := changed_keys(found[0], other)):
            raise InputError(
                f"the files of {changed[0]} (names or sizes) are others in process {rank} than in process 0; give all "
                "machines the same files"
            )
    return found[0]


def resolve(cfg: CfgNode) -> CfgNode:
    """Return ``cfg`` with the device and the seed of this run filled in; seed this process, and make
    known in it what IMPORTS and DATASETS.CUSTOM name.

    A negative SEED takes the seed of the run in OUTPUT_DIR, if it holds one, else a new one, the same in all
    processes.
    """
    import_modules(cfg.IMPORTS)
    register_custom(cfg)
    seed = cfg.SEED
    if seed < 0:
        manifest = read_manifest(cfg.OUTPUT_DIR)
        seed = comm.all_gather(manifest["seed"] if manifest else secrets.randbelow(2**31))[0]
    resolved = cfg.clone()
    resolved.defrost()
    resolved.SEED = seed
    resolved.MODEL.DEVICE = resolve_device(cfg)
    resolved.freeze()
    seed_all_rng(seed + comm.get_rank())
    return resolved


def configure_torch(cfg: CfgNode, *, training: bool) -> None:
    """Set what the config says about cuDNN and the precision of float32 products; on a CPU keep freed memory."""
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    if training:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"
