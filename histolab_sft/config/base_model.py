"""The keys of a recipe about the base model: TRL's, and the resolution of its pictures."""

from dataclasses import dataclass

import trl

from histolab_sft.config.checks import key


@dataclass
class ModelConfig(trl.ModelConfig):
    """Keys of a recipe that are about the base model; the first ones are TRL's."""

    image_side: int | None = key(
        None,
        "Side in pixels to which every picture is scaled, if not the base model's own (896): a multiple of the "
        "tower's patch size. The position embeddings of a Gemma 3 are interpolated to it. An Idefics 3 (SmolVLM-256M) "
        "then reads a picture whole, not in tiles. No other families.",
    )
    image_tokens: int | None = key(
        None,
        "Tokens that each picture has in the language model, if not the base model's own (256): a square whose side "
        "divides the tower's patches a side, such as 64 or 256 at 448 pixels. Gemma 3; of an Idefics 3 they follow "
        "from image_side.",
    )

    @property
    def names_resolution(self) -> bool:
        """Whether the recipe gives pictures a resolution, which may be the base model's own."""
        return (self.image_side, self.image_tokens) != (None, None)
