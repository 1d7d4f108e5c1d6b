"""Results of an evaluation: logged as CSV, flattened, compared with expected values."""

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

from hicl_d2.lite.config import CfgNode

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics of every task as comma-separated lines, without those per class (``IoU-road``)."""
    assert isinstance(results, Mapping) or not results, f"results are a dictionary of tasks, not {results!r}"
    for task, scores in results.items():
        if not isinstance(scores, Mapping):
            logger.info("copypaste: %s=%s", task, scores)
            continue
        main = {name: score for name, score in scores.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{score:.4f}" for score in main.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare ``results`` with the rows (task, metric, value, tolerance) of ``cfg.TEST.EXPECTED_RESULTS``.

    Return True if all hold or none is given; otherwise log both and exit with status 1.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    if not expected:
        return True
    if all(_holds(results, *row) for row in expected):
        logger.info("Results verification passed.")
        return True
    logger.error("Result verification failed!")
    logger.error("Expected Results: %s", expected)
    logger.error("Actual Results: %s", pprint.pformat(results))
    sys.exit(1)


def _holds(
    results: Mapping[str, Mapping[str, float]], task: str, metric: str, expected: float, tolerance: float
) -> bool:
    actual = results[task].get(metric)
    return actual is not None and math.isfinite(actual) and abs(actual - expected) <= tolerance


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested results as one level, the names joined by slashes: ``{"sem_seg/mIoU": ...}``."""
    flat: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}/{inner}": score for inner, score in flatten_results_dict(value).items()})
        else:
            flat[name] = value
    return flat
