"""Scenes of the data set ``parts``: objects made of parts, on a textured ground, among clutter.

Looks are shared on purpose. Planks of wood make a tree's trunk, a lamp's pole, a boat's hull, a cart's box
and a house's walls; wheels belong to carts and cars. And every part also lies about alone, as clutter, which
is background: a post, a wheel, a crown without a trunk, a sail without a hull. So neither the colour of a
pixel nor the part that it belongs to tells its class; the composition around it does.
"""

from collections.abc import Callable

import numpy as np

from hicl_d2.data.datasets.parts_paint import FINE, SIZE, Brush, Canvas, Colour, Draws, Noise, Pose

CLASSES = ("background", "tree", "lamp", "boat", "cart", "car", "house")
BACKGROUND, TREE, LAMP, BOAT, CART, CAR, HOUSE = range(len(CLASSES))
IGNORE = 255

# At the top and at the bottom of the image.
GROUNDS: list[tuple[Colour, Colour]] = [
    ((176, 190, 150), (96, 124, 66)),  # meadow
    ((214, 204, 184), (182, 152, 108)),  # sand
    ((150, 164, 182), (96, 106, 122)),  # dusk
    ((196, 190, 186), (138, 120, 106)),  # clay
    ((168, 196, 206), (84, 128, 140)),  # water
]


def _tree(brush: Brush) -> None:
    height = brush.draws.between(0.7, 1.1)
    brush.shadow(0.5)
    brush.wood(brush.taper(0, height + 0.2, 0.17, 0.12), along_v=True)
    _crown(brush, height + 0.35)


def _lamp(brush: Brush) -> None:
    height = brush.draws.between(1.2, 1.6)
    brush.shadow(0.32)
    brush.wood(brush.taper(0, height, 0.15, 0.12), along_v=True)
    brush.lantern(height)


def _boat(brush: Brush) -> None:
    _hull(brush)
    height = brush.draws.between(1.3, 1.7)
    brush.cloth(brush.taper(0.55, height, 0.66, 0.02, centre=0.12) & (brush.u > 0.02))
    brush.wood(brush.box(-0.06, 0.05, 0.4, height + 0.1), along_v=True)


def _cart(brush: Brush) -> None:
    length = brush.draws.between(0.65, 0.9)
    brush.shadow(length)
    height = brush.draws.between(0.6, 0.85)
    brush.wood(brush.box(-length - 0.45, -length, 0.42, 0.52), along_v=False)
    brush.wood(brush.taper(0.3, height, 0.92 * length, length), along_v=False)
    _axles(brush, 0.5 * length, brush.draws.between(0.22, 0.3))


def _car(brush: Brush) -> None:
    length = brush.draws.between(0.85, 1.05)
    brush.shadow(length)
    brush.body(length, 0.16)
    _axles(brush, 0.58 * length, brush.draws.between(0.2, 0.25))


def _house(brush: Brush) -> None:
    half = brush.draws.between(0.55, 0.75)
    height = brush.draws.between(0.7, 0.95)
    brush.shadow(half + 0.15)
    brush.wood(brush.box(-half, half, 0, height), along_v=brush.draws.chance(0.5))
    brush.window(0.12 * half, 0.62 * half, 0.38, 0.68)
    brush.roof(height, half + 0.18)


def _crown(brush: Brush, centre: float) -> None:
    brush.foliage(0, centre, brush.draws.between(0.5, 0.75), brush.draws.between(0.42, 0.62))


def _hull(brush: Brush) -> None:
    length = brush.draws.between(0.75, 1.0)
    brush.shadow(length)
    brush.wood(brush.taper(0.02, 0.42, 0.62 * length, length), along_v=False)


def _axles(brush: Brush, distance: float, radius: float) -> None:
    brush.wheel(-distance, radius, radius)
    brush.wheel(distance, radius, radius)


def _loose_crown(brush: Brush) -> None:
    brush.shadow(0.5)
    _crown(brush, 0.4)


def _loose_post(brush: Brush) -> None:
    brush.shadow(0.3)
    brush.wood(brush.taper(0, brush.draws.between(0.6, 1.3), 0.16, 0.13), along_v=True)


def _loose_planks(brush: Brush) -> None:
    brush.shadow(0.8)
    half = brush.draws.between(0.4, 0.8)
    brush.wood(brush.box(-half, half, 0, brush.draws.between(0.14, 0.8)), along_v=False)


def _loose_lantern(brush: Brush) -> None:
    brush.shadow(0.4)
    brush.lantern(0)


def _loose_sail(brush: Brush) -> None:
    brush.cloth(brush.taper(0, brush.draws.between(0.75, 1.1), 0.66, 0.02) & (brush.u > -0.1))


def _loose_wheel(brush: Brush) -> None:
    brush.shadow(0.3)
    radius = brush.draws.between(0.2, 0.3)
    brush.wheel(0, radius, radius)


def _loose_body(brush: Brush) -> None:
    length = brush.draws.between(0.85, 1.05)
    brush.shadow(length)
    brush.body(length, 0.0)


def _loose_roof(brush: Brush) -> None:
    half = brush.draws.between(0.7, 0.9)
    brush.shadow(half)
    brush.roof(0, half)


OBJECTS: dict[int, Callable[[Brush], None]] = {
    TREE: _tree,
    LAMP: _lamp,
    BOAT: _boat,
    CART: _cart,
    CAR: _car,
    HOUSE: _house,
}
CLUTTER: tuple[Callable[[Brush], None], ...] = (
    _loose_crown,
    _loose_post,
    _loose_planks,
    _loose_lantern,
    _loose_sail,
    _loose_wheel,
    _loose_body,
    _loose_roof,
    _hull,
)


def _paint_ground(canvas: Canvas) -> None:
    draws = canvas.draws
    top, bottom = GROUNDS[draws.below(len(GROUNDS))]
    # Nothing of the ground needs the fine grid: it is drawn on the image's.
    columns, rows = canvas.columns[::2, ::2] / FINE, canvas.rows[::2, ::2] / FINE
    shade = np.full((SIZE, SIZE), 0.76)
    for cells, strength in ((3, 0.2), (9, 0.16), (40, 0.12)):
        shade += strength * Noise(draws)(columns * cells, rows * cells)
    share = rows[..., None]
    ground = (np.array(top) * (1 - share) + np.array(bottom) * share) * shade[..., None]
    canvas.image[:] = ground.repeat(2, axis=0).repeat(2, axis=1)


def _places(draws: Draws, count: int, apart: float) -> list[tuple[float, float]]:
    """Return up to ``count`` feet (x, y), from far to near, none closer than ``apart`` to another."""
    places: list[tuple[float, float]] = []
    for _ in range(12 * count):
        x, y = draws.between(0.1, 0.9) * FINE, draws.between(0.34, 0.96) * FINE
        if all((x - a) * (x - a) + (y - b) * (y - b) >= apart * apart for a, b in places):
            places.append((x, y))
        if len(places) == count:
            break
    return sorted(places, key=lambda place: place[1])


def _pose(draws: Draws, place: tuple[float, float]) -> Pose:
    x, y = place
    near = y / FINE
    unit = FINE * (0.16 + 0.11 * near) * draws.between(0.7, 1.4)
    return Pose(x, y, unit, draws.between(-0.12, 0.12), draws.chance(0.5))


def draw_scene(seed: int, split: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene: image (128, 128, 3), RGB, uint8, and labels (128, 128), uint8, 255 on boundaries."""
    draws = Draws(seed, split, index)
    canvas = Canvas(draws)
    _paint_ground(canvas)
    for place in _places(draws, 7, 0.27 * FINE):
        pose = _pose(draws, place)
        if draws.chance(0.6):
            label = 1 + draws.below(len(OBJECTS))
            OBJECTS[label](Brush(canvas, pose, label))
        else:
            CLUTTER[draws.below(len(CLUTTER))](Brush(canvas, pose, BACKGROUND))
    return _photograph(canvas), _coarse_labels(canvas.labels)


def _photograph(canvas: Canvas) -> np.ndarray:
    """Return the image at its size, with the exposure and the noise of a camera."""
    exposure = canvas.draws.between(0.68, 1.15) * (1 + 0.3 * (canvas.draws.array(3) - 0.5))
    fine = np.clip(canvas.image * exposure, 0, 255).astype(np.int64)
    mean = (fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]) // 4
    noise = np.floor(44 * canvas.draws.array(SIZE, SIZE, 3)).astype(np.int64) - 21
    return np.clip(mean + noise, 0, 255).astype(np.uint8)


def _coarse_labels(fine: np.ndarray) -> np.ndarray:
    """Return the labels at the image's size; a pixel with quarters of several classes is ignored."""
    quarters = np.stack([fine[::2, ::2], fine[1::2, ::2], fine[::2, 1::2], fine[1::2, 1::2]])
    mixed = quarters.min(axis=0) != quarters.max(axis=0)
    return np.where(mixed, IGNORE, quarters[0]).astype(np.uint8)
