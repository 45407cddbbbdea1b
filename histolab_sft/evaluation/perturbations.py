"""What another laboratory, scanner or viewer does to a patch: stain, compression, focus, turns, magnification."""

import io

import numpy as np
from PIL import Image, ImageFilter

from histolab_sft.data.pictures.stain import jitter_stain

TURNS = {
    "90°": Image.Transpose.ROTATE_90,
    "180°": Image.Transpose.ROTATE_180,
    "270°": Image.Transpose.ROTATE_270,
    "flip": Image.Transpose.FLIP_TOP_BOTTOM,
    "mirror": Image.Transpose.FLIP_LEFT_RIGHT,
}


def compress_jpeg(image: Image.Image, quality: float, generator: np.random.Generator) -> Image.Image:
    """Write the patch as JPEG of this quality, with the usual halved colour resolution, and read it again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def blur(image: Image.Image, percent: float, generator: np.random.Generator) -> Image.Image:
    """Blur by a Gaussian whose standard deviation is this percentage of the shorter side.

    Patches of any resolution then lose the same detail after they are scaled for the model.
    """
    return image.filter(ImageFilter.GaussianBlur(percent / 100 * min(image.size)))


def magnify(image: Image.Image, factor: float, generator: np.random.Generator) -> Image.Image:
    """Show the patch at `factor` times its magnification, at the same size in pixels.

    Above 1 the centre is cut out and enlarged. Below 1 the patch is shrunk and its mirror images fill the field, as if
    more of the same tissue lay around it; a plain border would be a picture that no microscope gives.
    """
    width, height = image.size
    if factor >= 1:
        left, top = width * (1 - 1 / factor) / 2, height * (1 - 1 / factor) / 2
        return image.resize(image.size, Image.Resampling.BICUBIC, box=(left, top, width - left, height - top))
    shrunk = image.resize(
        (max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BICUBIC, reducing_gap=3
    )
    across, down = width - shrunk.width, height - shrunk.height
    borders = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    return Image.fromarray(np.pad(np.asarray(shrunk), borders, mode="symmetric"))


def turn(image: Image.Image, name: str, generator: np.random.Generator) -> Image.Image:
    """Turn or flip the patch without a change to any pixel's value; `name` is a key of `TURNS`."""
    return image.transpose(TURNS[name])


CHANGES = {
    "stain": jitter_stain,
    "jpeg": compress_jpeg,
    "blur": blur,
    "magnification": magnify,
    "orientation": turn,
}
# In the order in which a curve is drawn, the patch as it is among them.
STRENGTHS = {
    "stain": (0.0, 0.05, 0.1, 0.2),
    "jpeg": (100, 95, 75, 50, 30),
    "blur": (0.0, 0.5, 1.0, 2.0),
    "magnification": (0.5, 0.75, 1.0, 1.5, 2.0),
    "orientation": ("upright", *TURNS),
}
UNCHANGED = {"stain": 0.0, "jpeg": 100, "blur": 0.0, "magnification": 1.0, "orientation": "upright"}


def change_patch(image: Image.Image, change: str, strength: float | str, seed: int) -> Image.Image:
    """Return the changed patch, RGB and of the same size unless it is turned; the same arguments give the same pixels.

    Args:
        image: RGB.
        change: A key of `CHANGES`.
        strength: In the unit of that change; what stands in `UNCHANGED` gives the patch as it is.
        seed: Of what is drawn at random, which only `stain` does.
    """
    if strength == UNCHANGED[change]:
        return image
    return CHANGES[change](image, strength, np.random.default_rng(seed))
