"""From a command line to a result: check, start the processes, train or evaluate, report."""

import json
import logging
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hicl_d2.command.address import masked
from hicl_d2.command.console import console
from hicl_d2.command.errors import InputError, counted, one_line
from hicl_d2.command.files import occupied, read_json, remove_unfinished, write_json, write_text
from hicl_d2.command.layout import RESULT
from hicl_d2.d2 import RUNTIME
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.evaluation import verify_results
from hicl_d2.d2.utils import collect_env_info, comm
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.data.preflight import unseen_classes
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.engine.trainer import Trainer
from hicl_d2.evaluation import for_testing
from hicl_d2.evaluation.metrics import flat
from hicl_d2.modeling.settings import gives_semantics
from hicl_d2.run import processes, result
from hicl_d2.run.logs import RunLog, run_log
from hicl_d2.run.manifest import (
    changes_on_resume,
    check_standing,
    config_hash,
    read_manifest,
    standing,
    write_manifest,
)
from hicl_d2.run.setup import (
    check_same_config,
    configure_torch,
    data_of_all,
    device_in_words,
    resolve,
    resolve_device,
)
from hicl_d2.tools.start import checked_config
from hicl_d2.visualization import draw_pictures

logger = logging.getLogger(__name__)

EVALUATION = "evaluation.json"


def main(args: Namespace) -> None:
    """Train or evaluate what ``args`` (of :func:`hicl_d2.tools.arguments.train_arguments`) asks for."""
    processes.silence_all_but_the_first()
    cfg, state = checked_config(args)
    if state == "finished":
        _show_finished(cfg)
        return
    processes.start(_run, args, resolve_device(cfg), (cfg, args))


def _run(cfg: CfgNode, args: Namespace) -> None:
    """Do the work of one process."""
    with run_log() as log:
        check_same_config(cfg)
        resolved = resolve(cfg)
        configure_torch(resolved, training=not args.eval_only)
        if args.eval_only:
            _evaluate(cfg, resolved, args, log)
        else:
            _train(cfg, resolved, args, log)


def _train(cfg: CfgNode, resolved: CfgNode, args: Namespace, log: RunLog) -> None:
    data = data_of_all(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))
    found = standing(cfg, args.resume) if comm.is_main_process() else None
    trainer = Trainer(resolved)
    changes = _changes(cfg, resolved, trainer, data) if args.resume else []
    trainer.resume_or_load(resume=args.resume)
    _make_output(resolved)
    busy = f"another process is running in {resolved.OUTPUT_DIR}; wait for it or choose another OUTPUT_DIR"
    with occupied(resolved.OUTPUT_DIR, busy) if comm.is_main_process() else nullcontext():
        if found is not None:
            check_standing(cfg, args.resume, found)
        _open_log(cfg, resolved, args, log)
        if comm.is_main_process():
            _describe_run(cfg, resolved, trainer, data)
        console.say(_headline(resolved, trainer))
        console.say(device_in_words(cfg, resolved.MODEL.DEVICE))
        for change in changes:
            console.say(f"changed since the run began: {change}")
            logger.info(f"changed since the run began: {change}")
        if comm.is_main_process() and (absent := unseen_classes(resolved)):
            logger.warning(absent)
        results = trainer.train()
        if comm.is_main_process():
            _finish(cfg, resolved, trainer, results)


def _changes(cfg: CfgNode, resolved: CfgNode, trainer: Trainer, data: dict[str, str]) -> list[str]:
    """Return what is not as it was when the run in OUTPUT_DIR began; InputError if it cannot go on so."""
    manifest = read_manifest(cfg.OUTPUT_DIR)
    if manifest is None:
        return []
    return changes_on_resume(
        manifest,
        cfg,
        comm.get_world_size(),
        device=resolved.MODEL.DEVICE,
        images=trainer.data_loader.num_images,
        data=data,
    )


def _describe_run(cfg: CfgNode, resolved: CfgNode, trainer: Trainer, data: dict[str, str]) -> None:
    """Write the manifest, once, and config.yaml as Detectron2 has it; clear away what a killed run left."""
    remove_unfinished(resolved.OUTPUT_DIR)
    write_manifest(
        cfg,
        resolved.SEED,
        comm.get_world_size(),
        device=resolved.MODEL.DEVICE,
        images=trainer.data_loader.num_images,
        data=data,
    )
    write_text(Path(resolved.OUTPUT_DIR) / "config.yaml", masked(resolved.dump()))


def _finish(cfg: CfgNode, resolved: CfgNode, trainer: Trainer, results: dict[str, Any]) -> None:
    metrics = flat(results)
    content = result.training_result(
        cfg,
        iterations=trainer.max_iter,
        metrics=metrics,
        best=trainer.checkpointer.best(),
        seconds=trainer.stopwatch.seconds(),
        parameters=trainer.parameters,
        seed=resolved.SEED,
        device=resolved.MODEL.DEVICE,
    )
    path = result.write_result(cfg, content)  # before pictures, which are no reason to lose it
    _report(resolved, metrics, path, _draw_pictures(resolved, trainer.model))
    verify_results(resolved, results)


def _evaluate(cfg: CfgNode, resolved: CfgNode, args: Namespace, log: RunLog) -> None:
    if comm.get_world_size() > 1:
        data_of_all(cfg.DATASETS.TEST)
    model = Trainer.build_model(resolved)
    checkpoints = Checkpoints(model, resolved.OUTPUT_DIR)
    weights = resolved.MODEL.WEIGHTS
    if args.resume and checkpoints.has_checkpoint():
        weights = checkpoints.get_checkpoint_file()
    checkpoints.load_weights(weights, whole=True)
    _make_output(resolved)
    _open_log(cfg, resolved, args, log)
    console.say(device_in_words(cfg, resolved.MODEL.DEVICE))
    results = Trainer.test(resolved, model)
    if not comm.is_main_process():
        return
    metrics = flat(results)
    path = Path(resolved.OUTPUT_DIR) / EVALUATION
    write_json(path, result.evaluation_result(cfg, metrics, weights, resolved.MODEL.DEVICE))
    _report(resolved, metrics, path, _draw_pictures(resolved, model))
    verify_results(resolved, results)


def _make_output(cfg: CfgNode) -> None:
    """Make the output directory, now that all is known to be good."""
    if comm.is_main_process():
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    comm.synchronize()


def _open_log(cfg: CfgNode, resolved: CfgNode, args: Namespace, log: RunLog) -> None:
    """Start the log with what there is to know about the run."""
    log.open(resolved.OUTPUT_DIR)
    rank = f"rank {comm.get_rank()} of {comm.get_world_size()}"
    logger.info(f"Runtime: {RUNTIME}; {rank}; arguments: {args}")
    logger.info(f"Environment info:\n{collect_env_info()}")
    logger.info(f"Config {config_hash(cfg)}, seed {resolved.SEED}:\n{resolved.dump()}")


def _headline(cfg: CfgNode, trainer: Trainer) -> str:
    names = ", ".join(cfg.DATASETS.TRAIN)
    branch = f" with {cfg.MODEL.HICL.CONTRAST}" if trainer.parameters["branch"] else ""
    count = comm.get_world_size()
    where = f"{cfg.MODEL.DEVICE}{f' x {count}' if count > 1 else ''}"
    return (
        f"{cfg.MODEL.META_ARCHITECTURE}{branch} on {names}: iterations {trainer.start_iter} to "
        f"{trainer.max_iter} of {counted(cfg.SOLVER.IMS_PER_BATCH, 'image')}, {where}, seed {cfg.SEED}; "
        f"log in {Path(cfg.OUTPUT_DIR) / 'log.txt'}"
    )


def _draw_pictures(cfg: CfgNode, model: Any) -> Path | None:
    """Draw test images beside truth and prediction; return their folder. What cannot be drawn is a warning."""
    if not cfg.TEST.PICTURES or not len(cfg.DATASETS.TEST) or not gives_semantics(cfg):
        return None
    name = cfg.DATASETS.TEST[0]
    try:
        mapper, model = SemanticMapper(cfg, is_train=False), for_testing(cfg, model)
        drawn = draw_pictures(mapper, model, name, cfg.OUTPUT_DIR, cfg.TEST.PICTURES)
    except Exception as error:  # the result is written: nothing that a picture raises may end the run
        logger.warning(f"no pictures of {name} were drawn: {type(error).__name__}: {one_line(error)}")
        logger.info("why no pictures were drawn", exc_info=error)
        return None
    return Path(cfg.OUTPUT_DIR) / "pictures" if drawn else None


def _report(cfg: CfgNode, metrics: dict[str, Any], path: Path, pictures: Path | None) -> None:
    """Show the result, which is on the disk: that nobody listens any more is no failure of the run."""
    bars = sys.stdout.isatty()
    lines = [
        f"\n{name}\n\n{result.table(cfg, metrics, name, bars=bars)}\n"
        for name in dict.fromkeys(cfg.DATASETS.TEST)
    ]
    lines.append(f"result: {path}")
    if pictures is not None:
        lines.append(f"pictures: {pictures}")
    try:
        for line in lines:
            console.show(line)
    except InputError as error:
        logger.warning(f"{error}; the result is in {path}")


def _show_finished(cfg: CfgNode) -> None:
    """Show the result of a run that is done, for a second ``--resume``."""
    path = Path(cfg.OUTPUT_DIR) / RESULT
    try:
        metrics = read_json(path)["metrics"]["last"]
    except (KeyError, TypeError, json.JSONDecodeError):
        metrics = {}
    console.say(f"{cfg.OUTPUT_DIR} holds this run, finished; nothing to do")
    _report(cfg, metrics, path, None)
