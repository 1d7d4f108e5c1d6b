"""Data: catalogs, mapper, samplers and loaders. The transforms are in :mod:`hicl_d2.d2.transforms`."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.data import (
        DatasetCatalog,
        DatasetMapper,
        MetadataCatalog,
        build_detection_test_loader,
        build_detection_train_loader,
        detection_utils,
        get_detection_dataset_dicts,
        samplers,
    )
    from detectron2.data.samplers import InferenceSampler, TrainingSampler
else:
    from hicl_d2.lite.data import (
        DatasetCatalog,
        DatasetMapper,
        MetadataCatalog,
        build_detection_test_loader,
        build_detection_train_loader,
        detection_utils,
        get_detection_dataset_dicts,
        samplers,
    )
    from hicl_d2.lite.data.samplers import InferenceSampler, TrainingSampler

__all__ = [
    "DatasetCatalog",
    "DatasetMapper",
    "InferenceSampler",
    "MetadataCatalog",
    "TrainingSampler",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "detection_utils",
    "get_detection_dataset_dicts",
    "samplers",
]
