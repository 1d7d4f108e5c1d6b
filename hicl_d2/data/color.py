"""Colour augmentation of SSD, without OpenCV and with OpenCV's figures.

They are those of its vector code. What is left over at the end of a row, fewer than 32 pixels, OpenCV rounds otherwise: there
a channel can differ by one.
"""

import random

import numpy as np

from hicl_d2.d2.transforms import Transform

# OpenCV's conversion of 8-bit images to hue (0 to 179), saturation and value: quotients in fixed point.
FIXED_POINT = 12
HALF = 1 << (FIXED_POINT - 1)
SATURATION_STEPS = np.float32(255 << FIXED_POINT)
HUE_STEPS = np.float32((180 << FIXED_POINT) / 6)

# And back: a channel is value x (1 - saturation x gap). Its gap depends on the hue alone: 0 where the channel is the
# largest, 1 where it is the smallest, and in between it falls to 0 at the first and rises from 0 at the second of these
# sixths of the circle. Blue's arc lies around 4, green's around 2; red's goes through 0, so that it is the other way round.
BLUE, GREEN, RED = (3, 5), (1, 3), (5, 1)

# Pixels that are converted at a time: what lies in between stays in the processor's cache.
STRIP = 1 << 15


def bgr_to_hsv(planes: np.ndarray) -> np.ndarray:
    """Convert channels (3, ...), uint8, from BGR to hue (0 to 179), saturation and value (0 to 255)."""
    blue, green, red = planes
    value = np.maximum(np.maximum(blue, green), red)
    spread = value - np.minimum(np.minimum(blue, green), red)
    b, g, r, width = (channel.astype(np.int16) for channel in (blue, green, red, spread))
    turn = np.where(value == green, b - r + 2 * width, r - g + 4 * width)
    hue = np.where(value == red, g - b, turn).astype(np.int32)
    hue = _divide(hue, HUE_STEPS, spread)
    hue += (hue >> 31) & 180
    converted = np.empty(planes.shape, dtype=np.uint8)
    converted[0] = hue
    converted[1] = _divide(spread.astype(np.int32), SATURATION_STEPS, value)
    converted[2] = value
    return converted


def _divide(numbers: np.ndarray, steps: np.float32, divisors: np.ndarray) -> np.ndarray:
    numbers = numbers * np.rint(steps / np.maximum(divisors, 1).astype(np.float32)).astype(np.int32)
    numbers += HALF
    numbers >>= FIXED_POINT
    return numbers


def hsv_to_bgr(planes: np.ndarray) -> np.ndarray:
    """Convert channels (3, ...), uint8, from hue (0 to 179), saturation and value to BGR."""
    hue, saturation, value = (channel.astype(np.float32) for channel in planes)
    hue *= np.float32(6 / 180)
    saturation *= np.float32(1 / 255)
    value *= np.float32(1 / 255)
    exact = saturation.astype(np.float64)
    converted = np.empty(planes.shape, dtype=np.uint8)
    for channel, (zero, one) in zip(converted, (BLUE, GREEN, RED), strict=True):
        meet = np.maximum if zero < one else np.minimum
        gap = meet(np.float32(zero) - hue, hue - np.float32(one))
        np.clip(gap, 0, 1, out=gap)
        # One rounding for product and difference together, as in a fused multiply-add; then OpenCV cuts off.
        rest = (1 - exact * gap).astype(np.float32)
        rest *= value
        rest *= np.float32(255)
        channel[...] = rest
    return converted


class ColorAugSSDTransform(Transform):
    """Change brightness, contrast, saturation and hue of an image, each half of the time.

    The draws come from Python's ``random``, in the order of Detectron2's class of this name, and so do the
    arguments. Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016.
    """

    def __init__(
        self,
        img_format: str,
        brightness_delta: float = 32,
        contrast_low: float = 0.5,
        contrast_high: float = 1.5,
        saturation_low: float = 0.5,
        saturation_high: float = 1.5,
        hue_delta: int = 18,
    ) -> None:
        super().__init__()
        assert img_format in ("BGR", "RGB"), f"the image format is BGR or RGB, not {img_format}"
        self.img_format = img_format
        self.is_rgb = img_format == "RGB"
        self.brightness_delta = brightness_delta
        self.contrast_low = contrast_low
        self.contrast_high = contrast_high
        self.saturation_low = saturation_low
        self.saturation_high = saturation_high
        self.hue_delta = hue_delta

    def apply_image(self, img: np.ndarray, interp: object = None) -> np.ndarray:
        """Return the changed image (H, W, 3), uint8, each channel in one piece."""
        planes = img.transpose(2, 0, 1)
        planes = self._change(np.ascontiguousarray(planes[::-1] if self.is_rgb else planes))
        return (planes[::-1] if self.is_rgb else planes).transpose(1, 2, 0)

    def _change(self, planes: np.ndarray) -> np.ndarray:
        planes = self.brightness(planes)
        contrast_first = random.randrange(2)
        if contrast_first:
            planes = self.contrast(planes)
        planes = self.hue(self.saturation(planes))
        return planes if contrast_first else self.contrast(planes)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return ``coords`` unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return ``segmentation`` unchanged."""
        return segmentation

    def brightness(self, planes: np.ndarray) -> np.ndarray:
        """Half of the time add one number to all channels (3, H, W)."""
        if random.randrange(2):
            return _look_up(
                planes, _scaled(beta=random.uniform(-self.brightness_delta, self.brightness_delta))
            )
        return planes

    def contrast(self, planes: np.ndarray) -> np.ndarray:
        """Half of the time multiply all channels (3, H, W) by one factor."""
        if random.randrange(2):
            return _look_up(planes, _scaled(alpha=random.uniform(self.contrast_low, self.contrast_high)))
        return planes

    def saturation(self, planes: np.ndarray) -> np.ndarray:
        """Half of the time multiply the saturation of BGR channels (3, H, W) by one factor."""
        if random.randrange(2):
            factor = random.uniform(self.saturation_low, self.saturation_high)
            return _change_hsv(planes, 1, _scaled(alpha=factor))
        return planes

    def hue(self, planes: np.ndarray) -> np.ndarray:
        """Half of the time turn the hue of BGR channels (3, H, W) by a whole number of steps of two degrees."""
        if random.randrange(2):
            turned = (np.arange(256) + random.randint(-self.hue_delta, self.hue_delta)) % 180
            return _change_hsv(planes, 0, turned.astype(np.uint8))
        return planes


def _scaled(alpha: float = 1, beta: float = 0) -> np.ndarray:
    """Return what becomes of the values 0 to 255."""
    return np.clip(np.arange(256, dtype=np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def _look_up(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return ``table[values]``, uint8, several times as fast."""
    return np.frombuffer(bytearray(values).translate(table.tobytes()), dtype=np.uint8).reshape(values.shape)


def _change_hsv(planes: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Put BGR ``planes`` through ``table`` in one channel of hue, saturation and value."""
    flat = planes.reshape(3, -1)
    changed = np.empty_like(flat)
    for start in range(0, flat.shape[1], STRIP):
        strip = slice(start, start + STRIP)
        hsv = bgr_to_hsv(flat[:, strip])
        hsv[channel] = _look_up(hsv[channel], table)
        changed[:, strip] = hsv_to_bgr(hsv)
    return changed.reshape(planes.shape)
