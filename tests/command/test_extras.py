"""A module that is missing is answered with the extra that brings it."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hicl_d2.command.cli import explain
from hicl_d2.command.extras import EXTRAS, explain_missing

ROOT = Path(__file__).resolve().parents[2]
# Where a distribution and its module have different names.
MODULES = {"pyyaml": "yaml", "pillow": "PIL", "mlflow-skinny": "mlflow"}


def extras_of_setup() -> dict[str, set[str]]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found = {}
    for extra, text in setup["options.extras_require"].items():
        distributions = {re.split(r"[<>=~\[; ]", line)[0] for line in text.split("\n") if line}
        found[extra] = {MODULES.get(name, name.replace("-", "_")) for name in distributions - {"hicl-d2"}}
    return found


def test_the_modules_of_each_extra_are_those_that_it_installs() -> None:
    found = extras_of_setup()
    for extra, modules in EXTRAS.items():
        assert set(modules) == found[extra], extra


def test_the_method_needs_torch_alone() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options"]["install_requires"].split() == ["torch>=2.6"]


@pytest.mark.parametrize(("extra", "module"), [(extra, names[0]) for extra, names in EXTRAS.items()])
def test_a_missing_module_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, extra: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ImportError) as raised:
        __import__(f"{module}.something")
    assert (
        explain(raised.value)
        == f"this needs {module}, which is not installed: pip install 'hicl-d2[{extra}]'"
    )


def test_a_module_of_somebody_elses_and_a_name_that_is_missing_are_faults() -> None:
    assert explain_missing(ModuleNotFoundError("No module named 'other'", name="other")) is None
    assert explain_missing(ImportError("cannot import name 'x' from 'yaml'", name="yaml")) is None
    assert explain_missing(ValueError("yaml")) is None


def test_contrast_and_attach_work_with_torch_alone(tmp_path: Path) -> None:
    hidden = sorted(module for modules in EXTRAS.values() for module in modules)
    code = f"""
import sys
for name in {hidden!r}:
    sys.modules[name] = None  # as if it were not installed
import torch
from torch import nn
from hicl_d2.contrast import attach

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, images):
        return self.head(self.body(images))

model = Net()
branch = attach(model, feature="head", num_classes=4, windows=[1, 2], warmup_iters=0, example=(torch.zeros(1, 3, 16, 16),))
model(torch.rand(2, 3, 16, 16))
labels = torch.zeros(2, 16, 16, dtype=torch.long)
labels[:, 8:] = 1
branch.loss(labels).backward()
assert model.body.weight.grad.any()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
