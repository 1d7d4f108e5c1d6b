"""Evaluators of the user's own, which run beside the project's in every evaluation."""

from collections.abc import Callable, Sequence
from typing import Any

from hicl_d2.command.errors import InputError, listing, nearest, one_line
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.evaluation import DatasetEvaluator
from hicl_d2.evaluation.metrics import flat

__all__ = ["build_registered", "register_evaluator"]

Builder = Callable[[CfgNode, str, str], DatasetEvaluator]

_BUILDERS: dict[str, Builder] = {}


def register_evaluator(name: str) -> Callable[[Builder], Builder]:
    """Make an evaluator known under ``name``, which TEST.EVALUATORS then takes; a decorator of its class or function.

    It is called with the config, the name of the data set and a folder for files. What its ``evaluate`` returns,
    ``{"task": {"metric": number}}``, stands in result.json as ``task/metric``; None is a metric that nothing was measured
    of. Raises ValueError for a name that is taken.
    """

    def register(builder: Builder) -> Builder:
        known = _BUILDERS.get(name)
        # A module that is loaded again defines its class again.
        if known is not None and (known.__module__, known.__qualname__) != (
            builder.__module__,
            builder.__qualname__,
        ):
            raise ValueError(f"an evaluator is called {name!r} already")
        _BUILDERS[name] = builder
        return builder

    return register


def build_registered(cfg: CfgNode, dataset_name: str, output_dir: str) -> list[DatasetEvaluator]:
    """Return the evaluators that TEST.EVALUATORS names. Raises InputError for a name that is not registered."""
    evaluators = []
    for name in cfg.TEST.EVALUATORS:
        if name not in _BUILDERS:
            known = f"known: {listing(_BUILDERS)}" if _BUILDERS else "none is registered; see IMPORTS"
            raise InputError(f"TEST.EVALUATORS names {name!r}{nearest(name, _BUILDERS)}; {known}")
        evaluators.append(_Numbers(name, _BUILDERS[name](cfg, dataset_name, output_dir)))
    return evaluators


class _Numbers(DatasetEvaluator):
    """An evaluator whose results are {task: {metric: float}}, as those that print and store them need."""

    def __init__(self, name: str, evaluator: DatasetEvaluator) -> None:
        self._name = name
        self._evaluator = evaluator

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[Any]) -> None:
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return what the evaluator does. Raises InputError for what has no numbers by task and metric."""
        results = self._evaluator.evaluate()
        if results is None:
            return None
        try:
            return {task: flat(scores) for task, scores in results.items()}
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(
                f"TEST.EVALUATORS: evaluate of {self._name!r} must return {{task: {{metric: number}}}} ({one_line(error)})"
            ) from None
