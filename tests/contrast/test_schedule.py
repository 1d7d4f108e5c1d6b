"""The ramp on the contrast's weight."""

import pytest

from hicl_d2.contrast import ramp


@pytest.mark.parametrize(
    ("iteration", "warmup", "start", "expected"),
    [
        (0, 100, 0, 0.0),
        (50, 100, 0, 0.5),
        (100, 100, 0, 1.0),
        (1000, 100, 0, 1.0),
        (9, 0, 10, 0.0),
        (10, 0, 10, 1.0),
        (10, 20, 10, 0.0),
        (20, 20, 10, 0.5),
        (31, 20, 10, 1.0),
        (0, 0, 0, 1.0),
    ],
)
def test_rises_from_nothing_to_one(iteration: int, warmup: int, start: int, expected: float) -> None:
    assert ramp(iteration, warmup, start) == pytest.approx(expected)
