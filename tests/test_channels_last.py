"""Maps that lie pixel by pixel: what counts as one, and their padding."""

import pytest
import torch
from torch.nn import functional as F

from hicl_d2.channels_last import is_pixel_by_pixel, pad


@pytest.mark.parametrize("ends", [(-9, 12, 0, 0), (12, -9, 1, 1), (0, 0, -6, 8), (2, 2, 9, -7)], ids=str)
def test_nothing_of_a_map_may_be_left(ends: tuple[int, int, int, int]) -> None:
    x = torch.randn(2, 3, 5, 8).to(memory_format=torch.channels_last)
    left, right, top, bottom = ends
    padded = pad(x, *ends)
    assert padded.shape == (2, 3, 5 + top + bottom, 8 + left + right)
    assert not padded.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "ends",
    [
        (0, 0, 0, 0),
        (1, 2, 3, 4),
        (0, 1, 0, 1),
        (-1, 2, 0, 0),
        (2, -3, -1, -2),
        (-2, -1, 1, -2),
        (0, 0, 5, 0),
        (3, -6, 0, 0),
        (-7, 9, 0, 0),
    ],
    ids=str,
)
def test_a_padded_map_is_torch_s(ends: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 5, 8).to(dtype).to(memory_format=torch.channels_last)
    padded = pad(x, *ends)
    assert torch.equal(padded, F.pad(x, ends))
    assert padded.dtype is dtype
    assert padded.is_contiguous(memory_format=torch.channels_last)


def test_a_map_is_pixel_by_pixel_only_in_the_host_s_memory_and_untraced() -> None:
    x = torch.randn(2, 3, 5, 8).to(memory_format=torch.channels_last)
    assert is_pixel_by_pixel(x)
    assert not is_pixel_by_pixel(x.contiguous())
    assert not is_pixel_by_pixel(x[:, :, 1:])  # some rows of it
    assert not is_pixel_by_pixel(x[:, :1])
    assert not is_pixel_by_pixel(x[0])
    assert not is_pixel_by_pixel(x.to("meta"))
    seen: list[bool] = []
    torch.jit.trace(lambda y: seen.append(is_pixel_by_pixel(y)) or y + 1, x, check_trace=False)
    assert seen == [False]
    branches = torch.export.export(Branches(), (x,)).module()
    assert torch.equal(branches(x), x - 1)


class Branches(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if is_pixel_by_pixel(x) else x - 1
