"""Colour jitter in amounts of stain, as stains differ from laboratory to laboratory."""

import numpy as np
from PIL import Image

# Optical density per unit of stain in R, G, B: haematoxylin, eosin (Ruifrok & Johnston 2001, Anal Quant Cytol Histol
# 23:291) and a rest, for which scikit-image's `rgb_from_hed` takes the DAB of the same table.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def jitter_stain(image: Image.Image, sigma: float, generator: np.random.Generator) -> Image.Image:
    """Multiply the density of each stain by U(1 - sigma, 1 + sigma) and add U(-sigma, sigma), in base 10.

    Colour jitter in HED space as Tellez et al. 2018 (IEEE Trans Med Imaging 37:2126) draw it, who call sigma 0.05
    light and 0.2 strong (2019, Med Image Anal 58:101544).
    """
    light = np.maximum(np.asarray(image, dtype=np.float64), 0.5) / 255  # a black pixel has no finite density
    amounts = -np.log10(light) @ np.linalg.inv(STAINS)
    amounts = amounts * generator.uniform(1 - sigma, 1 + sigma, 3) + generator.uniform(-sigma, sigma, 3)
    return Image.fromarray(np.rint(255 * np.clip(10 ** -(amounts @ STAINS), 0, 1)).astype(np.uint8))
