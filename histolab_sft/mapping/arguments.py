"""What `recipes/map.py` takes beside the keys of a recipe."""

from dataclasses import dataclass, field


@dataclass
class MapArguments:
    """Keys beside those of a recipe."""

    pictures: list[str] = field(metadata={"help": "Files of pictures or, with `mpp`, of whole slides."})
    patch_size: int = field(
        metadata={
            "help": "Pixels a side of a square: of the picture, or of a slide at `mpp`. A square should show as much "
            "tissue as a patch of the training did."
        }
    )
    mpp: float | None = field(
        default=None, metadata={"help": "µm per pixel of a slide's squares; without it, files are ordinary pictures."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Whose question is asked, by its name in the recipe; needed where several are."},
    )
    min_tissue: float = field(
        default=0.0, metadata={"help": "Squares of which less is tissue (a part of 1) aren't asked."}
    )

    def __post_init__(self):
        if self.patch_size < 1:
            raise ValueError(f"patch_size is {self.patch_size}, expected pixels, 1 or more")
        if self.mpp is not None and not self.mpp > 0:
            raise ValueError(f"mpp is {self.mpp}, expected µm per pixel, more than 0")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue is {self.min_tissue}, expected a part of 1 (0.5 for half a square)")
