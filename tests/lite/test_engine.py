"""The built-in runtime's engine, where it goes beyond what Detectron2's figures show: hooks' states, the CPU, errors."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hicl_d2.command.errors import InputError
from hicl_d2.lite.engine import HookBase, TrainerBase, hooks, launch


class Counter(HookBase):
    def __init__(self) -> None:
        self.count = 0

    def after_step(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Loop(TrainerBase):
    def run_step(self) -> None:
        pass


def test_the_state_of_hooks_is_kept_by_class(caplog: pytest.LogCaptureFixture) -> None:
    first, second, bare = Loop(), Loop(), Loop()
    first.register_hooks([Counter()])
    first.train(0, 3)
    second.register_hooks([hooks.IterationTimer(), Counter()])
    state = first.state_dict()
    second.load_state_dict(state)
    assert (second._hooks[1].count, second.iter) == (3, 3)
    with caplog.at_level(logging.WARNING, logger="hicl_d2.lite"):
        bare.load_state_dict(state)
    assert "Cannot find the hook 'Counter'" in caplog.text


def test_an_evaluation_must_give_numbers() -> None:
    loop = Loop()
    loop.register_hooks([hooks.EvalHook(0, lambda: {"a": {"b": "x"}})])
    with pytest.raises(ValueError, match="a/b is 'x'"):
        loop.train(0, 1)


def _ddp_gradient(folder: str) -> None:
    rank = torch.distributed.get_rank()
    model = DistributedDataParallel(nn.Linear(2, 1), broadcast_buffers=False)
    model(torch.full((1, 2), float(rank))).sum().backward()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(model.module.weight.grad.tolist()))


def test_processes_on_the_cpu_share_gradients(tmp_path: Path) -> None:
    launch(_ddp_gradient, 2, dist_url="auto", args=(str(tmp_path),))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found == [[[0.5, 0.5]]] * 2


def test_a_single_process_is_this_one() -> None:
    seen: list[int] = []
    launch(seen.append, 1, args=(7,))
    assert seen == [7]


def test_a_free_port_is_for_one_machine() -> None:
    with pytest.raises(InputError, match="tcp://HOST:PORT"):
        launch(print, 2, num_machines=2, dist_url="auto")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--num-gpus 2, but this machine has 1"):
        launch(print, 2)
