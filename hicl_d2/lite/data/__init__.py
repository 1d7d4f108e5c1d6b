"""Data sets, transforms and samplers for semantic segmentation, under Detectron2's names."""

from hicl_d2.lite.data import detection_utils
from hicl_d2.lite.data.catalog import DatasetCatalog, MetadataCatalog

__all__ = ["DatasetCatalog", "MetadataCatalog", "detection_utils"]
