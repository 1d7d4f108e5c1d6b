"""Evaluation: the loop over a data set, the evaluators it feeds, and what is done with their results."""

from hicl_d2.lite import beyond_lite
from hicl_d2.lite.evaluation.evaluator import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)
from hicl_d2.lite.evaluation.sem_seg_evaluation import SemSegEvaluator
from hicl_d2.lite.evaluation.testing import flatten_results_dict, print_csv_format, verify_results

__all__ = [
    "DatasetEvaluator",
    "DatasetEvaluators",
    "SemSegEvaluator",
    "flatten_results_dict",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]

__getattr__ = beyond_lite(
    __name__,
    "COCOEvaluator COCOPanopticEvaluator CityscapesInstanceEvaluator CityscapesSemSegEvaluator LVISEvaluator "
    "PascalVOCDetectionEvaluator RotatedCOCOEvaluator",
)
