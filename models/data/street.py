"""Paints procedural street scenes: an image and its label map, from random numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STREET_CLASSES = ("building", "sky", "sidewalk", "person", "car", "vegetation", "road")
BUILDING, SKY, SIDEWALK, PERSON, CAR, VEGETATION, ROAD = range(7)

Colour = tuple[float, float, float]

CLOTHES: tuple[Colour, ...] = ((0.8, 0.2, 0.2), (0.9, 0.75, 0.15), (0.6, 0.15, 0.6), (0.9, 0.45, 0))
TROUSERS: Colour = (0.2, 0.15, 0.35)
SKIN: Colour = (0.9, 0.68, 0.55)
BODYWORK: tuple[Colour, ...] = (
    (0.7, 0.1, 0.15),
    (0.1, 0.3, 0.7),
    (0.92, 0.92, 0.95),
    (0.1, 0.5, 0.55),
)
GLASS: Colour = (0.18, 0.22, 0.3)
TYRES: Colour = (0.04, 0.04, 0.05)

# Each class that switches covers at least this share of the largest square in an image.
LEAST_SHARE = 0.01


class Random:
    """Uniform numbers of one stream; nothing but the generator's raw doubles, which are stable."""

    def __init__(self, *seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._generator.random())

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both among them."""
        return low + int(self._generator.random() * (high - low + 1))

    def one_of(self, choices: tuple[Colour, ...]) -> Colour:
        return choices[self.number(0, len(choices) - 1)]

    def field(self, *shape: int) -> np.ndarray:
        return self._generator.random(shape)


class Canvas:
    """An image and its label map while they are painted, the far things first.

    Rows and columns are in units of the image's height, so that things keep their shape.
    """

    def __init__(self, height: int, width: int) -> None:
        self.image = np.zeros((height, width, 3))
        self.labels = np.zeros((height, width), np.uint8)
        self.height, self.width = height, width
        self.rows = (np.arange(height)[:, None] + 0.5) / height
        self.columns = (np.arange(width)[None] + 0.5) / height
        self.right = width / height

    def fill(self, where: np.ndarray, label: int, colour: Colour | np.ndarray) -> None:
        self.image[where] = colour
        self.labels[where] = label

    def box(
        self, top: float, bottom: float, left: float, right: float, label: int, colour: Colour
    ) -> None:
        y0, y1, x0, x1 = (round(max(0.0, v) * self.height) for v in (top, bottom, left, right))
        self.image[y0:y1, x0:x1] = colour
        self.labels[y0:y1, x0:x1] = label

    def ellipse(
        self, row: float, column: float, tall: float, wide: float, label: int, colour: Colour
    ) -> None:
        inside = ((self.rows - row) / tall) ** 2 + ((self.columns - column) / wide) ** 2 < 1
        self.fill(inside, label, colour)


@dataclass(frozen=True)
class Street:
    """Where the ground is, and how it narrows towards the horizon.

    Attributes:
        horizon: its row.
        far, near: columns of the road's middle at the horizon and at the bottom.
        lanes: the road's half width at the horizon and at the bottom.
        paths: the width of each sidewalk there.
    """

    horizon: float
    far: float
    near: float
    lanes: tuple[float, float]
    paths: tuple[float, float]

    def middle(self, depth: float | np.ndarray) -> float | np.ndarray:
        return self.far + (self.near - self.far) * depth

    def road(self, depth: float | np.ndarray) -> float | np.ndarray:
        return self.lanes[0] + (self.lanes[1] - self.lanes[0]) * depth

    def path(self, depth: float | np.ndarray) -> float | np.ndarray:
        return self.paths[0] + (self.paths[1] - self.paths[0]) * depth

    def row(self, depth: float) -> float:
        return self.horizon + (1 - self.horizon) * depth


def paint_street(random: Random, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint one scene: image ``(height, width, 3)`` and labels ``(height, width)``, both uint8.

    A scene in which one of the classes that switch is too small to see is painted over.
    """
    least = LEAST_SHARE * min(height, width) ** 2
    while True:
        canvas = Canvas(height, width)
        _paint(canvas, random)
        if np.bincount(canvas.labels.ravel(), minlength=7)[SIDEWALK:].min() >= least:
            return _develop(canvas, random), canvas.labels


def _paint(canvas: Canvas, random: Random) -> None:
    horizon, middle = random.between(0.36, 0.46), canvas.right / 2
    wide = min(1.0, canvas.right)
    street = Street(
        horizon,
        far=middle + wide * random.between(-0.12, 0.12),
        near=middle + wide * random.between(-0.1, 0.1),
        lanes=(0.06 * wide, wide * random.between(0.26, 0.32)),
        paths=(0.04 * wide, wide * random.between(0.15, 0.2)),
    )
    _paint_sky(canvas, random)
    _paint_buildings(canvas, street, random)
    _paint_ground(canvas, street, random)
    _paint_trees(canvas, street, random)
    _paint_cars(canvas, street, random)
    _paint_persons(canvas, street, random)


def _paint_sky(canvas: Canvas, random: Random) -> None:
    haze = random.between(0, 0.25) + 0.3 * canvas.rows
    blue = np.array([0.5, 0.68, 0.92])
    canvas.image[:] = (blue + (1 - blue) * haze[:, :, None])[:, :]
    canvas.labels[:] = SKY


def _paint_buildings(canvas: Canvas, street: Street, random: Random) -> None:
    """A closed row of houses down to the ground, each with its height, tone and windows."""
    left = 0.0
    while left < canvas.right:
        right = left + random.between(0.15, 0.35)
        top = street.horizon * random.between(0.1, 0.75)
        tone, warm = random.between(0.36, 0.54), random.between(0.0, 0.1)
        wall = (tone + warm, tone, tone - warm)
        canvas.box(top, 1.0, left, right, BUILDING, wall)
        pitch = random.between(0.055, 0.08)
        for row in np.arange(top + 0.03, street.horizon - 0.02, pitch):
            for column in np.arange(left + 0.03, right - 0.03, pitch):
                pane = (row, row + 0.03, column, column + 0.03)
                canvas.box(*pane, BUILDING, (0.3, 0.34, 0.42))
        left = right


def _paint_ground(canvas: Canvas, street: Street, random: Random) -> None:
    depth = (canvas.rows - street.horizon) / (1 - street.horizon)
    aside = canvas.columns - street.middle(depth)
    road, edge = street.road(depth), street.road(depth) + street.path(depth)
    below = depth > 0
    if random.number(0, 1):  # a hedge instead of walls on one side
        side = 1 if random.number(0, 1) else -1
        hedge = (side * aside > edge) & (depth > -0.06)
        canvas.fill(hedge, VEGETATION, (0.16, 0.42, 0.14))
    stone, asphalt = random.between(0.66, 0.76), random.between(0.24, 0.34)
    canvas.fill(below & (abs(aside) < edge), SIDEWALK, (stone, stone * 0.93, stone * 0.85))
    canvas.fill(below & (abs(aside) < road), ROAD, (asphalt, asphalt, asphalt * 1.06))
    dashes = (np.sqrt(np.clip(depth, 0, 1)) * 5 + random.between(0, 1)) % 1 < 0.5
    canvas.fill(below & (abs(aside) < 0.06 * road) & dashes, ROAD, (0.85, 0.85, 0.8))


def _paint_trees(canvas: Canvas, street: Street, random: Random) -> None:
    for _ in range(random.number(2, 3)):
        foot, column = street.horizon + 0.05, random.between(0.05, canvas.right - 0.05)
        radius = random.between(0.09, 0.15)
        crown = foot - 0.08 - radius
        canvas.box(crown, foot, column - 0.02, column + 0.02, VEGETATION, (0.3, 0.2, 0.12))
        green = random.between(0.36, 0.48)
        leaves = (green * 0.4, green, green * 0.3)
        canvas.ellipse(crown, column, radius * 1.15, radius, VEGETATION, leaves)


def _paint_cars(canvas: Canvas, street: Street, random: Random) -> None:
    """One or two cars seen from behind or the front, each in its lane, the far one first."""
    depths = sorted(random.between(0.25, 0.9) for _ in range(random.number(1, 2)))
    lane = 1 if random.number(0, 1) else -1
    for depth in depths:
        half = float(street.road(depth))
        wide, foot = max(0.44 * half, 0.09), street.row(depth)
        column = float(street.middle(depth)) + lane * 0.48 * half
        tall, paint = 1.7 * wide, random.one_of(BODYWORK)
        sides = (column - wide, column + wide)
        canvas.box(foot - 0.25 * wide, foot, *sides, CAR, TYRES)
        canvas.box(foot - 0.65 * tall, foot - 0.14 * tall, *sides, CAR, paint)
        roof = (column - 0.75 * wide, column + 0.75 * wide)
        canvas.box(foot - tall, foot - 0.6 * tall, *roof, CAR, paint)
        glass = (column - 0.55 * wide, column + 0.55 * wide)
        canvas.box(foot - 0.9 * tall, foot - 0.62 * tall, *glass, CAR, GLASS)
        lane = -lane


def _paint_persons(canvas: Canvas, street: Street, random: Random) -> None:
    """Two to four persons on the sidewalks, the far ones first."""
    for depth in sorted(random.between(0.1, 0.75) for _ in range(random.number(2, 4))):
        side = 1 if random.number(0, 1) else -1
        aside = float(street.road(depth)) + float(street.path(depth)) * random.between(0.4, 0.9)
        column = float(street.middle(depth)) + side * aside
        # Kept inside the image, where the sidewalk may leave it.
        column = min(max(column, 0.06), canvas.right - 0.06)
        tall, foot = 0.2 + 0.16 * depth, street.row(depth) + 0.02
        wide = 0.17 * tall
        canvas.box(
            foot - 0.5 * tall, foot, column - 0.8 * wide, column + 0.8 * wide, PERSON, TROUSERS
        )
        shirt = (foot - 0.84 * tall, foot - 0.45 * tall, column - wide, column + wide)
        canvas.box(*shirt, PERSON, random.one_of(CLOTHES))
        canvas.ellipse(foot - 0.9 * tall, column, 0.11 * tall, 0.1 * tall, PERSON, SKIN)


def _develop(canvas: Canvas, random: Random) -> np.ndarray:
    """Light, tint, the texture of leaves, and noise; 8 bits."""
    light = np.array([random.between(0.8, 1.1) * random.between(0.95, 1.05) for _ in range(3)])
    light = light * 0.3 + light.mean() * 0.7
    noise = random.field(canvas.height, canvas.width, 3) + random.field(
        canvas.height, canvas.width, 1
    )
    leaves = 1 + 0.6 * (random.field(canvas.height, canvas.width) - 0.5) * (
        canvas.labels == VEGETATION
    )
    image = canvas.image * leaves[:, :, None] * light + 0.05 * (noise - 1)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
