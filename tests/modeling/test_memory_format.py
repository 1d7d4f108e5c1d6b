"""Feature maps pixel by pixel in memory: the same results, the same files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hicl_d2.command.errors import InputError
from hicl_d2.config import load_config
from hicl_d2.d2.config import CfgNode
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.engine.step import StepTrainer
from hicl_d2.engine.trainer import Trainer
from hicl_d2.modeling.memory_format import contiguous, like, memory_format, set_memory_format
from tests.support import tiny

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "camvid/deeplab_v3_plus_efficientnet_lite0_cpu": ["MODEL.WEIGHTS", ""],
    "camvid/deeplab_v3_plus_R_18_cpu_hicl": [],
    "camvid/mask2former_R_18_cpu": [],
    "cityscapes/panoptic_deeplab_R_52_90k_bs32": ["MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 50],
}
SIZE = 64, 96


def config(name: str, *overrides: Any) -> CfgNode:
    settings = [
        "MODEL.DEVICE",
        "cpu",
        "SEED",
        1,
        "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT",
        0.0,
        *SMALL[name],
        *overrides,
    ]
    return load_config(str(CONFIGS / f"{name}.yaml"), settings)


def batch(classes: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (2, SIZE[0] // 16, SIZE[1] // 16), generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    images = torch.randint(0, 60, (2, 3, *SIZE), generator=generator) + 15 * labels[:, None]
    return [
        {"image": image.to(torch.uint8), "sem_seg": label, "height": SIZE[0], "width": SIZE[1]}
        for image, label in zip(images, labels, strict=True)
    ]


def build(name: str, layout: str) -> nn.Module:
    torch.manual_seed(0)
    return Trainer.build_model(config(name, "MODEL.MEMORY_FORMAT", layout))


@pytest.mark.parametrize("name", SMALL)
def test_losses_gradients_and_predictions_are_those_of_contiguous_maps(name: str) -> None:
    found = {}
    for layout in ("contiguous", "channels_last"):
        model = build(name, layout)
        if "mask2former" not in name:  # whose decoder makes float32 embeddings
            model.double()  # so that rounding does not switch a ReLU
        data = batch(8)
        inputs = [{key: entry[key] for key in ("image", "height", "width")} for entry in data]
        torch.manual_seed(1)
        losses = model.train()(data)
        sum(losses.values()).backward()
        gradients = {
            name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
        }
        with torch.no_grad():
            prediction = model.eval()(inputs)[0]["sem_seg"]
        found[layout] = losses, gradients, prediction
    (losses, gradients, prediction), (other_losses, other_gradients, other_prediction) = found.values()
    for key, loss in losses.items():
        torch.testing.assert_close(other_losses[key], loss, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == other_gradients.keys()
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients.items():
        assert float((other_gradients[key] - gradient).abs().max()) < 1e-3 * scale, key
    torch.testing.assert_close(other_prediction, prediction, rtol=1e-3, atol=1e-3)


def modules_that_lose_the_layout(model: nn.Module, data: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the names of convolutions and norms that give a map (B, C, h, w) in another layout."""
    lost: list[str] = []

    def look(name: str, given: Tensor) -> None:
        if not given.is_contiguous(memory_format=torch.channels_last):
            lost.append(name)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm):
            module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
    model.train()(data)
    yield from lost


@pytest.mark.parametrize("name", [name for name in SMALL if "mask2former" not in name])
def test_no_module_of_a_convolutional_model_loses_the_layout(name: str) -> None:
    assert [*modules_that_lose_the_layout(build(name, "auto"), batch(8))] == []


def test_auto_leaves_modules_of_other_packages_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny.CONFIG)
    cfg = load_config(str(path), [])
    model = Trainer.build_model(cfg)  # a model of the tests: nobody says that it works in another layout
    assert memory_format(cfg, model) is torch.contiguous_format
    cfg.defrost()
    cfg.MODEL.MEMORY_FORMAT = "channels_last"
    assert memory_format(cfg, model) is torch.channels_last


def test_other_tensors_than_those_of_four_dimensions_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 3), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_memory_format(config("camvid/deeplab_v3_plus_R_18_cpu_hicl"), model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.is_contiguous() == (name != "0.weight")


def test_an_unknown_layout_is_one_line() -> None:
    cfg = config("camvid/deeplab_v3_plus_R_18_cpu_hicl", "MODEL.MEMORY_FORMAT", "channel_last")
    with pytest.raises(InputError, match=r"MODEL\.MEMORY_FORMAT is 'channel_last'.*channels_last"):
        memory_format(cfg, nn.Conv2d(1, 1, 1))


class OneConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, batch: Tensor) -> Tensor:
        return self.conv(batch).square().mean()


def trained(model: nn.Module, steps: int, state: dict[str, Any] | None = None) -> StepTrainer:
    from hicl_d2.d2.utils import EventStorage

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    data = iter([torch.full((1, 3, 8, 8), 1.0 + step) for step in range(9)])
    trainer = StepTrainer(model, data, optimizer, seed=1)
    if state is not None:
        trainer.load_state_dict(state)
        for _ in range(trainer.iter + 1):
            next(data)
    with EventStorage():
        for trainer.iter in range(trainer.iter + (state is not None), steps):  # noqa: B020 - the loop counts the trainer's iterations
            trainer.run_step()
    return trainer


def test_a_checkpoint_does_not_tell_the_layout_and_continues_in_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = OneConvolution().to(memory_format=torch.channels_last)
    whole = OneConvolution().to(memory_format=torch.channels_last)
    whole.load_state_dict(start.state_dict())
    trainer = trained(start, 3)
    Checkpoints(start, str(tmp_path), trainer=trainer).save("model_0000002", iteration=2)
    content = torch.load(tmp_path / "model_0000002.pth")
    moments = [*content["trainer"]["optimizer"]["state"].values()]
    assert len(moments) == 2
    kept = [content["model"]["conv.weight"], *(state["exp_avg"] for state in moments)]
    assert all(tensor.is_contiguous() for tensor in kept)
    assert not start.conv.weight.is_contiguous()  # saving leaves the model alone

    again = OneConvolution().to(memory_format=torch.channels_last)
    again.load_state_dict(content["model"])
    resumed = trained(again, 6, content["trainer"])
    trained(whole, 6)
    assert torch.equal(again.conv.weight, whole.conv.weight)
    average = resumed.optimizer.state[again.conv.weight]["exp_avg"]
    assert average.stride() == again.conv.weight.stride()


def test_content_keeps_its_types_and_what_shares_memory() -> None:
    weight = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = OneConvolution().state_dict()
    state["conv.weight"] = state["tied"] = weight
    result = contiguous({"model": state, "list": [weight, 1, "text"], "other": torch.rand(3, 2).T})
    assert type(result["model"]) is type(state)
    assert result["model"]._metadata == state._metadata
    assert result["model"]["tied"] is result["model"]["conv.weight"] is result["list"][0]
    assert torch.equal(result["list"][0], weight)
    assert result["list"][1:] == [1, "text"]
    assert not result["other"].is_contiguous()  # another layout than channels_last is the author's choice
    assert state["conv.weight"] is weight


def test_like_takes_only_tensors_of_the_same_shape() -> None:
    parameter = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    value = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert like(parameter, value).stride() == parameter.stride()
    assert torch.equal(like(parameter, value), value)
    step = torch.tensor(3.0)
    assert like(parameter, step) is step
    assert like(parameter, None) is None
