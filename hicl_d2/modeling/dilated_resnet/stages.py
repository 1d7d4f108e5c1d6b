"""The stages of a dilated ResNet: blocks, strides and dilations, as MODEL.RESNETS sets them."""

from collections.abc import Sequence

from hicl_d2.d2.config import CfgNode

# Blocks in res2, res3, res4, res5.
BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STAGES = ("res2", "res3", "res4", "res5")


def dilated_resnet_strides(settings: CfgNode) -> dict[str, int]:
    """Return the stride of each feature that a dilated ResNet of these MODEL.RESNETS settings can output."""
    strides = {"stem": 4}
    for name, (stride, _) in zip(STAGES, strides_and_dilations(settings), strict=True):
        strides[name] = stride * list(strides.values())[-1]
    return strides


def strides_and_dilations(settings: CfgNode) -> list[tuple[int, Sequence[int]]]:
    """Return the stride of each stage's first block and the dilation of each of its blocks."""
    plain = (1, 1, settings.RES4_DILATION)
    stages: list[tuple[int, Sequence[int]]] = []
    for index, (dilation, num_blocks) in enumerate(
        zip(plain, BLOCKS_PER_STAGE[settings.DEPTH], strict=False)
    ):
        stages.append((1 if index == 0 or dilation > 1 else 2, [dilation] * num_blocks))
    stages.append(
        (
            1 if settings.RES5_DILATION > 1 else 2,
            [settings.RES5_DILATION * step for step in multi_grid(settings)],
        )
    )
    return stages


def multi_grid(settings: CfgNode) -> list[int]:
    """Return the dilation factor of each block of res5; ResNet-18 has two blocks there and uses the first two factors."""
    return list(settings.RES5_MULTI_GRID)[: 2 if settings.DEPTH == 18 else None]
