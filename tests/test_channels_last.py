"""What counts as a map that lies pixel by pixel."""

import torch

from hicl_d2.channels_last import is_pixel_by_pixel


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
