"""Colour augmentation of SSD, without OpenCV and with OpenCV's figures."""

import random

import numpy as np

from hicl_d2.d2.transforms import Transform

# OpenCV's conversion of 8-bit images to hue (0 to 179), saturation and value: quotients from tables in fixed
# point.
FIXED_POINT = 12
HALF = 1 << (FIXED_POINT - 1)
_divisors = np.maximum(np.arange(256), 1)
SATURATION_STEPS = np.rint((255 << FIXED_POINT) / _divisors).astype(np.int32)
HUE_STEPS = np.rint((180 << FIXED_POINT) / (6.0 * _divisors)).astype(np.int32)

# And back: a channel is value x (1 - saturation x gap), where its gap depends on the hue alone, from 0 where
# the channel is the largest to 1 where it is the smallest. The gaps of blue, green and red, for every hue:
_sextants = np.arange(180, dtype=np.float32) * np.float32(6 / 180)
_rise = (_sextants - np.floor(_sextants)).astype(np.float64)
_falls = (np.float32(1) - _rise.astype(np.float32)).astype(np.float64)
_zero, _one = np.zeros(180), np.ones(180)
_GAPS_BY_SEXTANT = {
    "blue": (_one, _one, _falls, _zero, _zero, _rise),
    "green": (_falls, _zero, _zero, _rise, _one, _one),
    "red": (_zero, _rise, _one, _one, _falls, _zero),
}
GAPS = np.stack([np.choose(np.floor(_sextants).astype(int), gaps) for gaps in _GAPS_BY_SEXTANT.values()])
SHARES = np.arange(256, dtype=np.float32) * np.float32(1 / 255)


def bgr_to_hsv(image: np.ndarray) -> np.ndarray:
    """Convert an image (H, W, 3), uint8, from BGR to hue (0 to 179), saturation and value (0 to 255)."""
    blue, green, red = (image[:, :, channel].astype(np.int16) for channel in range(3))
    value = np.maximum(np.maximum(blue, green), red)
    spread = value - np.minimum(np.minimum(blue, green), red)
    hue = np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = np.where(value == red, green - blue, hue)
    hue = (hue * HUE_STEPS.take(spread) + HALF) >> FIXED_POINT
    converted = np.empty(image.shape, dtype=np.uint8)
    converted[:, :, 0] = hue + 180 * (hue < 0)
    converted[:, :, 1] = (spread * SATURATION_STEPS.take(value) + HALF) >> FIXED_POINT
    converted[:, :, 2] = value
    return converted


def hsv_to_bgr(image: np.ndarray) -> np.ndarray:
    """Convert an image (H, W, 3), uint8, from hue (0 to 179), saturation and value to BGR."""
    hue = image[:, :, 0].astype(np.intp)
    saturation = SHARES.astype(np.float64).take(image[:, :, 1])
    value = SHARES.take(image[:, :, 2])
    converted = np.empty(image.shape, dtype=np.uint8)
    for channel, gaps in enumerate(GAPS):
        # One rounding for product and difference together, as in a fused multiply-add; then OpenCV cuts off.
        rest = (1 - saturation * gaps.take(hue)).astype(np.float32)
        converted[:, :, channel] = value * rest * np.float32(255)
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
        """Return the changed image (H, W, 3), uint8."""
        img = img[:, :, ::-1] if self.is_rgb else img
        img = self.brightness(img)
        contrast_first = random.randrange(2)
        if contrast_first:
            img = self.contrast(img)
        img = self.hue(self.saturation(img))
        if not contrast_first:
            img = self.contrast(img)
        return img[:, :, ::-1] if self.is_rgb else img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return ``coords`` unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return ``segmentation`` unchanged."""
        return segmentation

    def brightness(self, img: np.ndarray) -> np.ndarray:
        """Half of the time add one number to all channels."""
        if random.randrange(2):
            return _convert(img, beta=random.uniform(-self.brightness_delta, self.brightness_delta))
        return img

    def contrast(self, img: np.ndarray) -> np.ndarray:
        """Half of the time multiply all channels by one factor."""
        if random.randrange(2):
            return _convert(img, alpha=random.uniform(self.contrast_low, self.contrast_high))
        return img

    def saturation(self, img: np.ndarray) -> np.ndarray:
        """Half of the time multiply the saturation by one factor."""
        if random.randrange(2):
            hsv = bgr_to_hsv(img)
            factor = random.uniform(self.saturation_low, self.saturation_high)
            hsv[:, :, 1] = _convert(hsv[:, :, 1], alpha=factor)
            return hsv_to_bgr(hsv)
        return img

    def hue(self, img: np.ndarray) -> np.ndarray:
        """Half of the time turn the hue by a whole number of steps of two degrees."""
        if random.randrange(2):
            hsv = bgr_to_hsv(img)
            hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + random.randint(-self.hue_delta, self.hue_delta)) % 180
            return hsv_to_bgr(hsv)
        return img


def _convert(img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
    return np.clip(img.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)
