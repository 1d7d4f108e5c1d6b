"""Data: catalogs and samplers. The transforms are in :mod:`hicl_d2.d2.transforms`."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
    from detectron2.data.samplers import InferenceSampler, TrainingSampler
else:
    from hicl_d2.lite.data import DatasetCatalog, MetadataCatalog, detection_utils
    from hicl_d2.lite.data.samplers import InferenceSampler, TrainingSampler

__all__ = ["DatasetCatalog", "InferenceSampler", "MetadataCatalog", "TrainingSampler", "detection_utils"]
