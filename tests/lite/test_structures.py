"""A batch of images of several sizes holds each of them, and nothing but the padding beside."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hicl_d2.lite.structures import ImageList

sides = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(deadline=None, max_examples=60)
@given(st.lists(sides, min_size=1, max_size=4), st.integers(0, 7), st.sampled_from([0.0, 255.0]))
def test_every_image_comes_back_and_the_rest_is_padding(
    sizes: list[tuple[int, int]], multiple: int, value: float
) -> None:
    images = [torch.rand(2, height, width) for height, width in sizes]
    batch = ImageList.from_tensors(images, multiple, value)
    height, width = batch.tensor.shape[-2:]
    step = max(multiple, 1)
    assert height % step == 0
    assert width % step == 0
    assert height - max(h for h, _ in sizes) < step
    assert width - max(w for _, w in sizes) < step
    for index, image in enumerate(images):
        assert torch.equal(batch[index], image)
        padding = batch.tensor[index].numel() - image.numel()
        assert int((batch.tensor[index] == value).sum()) == padding + int((image == value).sum())


def test_gradients_reach_the_images() -> None:
    images = [torch.rand(1, 2, 3, requires_grad=True), torch.rand(1, 4, 1, requires_grad=True)]
    ImageList.from_tensors(images, 4).tensor.sum().backward()
    assert all(torch.equal(image.grad, torch.ones_like(image)) for image in images)


def test_a_batch_does_not_share_memory_with_its_image() -> None:
    image = torch.zeros(1, 4, 4)
    ImageList.from_tensors([image]).tensor.fill_(1.0)
    assert image.sum() == 0
