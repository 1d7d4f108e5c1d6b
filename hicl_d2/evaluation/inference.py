"""Ways to run a model on an image: windows that slide over it, and several sizes with flips."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicl_d2.command.errors import InputError
from hicl_d2.d2 import transforms as T
from hicl_d2.d2.config import CfgNode
from hicl_d2.modeling.mask_former.check import MASK_FORMERS
from hicl_d2.modeling.settings import base_architecture
from hicl_d2.reading import read_image

# Windows that go through the model together.
WINDOWS_AT_ONCE = 4
# What an image smaller than a window is padded with: a middle grey, as in training.
PADDING = 128
# Key of a record: the decoded image (H, W, 3), uint8, RGB, where whoever mapped it keeps it.
DECODED = "decoded"


def for_testing(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return ``model``, or a model around it that does what TEST.WINDOW and TEST.AUG ask for."""
    size = tuple(cfg.TEST.WINDOW)
    if size:
        stride = tuple(cfg.TEST.WINDOW_STRIDE) or tuple(max(1, 2 * length // 3) for length in size)
        _check_window(size, stride)
        model = SlidingWindow(model, size, stride)
    augmentation = cfg.TEST.AUG
    if augmentation.ENABLED:
        # Mask2Former's scores are no logits, and its own test-time augmentation resizes what the test has resized before.
        is_mask_former = base_architecture(cfg) in MASK_FORMERS
        model = MultiScale(
            model,
            augmentation.MIN_SIZES,
            augmentation.MAX_SIZE,
            flip=augmentation.FLIP,
            image_format=cfg.INPUT.FORMAT,
            average_probabilities=cfg.TEST.AUG_SOFTMAX and not is_mask_former,
            of_given_image=is_mask_former,
        )
    return model


def _check_window(size: Sequence[int], stride: Sequence[int]) -> None:
    for key, value in (("WINDOW", size), ("WINDOW_STRIDE", stride)):
        if len(value) != 2 or min(value) < 1:
            raise InputError(
                f"TEST.{key} is {tuple(value)}; give height and width in pixels, at least 1 each"
            )
    if any(step > length for step, length in zip(stride, size, strict=True)):
        raise InputError(
            f"TEST.WINDOW_STRIDE {tuple(stride)} passes over pixels between windows of {tuple(size)}; make it smaller"
        )


class _Around(nn.Module):
    """A model around a model, in the same mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Return {"sem_seg": (K, height, width)} for every input."""
        return [{"sem_seg": self.scores(record)} for record in batched_inputs]

    def scores(self, record: dict[str, Any]) -> Tensor:
        raise NotImplementedError


class Named(_Around):
    """Run a model, and say at which image it fails if it does."""

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Return what the model does; an InputError begins with the files' names, any other exception has them as a note."""
        try:
            return self.model(batched_inputs)
        except InputError as error:
            raise InputError(f"{_names(batched_inputs)}: {error}") from None
        except Exception as error:
            error.add_note(f"while predicting {_names(batched_inputs)}")
            raise


def _names(records: Sequence[dict[str, Any]]) -> str:
    return ", ".join(
        f"{record.get('file_name', 'an image')} ({' x '.join(map(str, record['image'].shape[1:]))} as the model sees it)"
        for record in records
    )


class SlidingWindow(_Around):
    """Run a model on windows of ``size`` (h, w), ``stride`` apart, and average its scores where they overlap.

    The last window of a row or column ends with the image. Where an image is smaller than a window, it is padded to one: a
    model sees windows of one size alone, which some pool over.
    """

    def __init__(self, model: nn.Module, size: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__(model)
        self.size = tuple(size)
        self.stride = tuple(stride)

    def scores(self, record: dict[str, Any]) -> Tensor:
        """Return the scores (K, height, width) of one record, whose "image" is (3, H, W)."""
        image = record["image"]
        height, width = image.shape[1:]
        rows, columns = map(window_starts, (height, width), self.size, self.stride)
        total = count = torch.zeros(0)
        for top, left, output in self._outputs(image, list(product(rows, columns))):
            if not len(total):
                dtype = torch.promote_types(output.dtype, torch.float32)  # half precision cannot hold a sum
                total = output.new_zeros(len(output), height, width, dtype=dtype)
                count = output.new_zeros(height, width, dtype=dtype)
            bottom, right = top + output.shape[1], left + output.shape[2]
            total[:, top:bottom, left:right] += output
            count[top:bottom, left:right] += 1
        mean = total.div_(count)
        size = record.get("height", height), record.get("width", width)
        if size == (height, width):
            return mean
        return F.interpolate(mean[None], size, mode="bilinear", align_corners=False)[0]

    def _outputs(
        self, image: Tensor, corners: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Yield each window's corner and its scores (K, h, w)."""
        for start in range(0, len(corners), WINDOWS_AT_ONCE):
            some = corners[start : start + WINDOWS_AT_ONCE]
            parts = [image[:, top : top + self.size[0], left : left + self.size[1]] for top, left in some]
            records = [
                {"image": self._pad(part), "height": self.size[0], "width": self.size[1]} for part in parts
            ]
            for (top, left), part, output in zip(some, parts, self.model(records), strict=True):
                yield top, left, output["sem_seg"][:, : part.shape[1], : part.shape[2]]

    def _pad(self, part: Tensor) -> Tensor:
        """Pad what is smaller than a window (3, h, w) at the right and at the bottom."""
        missing = (0, self.size[1] - part.shape[2], 0, self.size[0] - part.shape[1])
        return F.pad(part, missing, value=PADDING).contiguous()


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Return where windows of ``size`` begin along an axis of ``length``, so that all of it is covered."""
    last = max(length - size, 0)
    return [*range(0, last, stride), last]


class MultiScale(_Around):
    """Average a model's scores over several sizes of the image, and over each of them mirrored.

    The image is that of the record's DECODED, or read afresh from its "file_name", in its own size; with
    ``of_given_image`` it is the record's "image", as the test resized it. It is brought to each short side of
    ``min_sizes`` (as far as ``max_size`` lets it). With ``average_probabilities`` the softmax over the classes is taken
    first, so that no size outweighs others by greater scores; without, the scores are averaged as they are, for models
    whose scores are bounded already.
    """

    def __init__(
        self,
        model: nn.Module,
        min_sizes: Sequence[int],
        max_size: int,
        *,
        flip: bool,
        image_format: str,
        average_probabilities: bool = True,
        of_given_image: bool = False,
    ) -> None:
        super().__init__(model)
        if not len(min_sizes) or min(min_sizes) < 1:
            raise InputError(
                f"TEST.AUG.MIN_SIZES is {tuple(min_sizes)}; give lengths of the short side in pixels"
            )
        self.resizes = [T.ResizeShortestEdge(size, max_size) for size in min_sizes]
        self.flip = flip
        self.image_format = image_format
        self.average_probabilities = average_probabilities
        self.of_given_image = of_given_image

    def scores(self, record: dict[str, Any]) -> Tensor:
        """Return the scores (K, height, width) of one record, averaged over sizes and flips.

        Raises InputError for an image of which a size leaves nothing.
        """
        if self.of_given_image:
            image = record["image"].permute(1, 2, 0).cpu().numpy()
        elif DECODED in record:
            decoded = record[DECODED].numpy()
            image = decoded[:, :, ::-1] if self.image_format == "BGR" else decoded
        else:
            image = read_image(record["file_name"], self.image_format)
        size = {
            "height": record.get("height", image.shape[0]),
            "width": record.get("width", image.shape[1]),
        }
        total = None
        for resize in self.resizes:
            transform = resize.get_transform(image)
            if min(transform.new_h, transform.new_w) < 1:
                raise InputError(
                    f"TEST.AUG leaves {transform.new_h} x {transform.new_w} of an image of {image.shape[0]} x "
                    f"{image.shape[1]}; take it out or raise TEST.AUG.MAX_SIZE"
                )
            resized = transform.apply_image(image)
            tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
            for mirrored in (False, True) if self.flip else (False,):
                given = {**record, **size, "image": tensor.flip(2) if mirrored else tensor}
                (output,) = self.model([given])
                scores = output["sem_seg"].float()
                if self.average_probabilities:
                    scores = scores.softmax(dim=0)
                scores = scores.flip(2) if mirrored else scores
                total = scores.clone() if total is None else total.add_(scores)  # the model may keep its own
        assert total is not None
        return total.div_(len(self.resizes) * (1 + self.flip))
