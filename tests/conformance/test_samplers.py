"""The order of training and test records is Detectron2's."""

import itertools
from typing import Any

import pytest

from tests.conformance.runtimes import golden, load, needs_detectron2, plain


def _first(sampler: Any, count: int) -> list[int]:
    return [int(index) for index in itertools.islice(iter(sampler), count)]


def figures(runtime: str) -> dict[str, Any]:
    samplers = load(runtime, "data.samplers")
    split = samplers.InferenceSampler._get_local_indices
    return {
        "seed 42": _first(samplers.TrainingSampler(7, seed=42), 14),
        "seed -1": _first(samplers.TrainingSampler(7, seed=-1), 14),
        "seed 0, larger": _first(samplers.TrainingSampler(367, seed=0), 400),
        "no shuffle": _first(samplers.TrainingSampler(3, shuffle=False, seed=1), 7),
        "inference": list(samplers.InferenceSampler(5)),
        "inference length": len(samplers.InferenceSampler(5)),
        "inference over processes": {
            f"{total} over {world}": [list(split(total, world, rank)) for rank in range(world)]
            for total, world in [(10, 3), (3, 4), (8, 2)]
        },
        "refused": [_refusal(samplers, size) for size in (0, -1, 2.0)],
    }


def _refusal(samplers: Any, size: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        samplers.TrainingSampler(size, seed=0)
    return caught.type.__name__


def test_lite_equals_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("samplers")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("samplers")
