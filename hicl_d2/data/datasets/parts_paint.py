"""Painting for the data set ``parts``: random draws, noise, a canvas, a brush that knows each part's look.

Pixels are the same on every platform: the draws are raw 64-bit numbers of PCG64, and the painting uses sums,
products, quotients and roundings alone, which IEEE 754 defines to the last bit.
"""

import math
from dataclasses import dataclass

import numpy as np

SIZE = 128
# Everything is drawn at twice the size; a pixel whose four quarters differ in class lies on a boundary and is
# ignored.
FINE = 2 * SIZE

Colour = tuple[float, float, float]
LEAVES: list[Colour] = [(58, 104, 44), (84, 122, 46), (52, 92, 62), (120, 118, 42)]
CLOTH: list[Colour] = [(236, 232, 222), (226, 214, 190), (214, 224, 230)]
PAINTS: list[Colour] = [
    (188, 46, 42),
    (44, 84, 160),
    (222, 176, 52),
    (60, 128, 118),
    (150, 150, 156),
    (112, 62, 120),
]
ROOFS: list[Colour] = [(150, 60, 48), (92, 72, 76), (70, 84, 104), (172, 92, 52)]
WOODS: list[Colour] = [(142, 100, 60), (124, 86, 56), (160, 118, 72)]
LIGHT: Colour = (252, 224, 128)
TYRE: Colour = (44, 42, 46)
HUB: Colour = (150, 148, 146)
GLASS: Colour = (150, 190, 206)


class Draws:
    """Random numbers that no version of numpy changes."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def array(self, *shape: int) -> np.ndarray:
        """Return uniform numbers in [0, 1)."""
        raw = self._bits.random_raw(math.prod(shape))
        return (raw >> np.uint64(11)).astype(np.float64).reshape(shape) / 2.0**53

    def between(self, low: float, high: float) -> float:
        """Return a uniform number in [low, high)."""
        return low + (high - low) * float(self.array(1)[0])

    def below(self, count: int) -> int:
        """Return one of 0, 1, ..., count - 1."""
        return int(self.between(0, count))

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.between(0, 1) < probability

    def one_of(self, colours: list[Colour], spread: float = 30.0) -> np.ndarray:
        """Return one of ``colours``, a little changed."""
        return np.array(colours[self.below(len(colours))], dtype=np.float64) + spread * (
            2 * self.array(3) - 1
        )


class Noise:
    """A smooth random function of the plane with values in [0, 1)."""

    CELLS = 16  # a power of two, after which it repeats
    MASK = CELLS - 1

    def __init__(self, draws: Draws) -> None:
        self._lattice = draws.array(self.CELLS * self.CELLS)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        left, top = np.floor(x), np.floor(y)
        fx, fy = x - left, y - top
        fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
        column, row = left.astype(np.int32) & self.MASK, (top.astype(np.int32) & self.MASK) * self.CELLS
        right, below = (column + 1) & self.MASK, (row + self.CELLS) & (self.CELLS * self.CELLS - 1)
        corners = [self._lattice.take(r + c) for r in (row, below) for c in (column, right)]
        upper = corners[0] + (corners[1] - corners[0]) * fx
        lower = corners[2] + (corners[3] - corners[2]) * fx
        return upper + (lower - upper) * fy


@dataclass
class Pose:
    """Where an object stands: its foot and its unit on the fine grid, its lean and whether it is mirrored."""

    x: float
    y: float
    unit: float
    lean: float
    mirrored: bool


class Canvas:
    """The scene while it is painted, on the fine grid: later paint covers earlier paint."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws
        self.rows, self.columns = np.mgrid[:FINE, :FINE].astype(np.float64)
        self.image = np.zeros((FINE, FINE, 3))
        self.labels = np.zeros((FINE, FINE), dtype=np.uint8)
        self.grain = Noise(draws)


class Brush:
    """Paints the parts of one object in its coordinates: u to the right, v up from the foot, in units."""

    # No part lies further from the foot than this, in units: to the sides, upwards, downwards.
    SIDE, UP, DOWN = 1.6, 2.4, 0.35

    def __init__(self, canvas: Canvas, pose: Pose, label: int) -> None:
        self._canvas = canvas
        self.draws = canvas.draws
        self._label = label
        top, bottom = (
            max(int(pose.y - self.UP * pose.unit), 0),
            min(int(pose.y + self.DOWN * pose.unit), FINE),
        )
        left, right = (
            max(int(pose.x - self.SIDE * pose.unit), 0),
            min(int(pose.x + self.SIDE * pose.unit), FINE),
        )
        self._window = slice(top, bottom), slice(left, right)
        # A rotation by rational numbers: cosine and sine of twice the arc tangent of the lean.
        norm = 1 + pose.lean * pose.lean
        cosine, sine = (1 - pose.lean * pose.lean) / norm, 2 * pose.lean / norm
        dx = (canvas.columns[self._window] - pose.x) / pose.unit
        dy = (pose.y - canvas.rows[self._window]) / pose.unit
        self.u = (dx * cosine + dy * sine) * (-1 if pose.mirrored else 1)
        self.v = dy * cosine - dx * sine

    def fill(self, mask: np.ndarray, colour: np.ndarray, shade: np.ndarray | float = 1.0) -> None:
        """Paint ``mask`` in one colour times ``shade``, a number or one number for each pixel of the mask."""
        light = 1.0 - 0.06 * self.u[mask]
        self._canvas.image[self._window][mask] = colour * (light * shade)[:, None]
        self._canvas.labels[self._window][mask] = self._label

    def darken(self, mask: np.ndarray, factor: float) -> None:
        """Darken what is there, whatever it is, and leave its class."""
        self._canvas.image[self._window][mask] *= factor

    def box(self, left: float, right: float, low: float, high: float) -> np.ndarray:
        """Return the mask of a rectangle."""
        return (self.u >= left) & (self.u <= right) & (self.v >= low) & (self.v <= high)

    def ellipse(self, u: float, v: float, radius_u: float, radius_v: float) -> np.ndarray:
        """Return the mask of an ellipse."""
        du, dv = (self.u - u) / radius_u, (self.v - v) / radius_v
        return du * du + dv * dv <= 1

    def taper(
        self, low: float, high: float, half_low: float, half_high: float, centre: float = 0.0
    ) -> np.ndarray:
        """Return the mask of a trapezium whose half width goes from ``half_low`` to ``half_high``."""
        share = (self.v - low) / (high - low)
        half = half_low + (half_high - half_low) * share
        return (share >= 0) & (share <= 1) & (np.abs(self.u - centre) <= half)

    def wood(self, mask: np.ndarray, along_v: bool) -> None:
        """Paint planks, with their grain upwards or sideways: one look, whatever they are part of."""
        u, v = self.u[mask], self.v[mask]
        along, across = (v, u) if along_v else (u, v)
        shift = self.draws.between(0, Noise.CELLS)
        across = across / 0.16 + shift
        plank = np.floor(across)
        gap = np.abs(across - plank - 0.5) > 0.42
        grain = self._canvas.grain(along * 3 + 5 * plank, across * 6)
        tone = self._canvas.grain(plank * 0.73, 0 * plank + shift)
        self.fill(mask, self.draws.one_of(WOODS, 24), 0.74 + 0.3 * grain + 0.18 * tone - 0.22 * gap)

    def wheel(self, u: float, v: float, radius: float) -> None:
        """Paint a wheel: one look, whatever it rolls."""
        du, dv = np.abs(self.u - u) / radius, np.abs(self.v - v) / radius
        distance = du * du + dv * dv
        rim = distance <= 0.38
        self.fill(distance <= 1, np.array(TYRE))
        self.fill(rim, np.array(HUB), 0.9)
        self.fill(rim & ((du < 0.1) | (dv < 0.1)), np.array(TYRE))
        self.fill(distance <= 0.04, np.array(TYRE), 1.4)

    def foliage(self, u: float, v: float, radius_u: float, radius_v: float) -> None:
        """Paint leaves: a round heap with a ragged edge."""
        du, dv = (self.u - u) / radius_u, (self.v - v) / radius_v
        distance = du * du + dv * dv
        mask = distance <= 1.17
        mask[mask] = distance[mask] <= 0.62 + 0.55 * self._canvas.grain(
            self.u[mask] * 6 + 3, self.v[mask] * 6
        )
        spots = self._canvas.grain(self.u[mask] * 14, self.v[mask] * 14 + 7)
        self.fill(mask, self.draws.one_of(LEAVES), 0.66 + 0.5 * spots + 0.12 * dv[mask])

    def cloth(self, mask: np.ndarray) -> None:
        """Paint a sheet with folds."""
        folds = self._canvas.grain(self.u[mask] * 5 + self.v[mask] * 2, self.v[mask] * 1.5)
        self.fill(mask, self.draws.one_of(CLOTH, 16), 0.84 + 0.2 * folds)

    def lantern(self, low: float) -> None:
        """Paint a lamp's head, standing on ``low``."""
        self.fill(self.taper(low, low + 0.46, 0.24, 0.4), np.array(LIGHT))
        self.fill(self.taper(low + 0.46, low + 0.62, 0.46, 0.14), np.array(TYRE), 1.3)

    def roof(self, low: float, half: float) -> None:
        """Paint rows of tiles, ``half`` wide to each side at the eaves."""
        mask = self.taper(low, low + self.draws.between(0.45, 0.65), half, 0.1)
        row = np.floor(self.v[mask] / 0.09)
        self.fill(mask, self.draws.one_of(ROOFS), 0.9 + 0.16 * (row - 2 * np.floor(row / 2)))

    def window(self, left: float, right: float, low: float, high: float) -> None:
        """Paint a pane of glass."""
        self.fill(self.box(left, right, low, high), np.array(GLASS), 0.85)

    def body(self, length: float, low: float) -> None:
        """Paint a car without its wheels, ``length`` long to each side, its floor at ``low``."""
        paint = self.draws.one_of(PAINTS)
        middle, top = low + 0.42, low + self.draws.between(0.7, 0.85)
        self.fill(self.taper(middle - 0.05, top, 0.66 * length, 0.4 * length, centre=0.06), paint, 0.92)
        glass = self.taper(middle - 0.02, top - 0.08, 0.54 * length, 0.34 * length, centre=0.06)
        glass &= np.abs(self.u - 0.06) > 0.04
        self.fill(glass, np.array(GLASS), 1.0)
        lower = self.box(-length, length, low, low + 0.44)
        lower &= (np.abs(self.u) < length - 0.1) | (self.v < low + 0.34)
        self.fill(lower, paint, 0.86 + 0.3 * (self.v[lower] - low))

    def shadow(self, width: float) -> None:
        """Darken the ground under the object."""
        self.darken(self.ellipse(0.08, 0.0, width, 0.13), 0.78)
