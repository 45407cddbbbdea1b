"""Read `intensity_window` and `image_steps`, the keys that say how stored pictures become those for the model."""

import json
import math
import re

FULL, MINMAX = "full", "minmax"
# Default of `intensity_window` by format: PadChest stores about 12 bits in 16. The percentiles are ExplainMyXray's.
WINDOWS = {"padchest": ["1%", "99%"], "padchest_gr": ["1%", "99%"]}
MAX_GREY = 65535
MAX_SIDE = 4096  # pixels; the model's own square has 896
# Step -> how many whole numbers it takes.
STEPS = {"crop": 4, "crop_dark_edges": 0, "pad_to_square": 0, "resize": 2}


def read_window(value: object) -> list[float | str] | None:
    """Return `intensity_window` as the bounds that become black and white, None for the full range.

    A bound is a stored value of 0 to 65535, or a share of the picture's pixels such as `1%`.

    Raises:
        ValueError: It is neither `full`, `minmax` nor a list of two such bounds, the lower one first.
    """
    if value in (None, FULL):
        return None
    if value == MINMAX:
        return ["0%", "100%"]
    bounds = value if isinstance(value, list) and len(value) == 2 else []
    numbers = [_read_bound(bound) for bound in bounds]
    comparable = len({isinstance(bound, str) for bound in bounds}) == 1
    if not bounds or None in numbers or (comparable and numbers[0] >= numbers[1]):
        raise ValueError(
            f"intensity_window is {value!r}, expected {FULL}, {MINMAX} or [low, high], each a stored value of 0 to "
            f"{MAX_GREY} or a percentile such as 1%, the lower one first; correct it"
        )
    return bounds


def read_steps(value: object) -> list[list]:
    """Return `image_steps` as lists of a step's name and its numbers: `[["resize", 896, 896]]`.

    Raises:
        ValueError: A step is unknown, or its numbers aren't what it takes.
    """
    steps = []
    for entry in value if isinstance(value, list) else [value]:
        name, numbers = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, [])
        count = STEPS.get(name) if isinstance(name, str) else None
        low, high = (1, MAX_SIDE) if name == "resize" else (0, math.inf)
        fits = isinstance(numbers, list) and all(type(number) is int and low <= number <= high for number in numbers)
        if count is None or not fits or len(numbers) != count:
            raise ValueError(
                f"image_steps has {entry!r}, expected a list of pad_to_square, crop_dark_edges, resize: [width, "
                f"height] of 1 to {MAX_SIDE} pixels and crop: [left, top, right, bottom]; correct or remove it"
            )
        steps.append([name, *numbers])
    return steps


def choose_rendering(config, inverted: bool = False) -> str:
    """Return what `open_patch` does to the pictures of a data set; `inverted` ones are stored from white to black."""
    window = WINDOWS.get(config.format) if config.intensity_window is None else config.intensity_window
    return format_rendering(read_window(window), inverted, read_steps(config.image_steps or []))


def format_rendering(window: list[float | str] | None, inverted: bool, steps: list[list]) -> str:
    """Return as one text what `data.images.open_patch` does to a stored picture; empty where it is nothing."""
    parts = {"window": window, "inverted": inverted, "steps": steps}
    parts = {key: value for key, value in parts.items() if value}
    return json.dumps(parts, sort_keys=True) if parts else ""


def _read_bound(bound: object) -> float | None:
    if isinstance(bound, str):
        share = re.fullmatch(r"(\d+(?:\.\d+)?)%", bound)
        return float(share[1]) if share and float(share[1]) <= 100 else None
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    return bound if number and 0 <= bound <= MAX_GREY else None
