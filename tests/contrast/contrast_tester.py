"""A base test: what every contrast must do. Inherit it, name the contrast, give the loss as a loop."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hicl_d2.contrast import Contrast, build_contrast

IGNORE = 255
CLASSES = 3
CHANNELS = 6
# Operators whose result the host must wait for on a GPU.
WAITING = {
    "_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "equal", "is_nonzero", "bincount", "randperm", "allclose",
}  # fmt: skip


class ForbidWaiting(TorchDispatchMode):
    """Fail on an operator that would make the host wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} makes the host wait"
        if name == "repeat_interleave":
            assert (kwargs or {}).get("output_size") is not None, (
                f"{name} without output_size makes the host wait"
            )
        if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple):
            kinds = [index.dtype for index in args[1] if isinstance(index, Tensor)]
            assert torch.bool not in kinds, f"{name} by a mask makes the host wait"
        return func(*args, **(kwargs or {}))


class ContrastTester:
    """Inherit this as ``class TestX(ContrastTester)`` and set the attributes; `oracle` is the loss as a loop.

    The default settings leave no room for chance: budgets hold every pixel, so that the loop knows what was
    sampled.
    """

    name: str
    settings: dict[str, Any] = {}

    # ---------------------------------------------------- to be filled in

    def oracle(self, contrast: Any, features: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
        """Return the loss of `make_batch`, one pair at a time, in the simplest words."""
        raise NotImplementedError

    # ---------------------------------------------------- what it works with

    def make(
        self, num_classes: int = CLASSES, dtype: torch.dtype = torch.float32, **settings: Any
    ) -> Contrast:
        torch.manual_seed(0)
        options = {"dim": 5, "hidden_dim": 7, "temperature": 0.2, "anchors": 40, **self.settings, **settings}
        return build_contrast(self.name, CHANNELS, num_classes, **options).to(dtype)

    def make_batch(
        self, dtype: torch.dtype = torch.float32, size: int = 4, batch: int = 2, num_classes: int = CLASSES
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, labels (two by two pixels to a cell, some ignored) and logits."""
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(batch, CHANNELS, size, size, generator=generator, dtype=torch.float64)
        labels = torch.randint(num_classes, (batch, 2 * size, 2 * size), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
        logits = torch.randn(batch, num_classes, size, size, generator=generator, dtype=torch.float64)
        return features.to(dtype).requires_grad_(), labels, logits.to(dtype)

    @staticmethod
    def gradients(loss: Tensor, contrast: Contrast, features: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [features, *contrast.parameters()]))

    def check_step(
        self, contrast: Contrast, features: Tensor, labels: Tensor, logits: Tensor | None
    ) -> Tensor:
        """Assert a finite float32 scalar, finite figures, and a finite gradient for every parameter."""
        features = features.detach().requires_grad_()
        loss, diagnostics = contrast(features, labels, logits)
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert math.isfinite(loss.item())
        for key, figure in diagnostics.items():
            assert key.startswith("hicl/")
            assert figure.shape == ()
            assert not figure.requires_grad
            assert math.isfinite(figure.item()), key
        loss.backward()
        for key, parameter in contrast.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
        assert features.grad is None or features.grad.isfinite().all()
        return loss

    # ---------------------------------------------------- the loss itself

    @pytest.mark.parametrize(
        ("dtype", "value", "gradient"), [(torch.float64, 1e-10, 1e-9), (torch.float32, 1e-6, 1e-5)]
    )
    def test_equals_the_loop_in_value_and_gradient(
        self, dtype: torch.dtype, value: float, gradient: float
    ) -> None:
        contrast = self.make(dtype=dtype).eval()
        features, labels, logits = self.make_batch(dtype)
        loss = contrast(features, labels, logits).loss
        expected = self.oracle(contrast, features, labels, logits)
        assert loss.item() > 0.1
        assert loss.dtype == dtype
        torch.testing.assert_close(loss, expected, rtol=value, atol=value)
        pairs = zip(
            self.gradients(loss, contrast, features),
            self.gradients(expected, contrast, features),
            strict=True,
        )
        for got, wanted in pairs:
            torch.testing.assert_close(got, wanted, rtol=gradient, atol=gradient)

    def test_gradcheck(self) -> None:
        contrast = self.make(dtype=torch.float64).eval()
        features, labels, logits = self.make_batch(torch.float64, size=2)
        assert torch.autograd.gradcheck(lambda f: contrast(f, labels, logits).loss, features, fast_mode=True)

    def test_renaming_the_classes_changes_nothing(self) -> None:
        contrast = self.make(dtype=torch.float64)
        features, labels, logits = self.make_batch(torch.float64)
        order = torch.tensor([2, 0, 1])
        renamed = torch.where(labels == IGNORE, IGNORE, order[labels.clamp(max=CLASSES - 1)])
        loss = contrast.eval()(features, labels, logits).loss
        again = contrast(features, renamed, logits[:, order.argsort()]).loss
        torch.testing.assert_close(loss, again, rtol=1e-10, atol=1e-10)

    # ---------------------------------------------------- edges

    @pytest.mark.parametrize("with_logits", [True, False])
    @pytest.mark.parametrize("case", ["all_ignored", "one_class", "class_in_one_image", "one_labelled_pixel"])
    def test_survives_poor_labels(self, case: str, with_logits: bool) -> None:
        features, labels, logits = self.make_batch()
        if case == "all_ignored":
            labels[:] = IGNORE
        elif case == "one_class":
            labels[:] = 1
        elif case == "class_in_one_image":
            labels[0], labels[1] = 0, 2
        else:
            labels[:] = IGNORE
            labels[0, :2, :2] = 0
        contrast = self.make()
        for _ in range(2):  # a memory that has just been written must not hurt either
            loss = self.check_step(contrast, features, labels, logits if with_logits else None)
            if case == "all_ignored":
                assert loss.item() == 0

    def test_survives_one_class_in_all(self) -> None:
        features, labels, logits = self.make_batch(num_classes=1)
        self.check_step(self.make(1), features, labels, logits)

    @pytest.mark.parametrize(("cells", "pixels"), [(1, 1), (1, 4), (3, 11), (5, 5)])
    def test_survives_odd_sizes(self, cells: int, pixels: int) -> None:
        labels = torch.arange(pixels * pixels).view(1, pixels, pixels) % CLASSES
        self.check_step(
            self.make(), torch.randn(1, CHANNELS, cells, cells), labels, torch.randn(1, CLASSES, 2, 2)
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("factor", [1.0, 1e4])
    def test_survives_half_precision(self, dtype: torch.dtype, factor: float) -> None:
        features, labels, logits = self.make_batch()
        contrast = self.make(temperature=0.01)
        self.check_step(contrast, (features * factor).to(dtype), labels, (logits * factor).to(dtype))

    def test_survives_equal_features(self) -> None:
        features, labels, logits = self.make_batch()
        self.check_step(self.make(), torch.ones_like(features), labels, logits)

    def test_labels_outside_the_classes_are_ignored(self) -> None:
        features, labels, logits = self.make_batch()
        contrast = self.make().eval()
        other = torch.where(labels == IGNORE, 77, labels)
        negative = torch.where(labels == IGNORE, -1, labels)
        expected = contrast(features, labels, logits).loss
        assert contrast(features, other, logits).loss == expected
        assert contrast(features, negative, logits).loss == expected
        assert contrast(features, other.to(torch.uint8), logits).loss == expected

    def test_another_ignore_value(self) -> None:
        features, labels, logits = self.make_batch()
        without_class_0 = torch.where(labels == 0, IGNORE, labels)
        contrast = self.make(ignore_value=0).eval()
        contrast.load_state_dict(self.make().state_dict())
        expected = self.make().eval()(features, without_class_0, logits).loss
        torch.testing.assert_close(contrast(features, labels, logits).loss, expected)

    def test_refuses_shapes_that_do_not_fit(self) -> None:
        features, labels, logits = self.make_batch()
        contrast = self.make()
        for wrong in [
            (features[:, 1:], labels, logits),
            (features, labels[:1], logits),
            (features, labels, logits[:, 1:]),
        ]:
            with pytest.raises(ValueError, match=r"must be"):
                contrast(*wrong)

    # ---------------------------------------------------- plumbing

    def test_makes_the_host_wait_for_nothing(self) -> None:
        contrast = self.make(anchors=8)
        features, labels, logits = self.make_batch()
        for given in (logits, None):
            with ForbidWaiting():
                contrast(features, labels, given).loss.backward()

    def test_same_seed_same_loss_and_the_global_random_state_is_left_alone(self) -> None:
        features, labels, logits = self.make_batch(size=8)
        contrast = self.make(anchors=6).eval()
        state = torch.get_rng_state()
        losses = [contrast(features, labels, logits, seed=seed).loss.item() for seed in (1, 1, 2)]
        assert losses[0] == losses[1]
        assert torch.equal(state, torch.get_rng_state())

    def test_figures_that_nobody_asked_for_are_not_made(self) -> None:
        features, labels, logits = self.make_batch()
        contrast = self.make().eval()
        described = contrast(features, labels, logits)
        plain = contrast(features, labels, logits, describe=False)
        assert described.diagnostics
        assert plain.diagnostics == {}
        assert torch.equal(plain.loss, described.loss)

    def test_memory_layout_does_not_matter(self) -> None:
        contrast = self.make().eval()
        features, labels, logits = self.make_batch()
        expected = contrast(features, labels, logits).loss
        other = contrast(features.contiguous(memory_format=torch.channels_last), labels, logits).loss
        torch.testing.assert_close(other, expected)
        assert torch.allclose(
            self.gradients(other, contrast, features)[0], self.gradients(expected, contrast, features)[0]
        )

    def test_autocast_does_not_matter(self) -> None:
        contrast = self.make().eval()
        features, labels, logits = self.make_batch()
        expected = contrast(features, labels, logits).loss
        with torch.autocast("cpu", torch.bfloat16):
            assert contrast(features, labels, logits).loss == expected

    def test_evaluation_changes_no_state(self) -> None:
        contrast = self.make().eval()
        before = {key: value.clone() for key, value in contrast.state_dict().items()}
        contrast(*self.make_batch())
        assert all(torch.equal(value, before[key]) for key, value in contrast.state_dict().items())

    def test_goes_on_from_its_saved_state(self) -> None:
        first, second = self.make(), self.make()
        batch = self.make_batch()
        first(*batch)
        second.load_state_dict(first.state_dict())
        assert first(*batch, seed=3).loss == second(*batch, seed=3).loss
