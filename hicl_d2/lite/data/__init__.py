"""Data sets, transforms, samplers and loaders for semantic segmentation, under Detectron2's names."""

from hicl_d2.lite import beyond_lite
from hicl_d2.lite.data import detection_utils, samplers, transforms
from hicl_d2.lite.data.build import (
    DatasetFromList,
    MapDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from hicl_d2.lite.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from hicl_d2.lite.data.dataset_mapper import DatasetMapper

__all__ = [
    "DatasetCatalog",
    "DatasetFromList",
    "DatasetMapper",
    "MapDataset",
    "Metadata",
    "MetadataCatalog",
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "detection_utils",
    "get_detection_dataset_dicts",
    "samplers",
    "transforms",
]

__getattr__ = beyond_lite(
    __name__, "ToIterableDataset datasets load_proposals_into_dataset print_instances_class_histogram"
)
