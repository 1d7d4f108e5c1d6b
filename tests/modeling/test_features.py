"""The list of places that the branch can read says what really passes there."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from hicl_d2.command.errors import InputError
from hicl_d2.modeling.features import list_places
from hicl_d2.modeling.settings import blank_size
from hicl_d2.tools import features
from tests.modeling.attach_cases import CASES, case_cfg, case_model

CONFIG = Path(__file__).parents[2] / "configs/parts/deeplab_v3_plus_R_18_hicl.yaml"


@pytest.mark.parametrize("name", CASES)
def test_the_places_named_in_the_config_are_listed_as_they_are(name):
    cfg, model = case_cfg(name, with_branch=False), case_model(name, with_branch=False)
    size, seen = blank_size(cfg), {}
    places = {(each.module, each.side): each for each in list_places(model, size)}
    hicl = cfg.MODEL.HICL
    model.get_submodule(hicl.FEATURE).register_forward_hook(
        lambda module, args, output: seen.update(input=args[0], output=output)
    )
    with torch.no_grad():
        model.eval()([{"image": torch.zeros(3, *size), "height": 5, "width": 7}])
    feature, value = places[hicl.FEATURE, hicl.FEATURE_SIDE], seen[hicl.FEATURE_SIDE]
    assert (feature.channels, feature.stride) == (value.shape[1], size[0] // value.shape[-2])
    logits = places[hicl.LOGITS, "output"]
    assert logits.channels == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert logits.is_made_of_predictions == name.startswith("Mask2Former")


def test_every_place_listed_can_be_read_in_training():
    places = list_places(case_model("DeepLabV3+", with_branch=False), (64, 64))
    assert len(places) >= 8
    for place in places:
        case_model("DeepLabV3+", FEATURE=place.module, FEATURE_SIDE=place.side, LOGITS="")


def test_it_leaves_the_model_as_it_was():
    model = case_model("Mask2Former", with_branch=False)
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    list_places(model, (64, 64))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_command_shows_a_table_and_what_the_config_names(capsys):
    features.main(Namespace(config_file=str(CONFIG), opts=[]))
    lines = capsys.readouterr().out.splitlines()
    assert ["sem_seg_head.predictor", "input", "64", "4", "FEATURE"] in [line.split() for line in lines]
    assert lines[-1].endswith("now: FEATURE sem_seg_head.predictor (input), LOGITS sem_seg_head.predictor")


def test_a_config_of_no_model_is_one_line():
    with pytest.raises(InputError, match=r"did you mean build_dilated_resnet_backbone\?"):
        features.main(
            Namespace(config_file=str(CONFIG), opts=["MODEL.BACKBONE.NAME", "build_dilated_resnet"])
        )
