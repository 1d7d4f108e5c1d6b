"""Backbones of timm: features by their strides, and what is refused."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2.modeling import build_backbone


def timm_cfg(**settings):
    cfg = get_hicl_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    for key, value in settings.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


class _Pyramid(nn.Module):
    """What timm gives with features_only: maps of the strides 2, 4 and 8, and what they are."""

    feature_info = SimpleNamespace(reduction=lambda: [2, 4, 8], channels=lambda: [3, 5, 7])

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, c, s, s) for c, s in ((3, 2), (5, 4), (7, 8)))

    def forward(self, images):
        return [layer(images) for layer in self.layers]


@pytest.fixture
def fake_timm(monkeypatch):
    timm = ModuleType("timm")
    timm.list_models = lambda: ["pyramid"]
    timm.create_model = lambda name, **settings: _Pyramid()
    monkeypatch.setitem(sys.modules, "timm", timm)


@pytest.mark.usefixtures("fake_timm")
def test_timms_features_are_called_by_their_strides():
    backbone = build_backbone(timm_cfg(NAME="pyramid", OUT_FEATURES=["res3", "res2"]))
    assert {name: (shape.channels, shape.stride) for name, shape in backbone.output_shape().items()} == {
        "res2": (5, 4),
        "res3": (7, 8),
    }
    assert backbone(torch.zeros(1, 3, 16, 8))["res3"].shape == (1, 7, 2, 1)


@pytest.mark.usefixtures("fake_timm")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"NAME": "pyramids"}, r"NAME is 'pyramids'; did you mean pyramid\?"),
        ({"NAME": "pyramid", "OUT_FEATURES": ["res5"]}, r"what pyramid has: res1, res2, res3"),
    ],
)
def test_what_timm_does_not_have_is_said_in_one_line(settings, message):
    with pytest.raises(InputError, match=message):
        build_backbone(timm_cfg(**settings))


@pytest.mark.parametrize(
    ("absent", "expected"), [("timm", "needs timm"), ("torchvision", "needs torchvision")]
)
def test_without_timm_or_torchvision_the_advice_is_what_to_install(absent, expected, monkeypatch):
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name == "timm":
                raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(
        InputError, match=rf"{expected}, which is not installed: pip install 'hicl-d2\[timm\]'"
    ):
        build_backbone(timm_cfg())


def test_a_torchvision_of_another_torch_is_named_as_the_likely_cause(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "timm":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(InputError, match=rf"nms does not exist.*does not fit torch {torch.__version__[:4]}"):
        build_backbone(timm_cfg())
