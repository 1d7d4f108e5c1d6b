"""The table of a model with and without the branch."""

import model_speed
import pytest
import torch
from torch import nn


class OneConvolution(nn.Module):
    """A model of a single convolution, with Detectron2's inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, batch: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        return [{"sem_seg": self.conv(image["image"][None].float())[0]} for image in batch]


def test_arithmetic_is_one_for_a_product_with_its_sum() -> None:
    image = {"image": torch.zeros(3, 8, 16, dtype=torch.uint8), "height": 8, "width": 16}
    assert model_speed.gigaflops(OneConvolution(), image) == pytest.approx(8 * 16 * 4 * 3 * 9 / 1e9)


def test_a_table_has_both_models_and_says_that_their_predictions_agree(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    options = ["model_speed.py", "--rounds", "1", "--batch", "1", "--opts", "INPUT.CROP.SIZE", "(64,64)"]
    monkeypatch.setattr("sys.argv", options)
    try:
        assert model_speed.main() == 0
    finally:
        torch.set_num_threads(threads)
    said = capfd.readouterr().out
    assert "1 x 64 x 64, cpu" in said
    plain = next(line.split() for line in said.splitlines() if line.startswith("plain"))
    branch = next(line.split() for line in said.splitlines() if line.startswith("with the branch"))
    assert float(plain[2]) == float(branch[4]) > 0
    assert "the same bits" in said
