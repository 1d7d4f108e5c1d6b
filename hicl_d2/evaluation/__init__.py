"""Scores that can be trusted: counts that stream over the whole split, and ways to run a model on an image."""

from hicl_d2.evaluation.confusion import ConfusionMatrix
from hicl_d2.evaluation.evaluator import SemSegConfusionEvaluator, build_evaluator
from hicl_d2.evaluation.inference import MultiScale, SlidingWindow, for_testing
from hicl_d2.evaluation.prediction import predicted_classes
from hicl_d2.evaluation.registry import register_evaluator

__all__ = [
    "ConfusionMatrix",
    "MultiScale",
    "SemSegConfusionEvaluator",
    "SlidingWindow",
    "build_evaluator",
    "for_testing",
    "predicted_classes",
    "register_evaluator",
]
