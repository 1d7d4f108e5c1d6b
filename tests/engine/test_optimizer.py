"""The recipes' optimisers: groups, decay, clipping by the norm of all gradients, and bad values."""

from typing import Any

import pytest
import torch
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.projects import original
from hicl_d2.engine.optimizer import build_lr_scheduler, build_optimizer, parameter_groups


def _config(**options: Any) -> CfgNode:
    cfg = get_hicl_cfg()
    for key, value in options.items():
        cfg.merge_from_list([f"SOLVER.{key.replace('__', '.')}", value])
    return cfg


class _Model(nn.Module):
    """A model with a backbone, a name like a backbone's, a norm, an embedding and a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.backbone.relative_position_bias_table = nn.Parameter(torch.ones(5))
        self.backbone_like = nn.Linear(4, 4)
        self.queries = nn.Embedding(6, 4)
        self.predictor = nn.Linear(4, 2)

    def forward(self) -> torch.Tensor:
        features = self.backbone(torch.ones(2, 3)) + self.backbone.relative_position_bias_table.sum()
        return self.predictor(self.backbone_like(features) + self.queries.weight.sum(0)).sum()


def _settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return learning rate and weight decay per parameter name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found) == len(names)
    return found


def test_plain_sgd_is_detectron2_s() -> None:
    model = _Model()
    del model.queries, model.backbone.relative_position_bias_table
    cfg = _config(NESTEROV=True, WEIGHT_DECAY_BIAS=0.0, BIAS_LR_FACTOR=2.0)
    ours = build_optimizer(cfg, model)
    assert type(ours) is torch.optim.SGD
    linear = {".weight": (0.001, 1e-4), ".bias": (0.002, 0.0)}
    norm = {".weight": (0.001, 0.0), ".bias": (0.002, 0.0)}
    kinds = {"backbone.0": linear, "backbone.1": norm, "backbone_like": linear, "predictor": linear}
    expected = {module + name: values for module, kind in kinds.items() for name, values in kind.items()}
    assert _settings(ours, model) == expected
    settings = {"lr": 0.001, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True, "foreach": True}
    assert ours.defaults == torch.optim.SGD([nn.Parameter(torch.zeros(1))], **settings).defaults
    theirs = original("solver", "build_optimizer")
    if theirs is not None:
        assert _settings(theirs(cfg, model), model) == expected
        assert theirs(cfg, model).defaults == ours.defaults


def test_without_the_project_s_keys_it_is_sgd_over_everything_alike() -> None:
    cfg = _config()
    del cfg.SOLVER["OPTIMIZER"]
    del cfg.SOLVER["BACKBONE_MULTIPLIER"]
    optimizer = build_optimizer(cfg, _Model())
    assert type(optimizer) is torch.optim.SGD
    assert {group["lr"] for group in optimizer.param_groups} == {0.001}


def test_the_recipe_of_mask2former() -> None:
    model = _Model()
    cfg = _config(OPTIMIZER="ADAMW", BASE_LR=1e-4, WEIGHT_DECAY=0.05, BACKBONE_MULTIPLIER=0.1)
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.AdamW
    low = pytest.approx(1e-5)
    assert _settings(optimizer, model) == {
        "backbone.0.weight": (low, 0.05),
        "backbone.0.bias": (low, 0.05),
        "backbone.1.weight": (low, 0.0),
        "backbone.1.bias": (low, 0.0),
        "backbone.relative_position_bias_table": (low, 0.0),
        "backbone_like.weight": (1e-4, 0.05),
        "backbone_like.bias": (1e-4, 0.05),
        "queries.weight": (1e-4, 0.0),
        "predictor.weight": (1e-4, 0.05),
        "predictor.bias": (1e-4, 0.05),
    }


def test_embeddings_have_a_weight_decay_of_their_own() -> None:
    model = _Model()
    optimizer = build_optimizer(_config(OPTIMIZER="ADAMW", WEIGHT_DECAY=0.05, WEIGHT_DECAY_EMBED=0.02), model)
    decays = {name: decay for name, (_, decay) in _settings(optimizer, model).items()}
    assert (decays["queries.weight"], decays["predictor.weight"]) == (0.02, 0.05)


def test_the_recipe_of_panoptic_deeplab() -> None:
    optimizer = build_optimizer(_config(OPTIMIZER="ADAM", BASE_LR=1e-3, WEIGHT_DECAY=0.0), _Model())
    assert type(optimizer) is torch.optim.Adam
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(1e-3, 0.0)}


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_the_norm_of_all_gradients_together_is_bounded(name: str) -> None:
    clip = {"CLIP_GRADIENTS__ENABLED": True, "CLIP_GRADIENTS__CLIP_TYPE": "full_model"}
    model, twin = _Model(), _Model()
    clipped = build_optimizer(_config(OPTIMIZER=name, **clip, CLIP_GRADIENTS__CLIP_VALUE=0.01), model)
    plain = build_optimizer(_config(OPTIMIZER=name), twin)
    for _ in range(3):
        for optimizer, each in ((clipped, model), (plain, twin)):
            optimizer.zero_grad()
            each().backward()
        total = torch.stack([parameter.grad.norm() for parameter in twin.parameters()]).norm().item()
        assert total > 1.0
        for parameter in twin.parameters():
            parameter.grad *= 0.01 / (total + 1e-6)
        clipped.step()
        plain.step()
    norms = [parameter.grad.norm() for parameter in model.parameters()]
    assert torch.stack(norms).norm().item() == pytest.approx(0.01, rel=1e-3)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_clipping_sees_gradients_without_the_loss_scale() -> None:
    clip = {"CLIP_GRADIENTS__ENABLED": True, "CLIP_GRADIENTS__CLIP_TYPE": "full_model"}
    results = []
    for scale in (1.0, 1024.0):
        model = _Model()
        optimizer = build_optimizer(_config(**clip, CLIP_GRADIENTS__CLIP_VALUE=0.5), model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(model()).backward()
        scaler.step(optimizer)
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["ADAM", "ADAMW"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_fused_step_is_the_plain_one(name: str, layout: torch.memory_format) -> None:
    """Equal within rounding, also for weights that lie in memory as channels_last."""
    plain_kinds = {"ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}
    found = []
    for is_ours in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)).to(
            memory_format=layout
        )
        cfg = _config(OPTIMIZER=name, BASE_LR=0.01, WEIGHT_DECAY=0.1)
        optimizer = (
            build_optimizer(cfg, model)
            if is_ours
            else plain_kinds[name](parameter_groups(cfg, model), lr=0.01, foreach=False)
        )
        assert all(bool(group["fused"]) is is_ours for group in optimizer.param_groups)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 6, 6).contiguous(memory_format=layout)).square().sum().backward()
            optimizer.step()
        assert model[0].weight.stride() == optimizer.state[model[0].weight]["exp_avg"].stride()
        found.append((list(model.parameters()), optimizer))
    (ours, our_optimizer), (theirs, their_optimizer) = found
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
        assert our_optimizer.state[one].keys() == their_optimizer.state[other].keys()
        for key, value in our_optimizer.state[one].items():
            torch.testing.assert_close(value, their_optimizer.state[other][key])


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
@pytest.mark.parametrize("clip_type", ["value", "norm", "full_model"])
def test_a_gradient_scaler_of_ones_own_clips_without_the_scale(name: str, clip_type: str) -> None:
    options = {"CLIP_GRADIENTS__ENABLED": True, "CLIP_GRADIENTS__CLIP_TYPE": clip_type}
    results = []
    for scale in (1.0, 1024.0):
        model = _Model()
        optimizer = build_optimizer(_config(OPTIMIZER=name, **options, CLIP_GRADIENTS__CLIP_VALUE=0.5), model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("clip_type", ["value", "norm"])
def test_clipping_by_parameter_is_detectron2_s(clip_type: str) -> None:
    cfg = _config(CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE=clip_type)
    assert type(build_optimizer(cfg, _Model())).__name__ == "SGDWithGradientClip"


def test_the_schedule_keeps_the_backbone_s_share() -> None:
    cfg = _config(BACKBONE_MULTIPLIER=0.1, LR_SCHEDULER_NAME="WarmupPolyLR", MAX_ITER=20, WARMUP_ITERS=3)
    optimizer = build_optimizer(cfg, _Model())
    schedule = build_lr_scheduler(cfg, optimizer)
    for _ in range(20):
        rates = sorted({group["lr"] for group in optimizer.param_groups})
        assert len(rates) == 2
        assert rates[0] == pytest.approx(0.1 * rates[1])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("warmup", [0, 10, 99])
def test_a_fixed_gamma_divides_the_run_into_equal_parts_and_may_be_stepped_after_the_last(
    warmup: int,
) -> None:
    cfg = _config(LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR", NUM_DECAYS=3, GAMMA=0.1, MAX_ITER=100)
    cfg.merge_from_list(["SOLVER.WARMUP_ITERS", warmup])
    optimizer = build_optimizer(cfg, _Model())
    schedule = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[warmup:] == pytest.approx([0.001 * 0.1 ** (i // 25) for i in range(100)][warmup:])
    assert schedule.last_epoch == 100


def test_frozen_and_shared_parameters_are_left_out_or_taken_once() -> None:
    model = _Model()
    model.backbone.requires_grad_(False)
    model.again = model.predictor
    grouped = [parameter for group in parameter_groups(_config(), model) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == 5
    assert not set(grouped) & set(model.backbone.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"OPTIMIZER": "ADAMWW"},
            r"SOLVER\.OPTIMIZER is 'ADAMWW'; did you mean ADAMW\?; expected one of ADAM, ADAMW, SGD",
        ),
        ({"BASE_LR": -1.0}, r"SOLVER: SGD cannot be built: Invalid learning rate: -1\.0"),
        ({"MOMENTUM": 0.0, "NESTEROV": True}, "SOLVER: SGD cannot be built: Nesterov momentum requires"),
        (
            {"BACKBONE_MULTIPLIER": 0.1, "BIAS_LR_FACTOR": 2.0},
            "both set the learning rate of the backbone's biases",
        ),
        (
            {"CLIP_GRADIENTS__ENABLED": True, "CLIP_GRADIENTS__CLIP_TYPE": "full"},
            r"CLIP_TYPE is 'full'.*full_model, norm, value",
        ),
        (
            {
                "CLIP_GRADIENTS__ENABLED": True,
                "CLIP_GRADIENTS__CLIP_TYPE": "full_model",
                "CLIP_GRADIENTS__CLIP_VALUE": 0.0,
            },
            r"CLIP_VALUE is 0\.0; the norm of all gradients needs a bound above 0",
        ),
    ],
)
def test_what_builds_no_optimiser_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        build_optimizer(_config(**options), _Model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"LR_SCHEDULER_NAME": "WarmupPoly"},
            r"'WarmupPoly'; did you mean WarmupPolyLR\?; expected one of WarmupCosine",
        ),
        ({"STEPS": (9, 6), "MAX_ITER": 20}, "the schedule WarmupMultiStepLR cannot be built: Milestone"),
        ({"MAX_ITER": 0}, "the schedule WarmupMultiStepLR cannot be built"),
        ({"WARMUP_METHOD": "cubic"}, "cannot be built: Unknown warmup method: cubic"),
        (
            {"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 1.0},
            r"BASE_LR_END is 1\.0 and BASE_LR 0\.001; a cosine falls from BASE_LR",
        ),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR": 0.0}, "a cosine falls from BASE_LR, above 0"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": -0.1}, "BASE_LR_END, not below 0"),
        (
            {"LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "MAX_ITER": 20, "WARMUP_ITERS": 20},
            "WARMUP_ITERS is 20 of SOLVER.MAX_ITER 20; WarmupStepWithFixedGammaLR needs iterations after",
        ),
    ],
)
def test_what_builds_no_schedule_is_one_line(options: dict[str, Any], said: str) -> None:
    cfg = _config(**options)
    with pytest.raises(InputError, match=said) as caught:
        build_lr_scheduler(cfg, build_optimizer(cfg, _Model()))
    assert "\n" not in str(caught.value)
