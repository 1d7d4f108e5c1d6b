"""Utilities: communication, event storage and its writers, files, random state, registries."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.utils import comm
    from detectron2.utils.collect_env import collect_env_info
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import (
        CommonMetricPrinter,
        EventStorage,
        EventWriter,
        TensorboardXWriter,
        get_event_storage,
    )
    from detectron2.utils.file_io import PathManager
    from detectron2.utils.registry import Registry
else:
    from hicl_d2.lite.utils import comm
    from hicl_d2.lite.utils.collect_env import collect_env_info
    from hicl_d2.lite.utils.env import seed_all_rng
    from hicl_d2.lite.utils.events import (
        CommonMetricPrinter,
        EventStorage,
        EventWriter,
        TensorboardXWriter,
        get_event_storage,
    )
    from hicl_d2.lite.utils.file_io import PathManager
    from hicl_d2.lite.utils.registry import Registry

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "PathManager",
    "Registry",
    "TensorboardXWriter",
    "collect_env_info",
    "comm",
    "get_event_storage",
    "seed_all_rng",
]
