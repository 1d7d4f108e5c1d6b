"""Training: the loop and its hooks, the default trainer, launching on several processes."""

from hicl_d2.lite import beyond_lite
from hicl_d2.lite.engine import hooks
from hicl_d2.lite.engine.defaults import (
    DefaultPredictor,
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from hicl_d2.lite.engine.launch import DEFAULT_TIMEOUT, launch
from hicl_d2.lite.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "AMPTrainer",
    "DEFAULT_TIMEOUT",
    "DefaultPredictor",
    "DefaultTrainer",
    "HookBase",
    "SimpleTrainer",
    "TrainerBase",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "hooks",
    "launch",
]

__getattr__ = beyond_lite(__name__, "LazyConfig")
