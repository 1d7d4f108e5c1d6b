"""Data sets, their mapper and their loaders. Importing this registers the data sets and reads nothing."""

from hicl_d2.data.custom import register_custom, register_semantic_dataset
from hicl_d2.data.datasets import register_all
from hicl_d2.data.loader import build_test_loader, build_train_loader
from hicl_d2.data.mapper import SemanticMapper
from hicl_d2.data.preflight import check_datasets

register_all()

__all__ = [
    "SemanticMapper",
    "build_test_loader",
    "build_train_loader",
    "check_datasets",
    "register_all",
    "register_custom",
    "register_semantic_dataset",
]
