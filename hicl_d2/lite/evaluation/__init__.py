"""Evaluation: the loop over a data set, the interface of evaluators, and what is done with their results."""

from hicl_d2.lite.evaluation.evaluator import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from hicl_d2.lite.evaluation.testing import print_csv_format, verify_results

__all__ = [
    "DatasetEvaluator",
    "DatasetEvaluators",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]
