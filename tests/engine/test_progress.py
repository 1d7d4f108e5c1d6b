"""What the console says of a training: plain lines as ever, and on a terminal each loss by its name."""

from types import SimpleNamespace

import pytest

from hicl_d2.command.console import console
from hicl_d2.command.live import Work
from hicl_d2.d2.utils import EventStorage
from hicl_d2.engine.hooks import Progress


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> Progress:
    hook = Progress(images=8, device="cpu")
    storage = EventStorage(0)
    hook.trainer = SimpleNamespace(iter=0, max_iter=10, storage=storage)
    shown = []
    monkeypatch.setattr(console, "progress", lambda text, **more: shown.append((text, more)))
    hook.shown = shown
    return hook


def step(hook: Progress, iteration: int, **losses: float) -> tuple[str, Work, bool]:
    hook.trainer.iter = iteration
    with hook.trainer.storage as storage:
        storage.iter = iteration
        storage.put_scalars(total_loss=sum(losses.values()), **losses)
        storage.put_scalar("lr", 0.01, smoothing_hint=False)
        storage.put_scalar("hicl/level_1/loss", 3.0, smoothing_hint=False)
        storage.put_scalar("time", 0.5)
        hook.after_step()
    text, more = hook.shown[-1]
    return text(), more["work"](), more["is_last"]


def test_the_plain_line_is_iteration_loss_rate_speed_and_time_left(progress: Progress) -> None:
    line, _, is_last = step(progress, 3, loss_sem_seg=1.5, loss_hicl=0.25)
    assert line == "iteration 4/10  loss 1.75  lr 0.01  2.00 it/s  ETA 0:00:03"
    assert not is_last


def test_a_bar_names_every_loss_and_the_images_a_second(progress: Progress) -> None:
    _, work, is_last = step(progress, 9, loss_sem_seg=1.5, loss_hicl=0.25)
    assert (work.what, work.done, work.total, work.left) == ("iteration", 10, 10, "0:00:00")
    figures = dict(work.figures)
    assert figures.pop("memory").endswith(" GiB")
    assert figures == {
        "total_loss": "1.75",
        "loss_hicl": "0.25",
        "loss_sem_seg": "1.5",
        "lr": "0.01",
        "images/s": "16",
    }
    assert is_last


def test_the_losses_of_inner_layers_are_in_the_total_alone(progress: Progress) -> None:
    _, work, _ = step(progress, 0, loss_ce=1.0, loss_ce_0=1.0, loss_mask_11=1.0, loss_l1=1.0)
    names = [name for name, _ in work.figures]
    assert names[:4] == ["total_loss", "loss_ce", "loss_l1", "lr"]
    assert dict(work.figures)["total_loss"] == "4"
