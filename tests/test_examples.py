"""Every example runs, and its losses are finite."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hicl_d2.d2 import USES_DETECTRON2

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "lazy_config")


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_trains(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), "--steps", "10"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = re.search(r"segmentation ([\d.]+), contrast ([\d.]+)", done.stdout)
    assert figures is not None
    assert float(figures[2]) > 0


@pytest.mark.skipif(not USES_DETECTRON2, reason="LazyConfig is Detectron2's")
def test_the_lazy_model_trains_in_detectron2s_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from detectron2.engine import SimpleTrainer
    from detectron2.structures import BitMasks, Boxes, Instances

    monkeypatch.syspath_prepend(str(EXAMPLES))
    import lazy_config

    torch.manual_seed(0)
    model = lazy_config.get_model().train()
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 8:40, 8:40] = True
    instances = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]])))
    instances.gt_classes, instances.gt_masks = torch.tensor([3]), BitMasks(mask)
    labels = torch.arange(4).repeat_interleave(16).expand(64, 64).contiguous()
    record = {"image": torch.randint(0, 256, (3, 64, 64)).float(), "sem_seg": labels, "instances": instances}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    trainer = SimpleTrainer(model, [[record, dict(record)]] * 3, optimizer)
    before = model.hicl.embedding.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    trainer.train(0, 3)
    assert any(
        not torch.equal(value, before[name]) for name, value in model.hicl.embedding.state_dict().items()
    )
    assert trainer.storage.history("loss_hicl").latest() > 0
