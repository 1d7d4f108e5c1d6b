"""Scores that can be trusted: one streaming confusion matrix over the whole split."""

from hicl_d2.evaluation.confusion import ConfusionMatrix
from hicl_d2.evaluation.evaluator import SemSegConfusionEvaluator, build_evaluator
from hicl_d2.evaluation.prediction import predicted_classes

__all__ = ["ConfusionMatrix", "SemSegConfusionEvaluator", "build_evaluator", "predicted_classes"]
