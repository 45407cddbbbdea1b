"""Paint one H&E-looking patch: tissue parameters to concentration maps, concentration maps to colours.

Lengths are pixels of a 64-pixel patch; `size` scales the content with the picture.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

# Optical density per unit of stain in red, green and blue: Ruifrok and Johnston, Anal Quant Cytol Histol 23 (2001).
HEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])

# Every tissue parameter as a range to draw from.
BLANK = {
    "ground": (0, 0),  # eosin of the matrix
    "grain": (0.1, 0.3),  # its unevenness, and the length of the unevenness
    "grain_length": (1, 3),
    "fibre": (0, 0),  # eosin of the fibres, their distance, and how far they stray from a line
    "fibre_pitch": (5, 7),
    "fibre_wave": (0, 1),
    "mucin": (0, 0),  # hematoxylin of pale folds
    "fat": (0, 0),  # distance of fat cells; 0 for none
    "glands": (0, 0),  # how many, their radius, layers of nuclei from the rim inwards
    "gland_radius": (10, 14),
    "gland_layers": (1, 1),
    "spacing": (0, 0),  # distance of the nuclei outside glands; 0 for none
    "kept": (1, 1),  # share of those places that hold a nucleus
    "radius": (2, 2.5),  # of a nucleus, its length over its width, and its variation
    "elongation": (1, 1.2),
    "variation": (0.05, 0.15),
    "hollow": (0, 0.2),  # 0 an even dark nucleus, 1 a pale one with a rim
    "specks": (0, 0),  # fragments of debris
}


def draw_tissue(ranges: dict[str, tuple[float, float]], rng: np.random.Generator) -> dict[str, float]:
    """Draw one value per tissue parameter, uniformly; parameters not named keep the range of `BLANK`."""
    return {name: rng.uniform(*bounds) for name, bounds in (BLANK | ranges).items()}


def paint_tissue(tissue: dict[str, float], size: int, rng: np.random.Generator) -> np.ndarray:
    """Paint the two stain concentrations of a patch.

    Args:
        tissue: parameters as `draw_tissue` gives them.
        size: side of the patch in pixels.
        rng: source of every random choice.

    Returns:
        float32 array (2, size, size): hematoxylin and eosin.
    """
    scale = size / 64
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / scale
    angle = rng.uniform(0, np.pi)
    across = x * np.cos(angle) + y * np.sin(angle)

    grain = _smooth_noise(size, tissue["grain_length"] * scale, rng)
    eosin = tissue["ground"] * np.clip(1 + tissue["grain"] * grain, 0.1, None)
    hematoxylin = np.zeros_like(eosin)
    if tissue["fibre"] > 0:
        strayed = across + tissue["fibre_wave"] * _smooth_noise(size, 7 * scale, rng)
        bundles = np.clip(1 + 0.4 * _smooth_noise(size, 5 * scale, rng), 0, None)
        eosin += tissue["fibre"] * bundles * np.maximum(np.cos(2 * np.pi * strayed / tissue["fibre_pitch"]), 0)
    if tissue["mucin"] > 0:
        folds = across + 8 * _smooth_noise(size, 8 * scale, rng)
        hematoxylin += tissue["mucin"] * np.maximum(np.cos(2 * np.pi * folds / 16), 0) ** 3

    nuclei = _spread_nuclei(tissue, angle, rng)
    for centre_x, centre_y, radius in _place_glands(tissue, rng):
        distance = np.hypot(x - centre_x, y - centre_y)
        nuclei = nuclei[np.hypot(nuclei[:, 0] - centre_x, nuclei[:, 1] - centre_y) > radius + tissue["radius"]]
        rings, lumen = _ring_nuclei(tissue, centre_x, centre_y, radius, rng)
        nuclei = np.concatenate([nuclei, rings])
        eosin[distance < radius + 1] = 0.9
        eosin[distance < radius] = 0.5
        eosin[distance < lumen] = 0
    if tissue["fat"] > 0:
        eosin[_find_fat(tissue["fat"], x, y, rng)] = 0
    _stamp_nuclei(hematoxylin, nuclei, tissue, scale, rng)
    _stamp_specks(hematoxylin, eosin, int(tissue["specks"]), scale, rng)
    return np.stack([hematoxylin, eosin]).astype(np.float32)


def balance_stains(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale each stain to a mean drawn in the same way whatever the tissue, so that amounts do not tell classes apart.

    The factor stays between 0.5 and 1.8: a blank field may not be blown up into tissue.
    """
    targets = rng.uniform([0.12, 0.25], [0.35, 0.6])
    maps = maps ** rng.uniform(0.6, 1.5, (2, 1, 1)).astype(np.float32)
    factors = np.clip(targets / (maps.mean(axis=(1, 2)) + 1e-3), 0.4, 1.8)
    return maps * factors[:, None, None].astype(np.float32)


def draw_stain(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the stain of a slide: both colour vectors (2, 3), strengths (2,) and the lamp's colour (3,) in 0..1."""
    vectors = np.stack([HEMATOXYLIN, EOSIN]) + rng.normal(0, [[0.10], [0.07]], (2, 3))
    vectors = np.clip(vectors, 0.02, None)
    return {
        "vectors": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        "strengths": rng.uniform([0.5, 0.4], [1.4, 1.4]),
        "lamp": rng.uniform(0.7, 1.0) * (1 - rng.uniform(0, 0.08, 3)),
    }


def stain_patch(maps: np.ndarray, stain: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Colour concentration maps (2, size, size) by Beer and Lambert's law; uint8 array (size, size, 3)."""
    density = np.einsum("shw,s,sc->hwc", maps, stain["strengths"], stain["vectors"])
    # Uneven light across the field and a section that is not equally thick widen the histogram of any texture.
    slope_x, slope_y = rng.uniform(-0.15, 0.15, 2)
    side = np.linspace(-1, 1, density.shape[0])
    lamp = stain["lamp"] * (1 + slope_x * side[None, :, None] + slope_y * side[:, None, None])
    light = lamp * 10**-density + rng.normal(0, 0.012, density.shape)
    return (255 * np.clip(light, 0, 1)).astype(np.uint8)


def _smooth_noise(size: int, length: float, rng: np.random.Generator) -> np.ndarray:
    noise = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), length, mode="wrap", truncate=3)
    return noise / (noise.std() + 1e-6)


def _spread_nuclei(tissue: dict[str, float], angle: float, rng: np.random.Generator) -> np.ndarray:
    """Nuclei (n, 3) as x, y and direction, on a shaken hexagonal grid so that they seldom overlap."""
    spacing = tissue["spacing"]
    if spacing == 0:
        return np.zeros((0, 3))
    rows, columns = np.mgrid[-4 : 64 / spacing + 4, -4 : 64 / spacing + 4]
    grid = np.stack([(columns + rows % 2 / 2).ravel(), rows.ravel() * 0.866], axis=1) * spacing - 32
    turn = rng.uniform(0, np.pi / 3)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = grid @ rotation + 32 + rng.uniform(-0.22, 0.22, grid.shape) * spacing
    points = points[(rng.random(len(points)) < tissue["kept"]) & (np.abs(points - 32) < 36).all(axis=1)]
    # Fibres run at right angles to the direction in which their phase grows; without fibres nuclei lie anyhow.
    along = angle + np.pi / 2 + rng.normal(0, 0.15, len(points))
    direction = along if tissue["fibre"] > 0 else rng.uniform(0, np.pi, len(points))
    return np.column_stack([points, direction])


def _place_glands(tissue: dict[str, float], rng: np.random.Generator) -> list[tuple[float, float, float]]:
    glands = []
    for _ in range(24):
        if len(glands) == round(tissue["glands"]):
            break
        radius = tissue["gland_radius"] * rng.uniform(0.9, 1.1)
        x, y = rng.uniform(8, 56, 2)
        if all(np.hypot(x - other_x, y - other_y) > radius + other + 3 for other_x, other_y, other in glands):
            glands.append((x, y, radius))
    return glands


def _ring_nuclei(
    tissue: dict[str, float], x: float, y: float, radius: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Nuclei (n, 3) in rings from the rim of a gland inwards, and the radius of the lumen that they leave."""
    step = 2.3 * tissue["radius"]
    ring = radius - 1 - tissue["radius"]
    groups = [np.zeros((0, 3))]
    for _ in range(round(tissue["gland_layers"])):
        if ring < tissue["radius"]:
            break
        count = max(int(2 * np.pi * ring / step), 1)
        turns = 2 * np.pi * np.arange(count) / count + rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.06, count)
        groups.append(np.column_stack([x + ring * np.cos(turns), y + ring * np.sin(turns), turns]))
        ring -= step
    return np.concatenate(groups), ring


def _find_fat(spacing: float, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Inside of fat cells: points nearer to one centre than to the next by more than a thin wall."""
    start = rng.uniform(-spacing, 0, 2)
    centres = np.stack(np.meshgrid(*(np.arange(first, 64 + spacing, spacing) for first in start)), -1).reshape(-1, 2)
    centres = centres + rng.uniform(-0.35, 0.35, centres.shape) * spacing
    distances = np.hypot(x[..., None] - centres[:, 0], y[..., None] - centres[:, 1])
    nearest = np.partition(distances, 1, axis=-1)
    return nearest[..., 1] - nearest[..., 0] > 2.2


def _stamp_nuclei(
    hematoxylin: np.ndarray, nuclei: np.ndarray, tissue: dict[str, float], scale: float, rng: np.random.Generator
) -> None:
    size, count = len(hematoxylin), len(nuclei)
    if count == 0:
        return
    width = tissue["radius"] * np.exp(tissue["variation"] * rng.standard_normal(count)) * scale
    length = width * tissue["elongation"] ** rng.uniform(0.7, 1.3, count)
    darkness = rng.uniform(0.8, 1.2, count)
    reach = int(np.ceil(length.max() + 2))
    offset = np.arange(-reach, reach + 1)
    column = np.round(nuclei[:, 0] * scale).astype(int)[:, None, None] + offset[None, None, :]
    row = np.round(nuclei[:, 1] * scale).astype(int)[:, None, None] + offset[None, :, None]
    column, row = np.broadcast_arrays(column, row)
    dx, dy = column - nuclei[:, 0, None, None] * scale, row - nuclei[:, 1, None, None] * scale
    cos, sin = np.cos(nuclei[:, 2])[:, None, None], np.sin(nuclei[:, 2])[:, None, None]
    depth = np.hypot((dx * cos + dy * sin) / length[:, None, None], (dy * cos - dx * sin) / width[:, None, None])
    edge = 1 / (1 + np.exp(np.clip(6 * (depth - 1) * width[:, None, None] / 2, -30, 30)))
    hollow = 1 - tissue["hollow"] * 0.75 * (depth < 0.65)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    values = (darkness[:, None, None] * edge * hollow).astype(hematoxylin.dtype)
    np.maximum.at(hematoxylin.reshape(-1), row[inside] * size + column[inside], values[inside])


def _stamp_specks(
    hematoxylin: np.ndarray, eosin: np.ndarray, count: int, scale: float, rng: np.random.Generator
) -> None:
    size = len(hematoxylin)
    places = rng.integers(0, size, (count, 2))
    spots = np.zeros_like(hematoxylin)
    spots[places[:, 0], places[:, 1]] = rng.uniform(0.5, 1.5, count)
    spots = gaussian_filter(spots, 0.7 * scale, mode="wrap") * 3
    hematoxylin += spots
    eosin += 0.5 * spots
