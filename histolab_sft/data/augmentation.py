"""Change the patches of the train split as they are read: another way up and other stain, drawn anew each epoch."""

import zlib

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from histolab_sft.data.pictures.stain import jitter_stain

# The flips and quarter turns of a square, with the patch as it is: tissue has no upper side.
SYMMETRIES = (None, *Image.Transpose)
# HED-light of Tellez et al. 2019 (Med Image Anal 58:101544).
STAIN_SIGMA = 0.05


def augment(train: Dataset, augmentation: str, seed: int) -> tuple[Dataset, "PatchAugmentation"]:
    """Return the rows with pictures that change with the epoch, and what must be told the epoch.

    Args:
        train (`Dataset`): Rows whose transform opens `images`.
        augmentation (`str`): `symmetries` (one of the eight), `stain` (HED colour jitter) or `all` (both).
        seed (`int`): Of the run.
    """
    augmentation = PatchAugmentation(train.format["format_kwargs"]["transform"], augmentation, seed)
    return train.with_transform(augmentation), augmentation


class PatchAugmentation:
    """Open the pictures of a batch and change them.

    What is drawn depends on seed, epoch and pixels alone: the same in any order of the rows, with any number of
    workers and processes.

    Attributes:
        epoch (`torch.Tensor`): A whole number from 0, in memory that worker processes share.
    """

    def __init__(self, open_images, augmentation: str, seed: int):
        self.open_images = open_images
        self.turned = augmentation in ("symmetries", "all")
        self.stained = augmentation in ("stain", "all")
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, batch: dict) -> dict:
        batch = self.open_images(batch)
        if "images" in batch:
            batch["images"] = [list(map(self.change, images)) for images in batch["images"]]
        return batch

    def change(self, image: Image.Image) -> Image.Image:
        """Return the picture as this epoch shows it."""
        generator = np.random.default_rng([self.seed, int(self.epoch), zlib.crc32(image.tobytes())])
        symmetry = SYMMETRIES[generator.integers(len(SYMMETRIES))]
        if self.turned:
            image = turn(image, symmetry)
        return jitter_stain(image, STAIN_SIGMA, generator) if self.stained else image


def turn(image: Image.Image, symmetry: Image.Transpose | None) -> Image.Image:
    """Return the picture turned or flipped, without a change to any pixel's value."""
    return image if symmetry is None else image.transpose(symmetry)
