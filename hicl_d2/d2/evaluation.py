"""Evaluation: the loop over a data set and the evaluators it feeds."""

from hicl_d2.d2 import USES_DETECTRON2

if USES_DETECTRON2:
    from detectron2.evaluation import (
        DatasetEvaluator,
        DatasetEvaluators,
        inference_on_dataset,
        print_csv_format,
        verify_results,
    )
else:
    from hicl_d2.lite.evaluation import (
        DatasetEvaluator,
        DatasetEvaluators,
        inference_on_dataset,
        print_csv_format,
        verify_results,
    )

__all__ = [
    "DatasetEvaluator",
    "DatasetEvaluators",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]
