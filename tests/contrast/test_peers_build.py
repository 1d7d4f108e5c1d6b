"""Contrasts by name, and which settings reach them."""

import pytest
import torch
from torch import Tensor

from hicl_d2.contrast import CONTRASTS, Contrast, build_contrast
from hicl_d2.contrast.build import settings_of
from hicl_d2.contrast.peers import PEERS, MultiScaleContrast, PixelContrast, PixelMemoryContrast
from hicl_d2.contrast.peers.contextual import boundary_distance, nearest_to_boundary


@pytest.mark.parametrize("name", CONTRASTS)
def test_every_contrast_is_built_from_one_set_of_settings(name: str) -> None:
    settings = {
        "temperature": 0.3,
        "dim": 4,
        "anchors": 32,
        "windows": (1, 2),
        "hard_share": 0.25,
        "bank_size": 2,
    }
    contrast = build_contrast(name, 6, 3, **settings)
    assert contrast.temperature == 0.3
    labels = torch.randint(3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    assert contrast(torch.randn(2, 6, 8, 8), labels).loss.isfinite()


def test_names_are_those_of_the_classes() -> None:
    assert set(CONTRASTS) == {"hicl", *PEERS}
    assert type(build_contrast("pixel", 6, 3)) is PixelContrast
    assert type(build_contrast("multiscale", 6, 3)) is MultiScaleContrast


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(
        ValueError, match=r"'pixl'.*hicl, pixel, pixel_memory, multiscale, region, contextual"
    ):
        build_contrast("pixl", 6, 3)


def test_setting_that_no_contrast_takes_lists_the_settings() -> None:
    with pytest.raises(ValueError, match=r"no contrast takes temprature; there are .*temperature"):
        build_contrast("pixel", 6, 3, temprature=0.1)


def test_settings_include_those_of_the_bases_that_keywords_are_handed_to() -> None:
    own, inherited, shared = {"bank_size", "remembered"}, {"anchors", "semi_hard"}, {"dim", "temperature"}
    assert own | inherited | shared <= settings_of(PixelMemoryContrast)
    assert "windows" not in settings_of(PixelMemoryContrast)
    assert settings_of(Contrast) == {"ignore_value", "temperature", "dim", "hidden_dim", "embedding_layers"}


def loop_distance(regions: list[list[int]], reach: int) -> list[list[int]]:
    size = len(regions)
    cells = [(y, x) for y in range(size) for x in range(size)]
    return [
        [
            min([max(abs(y - v), abs(x - u)) for v, u in cells if regions[v][u] != regions[y][x]] + [reach])
            for x in range(size)
        ]
        for y in range(size)
    ]


@pytest.fixture
def regions() -> Tensor:
    """Return two maps (2, 12, 12) of blocks of four values."""
    blocks = torch.randint(4, (2, 3, 3), generator=torch.Generator().manual_seed(3))
    blocks = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    blocks[0] = 1
    blocks[0, 5, 5] = 0
    return blocks


@pytest.mark.parametrize("reach", [1, 2, 3, 8])
def test_boundary_distance_equals_a_search_over_all_cells(regions: Tensor, reach: int) -> None:
    expected = [loop_distance(each.tolist(), reach) for each in regions]
    assert boundary_distance(regions, reach).tolist() == expected


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_cells_nearest_to_the_boundary_are_marked_class_by_class(regions: Tensor, share: float) -> None:
    classes = torch.where(regions == 3, -1, regions)
    wrong = torch.rand(classes.shape, generator=torch.Generator().manual_seed(4)) < 0.9
    marked = nearest_to_boundary(classes, wrong, 3, share, 8)
    failing = torch.where(wrong & (classes >= 0), classes, 3)
    distance = torch.tensor([loop_distance(each.tolist(), 8) for each in failing])
    assert not marked[failing == 3].any()
    for label in range(3):
        own = failing == label
        assert marked[own].sum() == -(-own.sum() * share // 1)
        if 0 < marked[own].sum() < own.sum():
            assert distance[own & marked].max() <= distance[own & ~marked].min()
