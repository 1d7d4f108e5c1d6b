"""What is compared with Detectron2 to the last digits computes its losses per pixel the plain way."""

import pytest

from hicl_d2.modeling.deeplab import head


@pytest.fixture(autouse=True)
def plain_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused losses round otherwise, and where many pixels are nearly as hard, other ones are the hardest then.

    They are compared with the plain ones in tests/modeling/deeplab/test_fused_loss.py.
    """
    monkeypatch.setattr(head, "can_fuse", lambda loss, logits: False)
