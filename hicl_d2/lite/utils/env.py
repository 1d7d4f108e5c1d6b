"""The random state of a process."""

import logging
import os
import random
import time

import numpy as np
import torch

__all__ = ["seed_all_rng"]


def seed_all_rng(seed: int | None = None) -> None:
    """Seed the generators of torch (every device), NumPy and Python; without a seed, draw one and log it."""
    if seed is None:
        seed = (os.getpid() + time.time_ns() // 1000 + int.from_bytes(os.urandom(2), "big")) % 2**32
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    torch.cuda.manual_seed_all(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)  # for the processes that this one starts
