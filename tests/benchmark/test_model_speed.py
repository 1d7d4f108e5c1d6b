"""The table of a model with and without the branch."""

import model_speed
import pytest
import torch
from torch import nn

from hicl_d2.command.errors import InputError


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


def test_without_data_a_row_tells_operators_and_memory_of_any_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    peaks = []
    try:
        for batch in ("2", "64"):
            options = ["model_speed.py", "--without-data", "--batch", batch]
            monkeypatch.setattr("sys.argv", [*options, "--opts", "INPUT.CROP.SIZE", "(512,512)"])
            assert model_speed.main() == 0
            row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")[1:-1]]
            assert row[:3] == ["deeplab_v3_plus_R_18", f"{batch} x 512 x 512", "float32"]
            operators, with_branch, peak, branch_peak = (int(cell.replace(",", "")) for cell in row[3:7])
            assert 0 < operators < with_branch
            assert float(row[7]) == pytest.approx(branch_peak / peak, abs=2e-3)
            peaks.append(peak)
    finally:
        torch.set_num_threads(threads)
    assert peaks[1] / peaks[0] == pytest.approx(32, rel=0.1)  # new gradients of parameters do not grow


@pytest.mark.parametrize(
    "name",
    ["cityscapes/mask2former_R_50_90k_bs16_hicl", "cityscapes/panoptic_deeplab_R_52_90k_bs32_instances"],
)
def test_a_model_that_cannot_be_measured_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(
        "sys.argv", ["model_speed.py", "--without-data", "--config-file", f"configs/{name}.yaml"]
    )
    try:
        with pytest.raises(InputError) as refused:
            model_speed.main()
    finally:
        torch.set_num_threads(threads)
    assert "\n" not in str(refused.value)
