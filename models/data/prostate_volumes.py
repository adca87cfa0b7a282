"""Generated MR-like volumes of the prostate with annotators who disagree.

All is procedural: ellipsoids with smooth random deformations. Two surfaces make the anatomy, that
of the gland and that between its transition and its peripheral zone. An annotator sees both
displaced by a bias of its own, the same in all patients, and by a smooth error of the patient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ANNOTATORS = 6
SLICE_THICKNESS = 3.0
# Of each annotator, in millimetres outwards: how it draws the gland and the transition zone, and
# the deviation of its errors. Radiologists first, then two readers with less practice.
GLAND_BIAS = (-0.6, -0.2, 0.2, 0.5, 1.4, -1.3)
ZONE_BIAS = (0.5, -0.7, 0.9, -0.2, -1.8, 1.6)
ERROR = (0.5, 0.5, 0.6, 0.7, 1.1, 1.2)


@dataclass(frozen=True)
class ProstateVolume:
    """A generated volume.

    Attributes:
        image: ``(slices, rows, columns)`` float32, in arbitrary units, as of an MR scanner.
        annotators: ``(6, slices, rows, columns)`` uint8: 0 background, 1 transition zone, 2
            peripheral zone.
        spacing: millimetres between slices, rows, columns.

    Slices run from head to feet, the first row is anterior.
    """

    image: Tensor
    annotators: Tensor
    spacing: tuple[float, float, float]


def number_of_slices(patient: int) -> int:
    """Slices of a patient's volume, known without generating it."""
    return _draw_slices(_generator(patient))


def prostate_volume(patient: int) -> ProstateVolume:
    """Generate the volume of a patient, the same for the same number."""
    generator = _generator(patient)
    slices = _draw_slices(generator)
    pixel, extent = torch.rand(2, generator=generator).tolist()
    spacing = 0.5 + 0.25 * pixel
    side = round((100 + 40 * extent) / spacing)
    shape = (slices, side, side)
    axes = [
        (torch.arange(n) - (n - 1) / 2) * mm
        for n, mm in zip(shape, (SLICE_THICKNESS, spacing, spacing), strict=True)
    ]
    place = torch.meshgrid(*axes, indexing="ij")
    gland, zone = _surfaces(place, generator)
    image = _image(place, gland, zone, generator)
    masks = [
        _labels(
            gland + bias + error * _field(shape, (5, 9, 9), generator),
            zone + zone_bias + 1.5 * error * _field(shape, (5, 7, 7), generator),
        )
        for bias, zone_bias, error in zip(GLAND_BIAS, ZONE_BIAS, ERROR, strict=True)
    ]
    return ProstateVolume(image, torch.stack(masks), (SLICE_THICKNESS, spacing, spacing))


def _generator(patient: int) -> torch.Generator:
    return torch.Generator().manual_seed(patient)


def _draw_slices(generator: torch.Generator) -> int:
    return int(torch.randint(13, 18, (), generator=generator))


def _field(
    shape: tuple[int, int, int], cells: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """Draw a smooth random field: normal numbers on a coarse grid, interpolated."""
    coarse = torch.randn(1, 1, *cells, generator=generator)
    field: Tensor = F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)
    return field[0, 0]


def _inside(place: tuple[Tensor, ...], centre: list[float], radii: list[float]) -> Tensor:
    """About how many millimetres a place lies within an ellipsoid, negative outside."""
    parts = zip(place, centre, radii, strict=True)
    distance = sum((((x - c) / r) ** 2 for x, c, r in parts), torch.zeros(())).sqrt()
    return (1 - distance) * (sum(radii) / len(radii))


def _surfaces(place: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """How deep each place lies in the gland and in its transition zone, in millimetres."""
    shape = (place[0].shape[0], place[0].shape[1], place[0].shape[2])
    draw = torch.rand(8, generator=generator).tolist()
    radii = [17 + 4 * draw[0], 15 + 6 * draw[1], 21 + 7 * draw[2]]
    centre = [2 * draw[3] - 1, 6 * draw[4] - 3, 6 * draw[5] - 3]
    gland = _inside(place, centre, radii) + 1.2 * _field(shape, (4, 6, 6), generator)
    # The transition zone grows with age, and lies in front (the first rows) and above.
    share = 0.6 + 0.2 * draw[6]
    front = [centre[0] + 2 * draw[7], centre[1] - 0.25 * radii[1], centre[2]]
    zone = _inside(place, front, [share * radius for radius in radii])
    return gland, zone + 1.2 * _field(shape, (4, 6, 6), generator)


def _labels(gland: Tensor, zone: Tensor) -> Tensor:
    return torch.where(gland > 0, torch.where(zone > 0, 1, 2), 0).to(torch.uint8)


def _image(
    place: tuple[Tensor, ...], gland: Tensor, zone: Tensor, generator: torch.Generator
) -> Tensor:
    """A T2-like image: bright peripheral zone, mottled transition zone, dark rectum and muscle."""
    shape = (gland.shape[0], gland.shape[1], gland.shape[2])
    z, y, x = place
    draw = torch.rand(6, generator=generator).tolist()

    def paint(image: Tensor, inside: Tensor, value: Tensor | float) -> Tensor:
        # A soft edge of about a millimetre: pixels are averages.
        return torch.lerp(image, torch.as_tensor(value).expand_as(image), torch.sigmoid(2 * inside))

    image = 0.55 + 0.12 * _field(shape, (4, 12, 12), generator)  # fat and vessels
    for side in (-1, 1):  # obturator muscles
        image = paint(image, _inside((y, x), [0.0, side * 44.0], [30.0, 11.0]), 0.2)
    rectum = _inside((y, x), [33 + 3 * draw[0], 4 * draw[1] - 2], [11.0, 13.0])
    image = paint(paint(image, rectum, 0.35), rectum - 4, 0.08)
    bladder = _inside((z, y, x), [-27.0, -16.0, 0.0], [14.0, 20.0, 26.0])
    image = paint(image, bladder, 1.3)
    contrast = 0.15 + 0.35 * draw[2]
    mottle = 0.4 + 0.08 * _field(shape, (8, 30, 30), generator)
    image = paint(image, gland, 0.45 + contrast + 0.06 * _field(shape, (6, 16, 16), generator))
    image = paint(image, torch.minimum(gland, zone), mottle)
    coil = 1 + 0.2 * _field(shape, (2, 3, 3), generator)
    noise = (0.03 + 0.04 * draw[3]) * torch.randn(shape, generator=generator)
    return (300 + 500 * draw[4]) * (image * coil + noise).abs()
