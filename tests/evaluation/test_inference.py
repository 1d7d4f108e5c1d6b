"""Windows and sizes against models whose answer is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg
from hicl_d2.evaluation.inference import MultiScale, SlidingWindow, for_testing, window_starts


class PerPixel(nn.Module):
    """Scores that depend on each pixel alone: windows must change nothing."""

    def __init__(self, bias=0.0):
        super().__init__()
        self.bias = bias
        self.sizes = []

    def forward(self, inputs):
        outputs = []
        for record in inputs:
            image = record["image"].float()
            self.sizes.append(tuple(image.shape[1:]))
            scores = torch.stack([image[0] - image[1], image[2] * 0.5, image.sum(0) * 0.1 + self.bias])
            size = record["height"], record["width"]
            outputs.append(
                {"sem_seg": F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]}
            )
        return outputs


def record(height=23, width=31, seed=0):
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()
    return {"image": image, "height": height, "width": width}


@pytest.mark.parametrize(
    ("size", "stride"), [((8, 8), (5, 8)), ((23, 31), (23, 31)), ((50, 9), (7, 3)), ((1, 1), (1, 1))]
)
def test_windows_do_not_change_scores_of_single_pixels(size, stride):
    model = PerPixel()
    given = record()
    whole = model([given])[0]["sem_seg"]
    windows = SlidingWindow(model, size, stride)([given])[0]["sem_seg"]
    assert torch.allclose(windows, whole, atol=1e-4)


def test_overlaps_are_averaged():
    class Counter(nn.Module):
        """Answer the n-th window with n."""

        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, inputs):
            outputs = []
            for given in inputs:
                self.calls += 1
                outputs.append({"sem_seg": torch.full((1, *given["image"].shape[1:]), float(self.calls))})
            return outputs

    scores = SlidingWindow(Counter(), (2, 4), (2, 3))([record(2, 7)])[0]["sem_seg"]
    assert scores[0, 0].tolist() == [1, 1, 1, 1.5, 2, 2, 2]


def test_scores_are_resized_to_the_original_image():
    model = PerPixel()
    given = {**record(20, 30), "height": 40, "width": 60}
    expected = model([given])[0]["sem_seg"]
    assert torch.allclose(SlidingWindow(model, (10, 10), (6, 6))([given])[0]["sem_seg"], expected, atol=1e-3)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20, 23])
@pytest.mark.parametrize(("size", "stride"), [(8, 8), (8, 5), (8, 1)])
def test_windows_cover_every_pixel_and_stay_inside(length, size, stride):
    starts = window_starts(length, size, stride)
    covered = {pixel for start in starts for pixel in range(start, min(start + size, length))}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    assert starts[-1] == max(length - size, 0)


@pytest.fixture
def image_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return {"file_name": str(tmp_path / "image.png"), "height": 40, "width": 60}


@pytest.mark.parametrize("average_probabilities", [True, False])
def test_sizes_and_flips_are_averaged(image_file, average_probabilities):
    """Every pass written out by hand with Pillow."""
    model = PerPixel(bias=3.0)
    both = MultiScale(
        model, [20, 40], 1000, flip=True, image_format="RGB", average_probabilities=average_probabilities
    )
    result = both([image_file])[0]["sem_seg"]
    assert model.sizes == [(20, 30), (20, 30), (40, 60), (40, 60)]
    expected = torch.zeros(3, 40, 60)
    with Image.open(image_file["file_name"]) as image:
        for width, height in ((30, 20), (60, 40)):
            resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
            for turned in (resized, resized[:, ::-1].copy()):
                tensor = torch.from_numpy(turned).permute(2, 0, 1)
                scores = model([{**image_file, "image": tensor}])[0]["sem_seg"]
                scores = scores.softmax(0) if average_probabilities else scores
                expected += scores if turned is resized else scores.flip(2)
    assert torch.allclose(result, expected / 4, atol=1e-4)


@torch.no_grad()
def test_what_a_model_gives_is_not_written_over():
    """As a hook that keeps scores would see; such a tensor of inference_mode cannot be."""

    class Keeping(PerPixel):
        @torch.inference_mode()
        def forward(self, inputs):
            kept.extend(outputs := super().forward(inputs))
            copies.extend(output["sem_seg"].clone() for output in outputs)
            return outputs

    kept, copies = [], []
    model, given = Keeping(), record(20, 30)
    MultiScale(
        model, [20, 40], 90, flip=True, image_format="RGB", average_probabilities=False, of_given_image=True
    )([given])
    SlidingWindow(model, (10, 10), (5, 5))([given])
    assert len(kept) > 4
    assert all(torch.equal(output["sem_seg"], copy) for output, copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_in_half_precision_are_added_up_in_full(dtype):
    class Half(PerPixel):
        def forward(self, inputs):
            return [{"sem_seg": 100 * output["sem_seg"].to(dtype)} for output in super().forward(inputs)]

    given = record(20, 30)
    expected = Half()([given])[0]["sem_seg"].float()
    found = SlidingWindow(Half(), (20, 20), (1, 1))([given])[0]["sem_seg"]
    assert torch.allclose(found, expected, rtol=1e-5)


def test_a_size_that_leaves_nothing_of_an_image_is_one_line():
    model = MultiScale(PerPixel(), [20], 30, flip=True, image_format="RGB", of_given_image=True)
    with pytest.raises(InputError, match=r"0 x 30 of an image of 1 x 100; .* TEST\.AUG\.MAX_SIZE"):
        model([record(1, 100)])


@pytest.mark.parametrize("base", ["MaskFormer", "HiCLMaskFormer", "SemanticSegmentor"])
@pytest.mark.parametrize("with_branch", [True, False])
@pytest.mark.parametrize("softmax", [True, False])
def test_mask_formers_scores_are_averaged_as_they_are_over_sizes_of_the_resized_image(
    image_file, base, with_branch, softmax
):
    """Every pass written out by hand with Pillow."""
    cfg = get_hicl_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.HICL.BASE = ("HiCL", base) if with_branch else (base, "none")
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG_SOFTMAX = True, (24, 40), softmax
    cfg.INPUT.FORMAT = "RGB"
    with Image.open(image_file["file_name"]) as image:
        given = image.resize((45, 30), Image.Resampling.BILINEAR)
        start = image.copy() if base == "SemanticSegmentor" else given
    model = PerPixel(bias=3.0)
    record = {**image_file, "image": torch.from_numpy(np.array(given)).permute(2, 0, 1)}
    result = for_testing(cfg, model)([record])[0]["sem_seg"]
    expected = torch.zeros(3, 40, 60)
    for width, height in ((36, 24), (60, 40)):
        resized = np.array(start.resize((width, height), Image.Resampling.BILINEAR))
        for turned in (resized, resized[:, ::-1].copy()):
            scores = model([{**image_file, "image": torch.from_numpy(turned).permute(2, 0, 1)}])[0]["sem_seg"]
            scores = scores.softmax(0) if softmax and base == "SemanticSegmentor" else scores
            expected += scores if turned is resized else scores.flip(2)
    assert torch.allclose(result, expected / 4, atol=1e-4)


def test_nothing_is_put_around_a_model_unless_asked():
    cfg = get_hicl_cfg()
    model = PerPixel()
    assert for_testing(cfg, model) is model
    cfg.TEST.WINDOW = [8, 9]
    windows = for_testing(cfg, model)
    assert (windows.size, windows.stride) == ((8, 9), (5, 6))
    cfg.TEST.WINDOW_STRIDE = [3, 4]
    assert for_testing(cfg, model).stride == (3, 4)
    cfg.TEST.AUG.ENABLED = True
    cfg.TEST.AUG.MIN_SIZES = (20, 30)
    cfg.TEST.AUG_SOFTMAX = False
    both = for_testing(cfg, model)
    assert isinstance(both, MultiScale)
    assert isinstance(both.model, SlidingWindow)
    assert (len(both.resizes), both.flip, both.average_probabilities) == (2, True, False)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_kept(training):
    model = PerPixel().train(training)
    assert SlidingWindow(model, (4, 4), (4, 4)).training is training
    assert model.training is training


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("WINDOW", [0, 4], "TEST.WINDOW is"),
        ("WINDOW", [4], "TEST.WINDOW is"),
        ("WINDOW_STRIDE", [9, 4], "passes over pixels"),
    ],
)
def test_windows_without_meaning_are_refused(key, value, message):
    cfg = get_hicl_cfg()
    cfg.TEST.WINDOW = [8, 8]
    cfg.TEST[key] = value
    with pytest.raises(InputError, match=message):
        for_testing(cfg, PerPixel())


def test_a_model_sees_windows_of_one_size_alone():
    seen = []

    class Sizes(torch.nn.Module):
        def forward(self, records):
            seen.extend(tuple(record["image"].shape[1:]) for record in records)
            return [{"sem_seg": record["image"].float()} for record in records]

    image = torch.randint(256, (3, 5, 19), dtype=torch.uint8)
    scores = SlidingWindow(Sizes(), (8, 8), (5, 5)).scores({"image": image})
    assert set(seen) == {(8, 8)}
    torch.testing.assert_close(scores, image.float())
