"""What no Swin has, or is not offered here, is refused in one line."""

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.modeling.check import check_model_config
from tests.modeling.mask_former.models import mask_former_cfg

SWIN = "D2SwinTransformer"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("OUT_FEATURES", ["res2", "res6"], "OUT_FEATURES names res6"),
        ("DEPTHS", [2, 2, 2], "one number for each of four stages"),
        ("NUM_HEADS", [5, 6, 12, 24], "5 does not divide the 24 channels of stage 1"),
        ("APE", True, "SWIN.APE is True"),
        ("PATCH_NORM", False, "SWIN.PATCH_NORM is False"),
    ],
)
def test_a_swin_that_cannot_be_built_is_said_in_one_line(key, value, message):
    cfg = mask_former_cfg(SWIN)
    cfg.MODEL.SWIN[key] = value
    with pytest.raises(InputError, match=message):
        check_model_config(cfg)
