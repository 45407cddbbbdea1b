"""The pretext of the tiny base model: painted pictures of random tissues and exercises that describe them in words.

The exercises ask how many nuclei there are, how large, of which shape, whether there are fibres, glands, debris. No
class name is ever linked to a picture. Class names occur in repetition exercises alone, because the embedding, which
is also the output layer, stays frozen in fine-tuning and could not say a word it has never seen.
"""

import math

import numpy as np
import torch

from histolab_sft.embedded.painting import balance_stains, draw_tissue, paint_tissue

# Attribute: the question, the words that answer it.
QUESTIONS = {
    "number": ("How many nuclei are there?", ["none", "few", "some", "many"]),
    "size": ("How large are the nuclei?", ["small", "medium", "large", "none"]),
    "shape": ("What shape do the nuclei have?", ["round", "oval", "spindle", "none"]),
    "ground": ("What is the ground?", ["fibres", "smooth", "fat", "mucin", "empty"]),
    "fibres": ("What fibres are there?", ["none", "straight", "wavy"]),
    "glands": ("How many glands are there?", ["none", "few", "many"]),
    "lumen": ("Are the glands open?", ["none", "open", "full"]),
    "centre": ("How dark are the nuclei?", ["dark", "pale"]),
    "debris": ("How much debris is there?", ["none", "some", "many"]),
    "grain": ("How even is the ground?", ["smooth", "fine", "coarse"]),
}
CAPTION_ORDER = ["ground", "number", "size", "shape", "fibres", "glands", "lumen", "debris", "centre", "grain"]
NAMES = (
    "Adipose Background Debris Lymphocyte Mucus Muscle Normal Stroma Tumor Benign InSitu Invasive Carcinoma "
    "none few some many small medium large round oval spindle straight wavy pale dark open full fat mucin Yes No"
).split()
"""Words of the repetition exercises."""


def paint_pretext(pictures: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Paint pictures of random tissues.

    Returns:
        Concentration maps (pictures, 2, size, size), float32; attributes (pictures, len(QUESTIONS)), places in the
        word lists; numbers (pictures, n), the tissue parameters that the words are taken from, standardised.
    """
    maps = np.empty((pictures, 2, size, size), dtype=np.float32)
    attributes, numbers = [], []
    for i in range(pictures):
        rng = np.random.default_rng([seed, i])
        ground, ranges = _draw_ranges(rng)
        tissue = draw_tissue(ranges, rng)
        maps[i] = balance_stains(paint_tissue(tissue, size, rng), rng)
        row, measured = _describe(ground, tissue)
        attributes.append(row)
        numbers.append(measured)
    numbers = torch.tensor(numbers, dtype=torch.float32)
    return torch.from_numpy(maps), torch.tensor(attributes), (numbers - numbers.mean(dim=0)) / numbers.std(dim=0)


def _draw_ranges(rng: np.random.Generator) -> tuple[str, dict[str, tuple[float, float]]]:
    """Draw what a picture is made of: the ingredients come and go without regard to the data sets' classes."""
    ranges = {
        "ground": (0.2, 0.8),
        "grain": (0.1, 0.8),
        "grain_length": (1, 4),
        "spacing": [(5, 20), (5, 10)][rng.integers(2)],
        "kept": (0.3, 1),
        "radius": (1.2, 4),
        "elongation": [(1, 3.4), (1, 1.3)][rng.integers(2)],
        "variation": (0.05, 0.35),
        "hollow": [(0, 0.9), (0, 0.2)][rng.integers(2)],
    }
    ground = str(rng.choice(["fibres", "smooth", "fat", "mucin", "empty"], p=[0.42, 0.32, 0.09, 0.09, 0.08]))
    if ground == "fibres":
        ranges |= {
            "fibre": (0.5, 1),
            "fibre_pitch": (4, 7.5),
            "fibre_wave": [(0, 1), (2, 7)][rng.integers(2)],
            "radius": (1.2, 3.2),
        }
    elif ground == "fat":
        ranges |= {"fat": (10, 24), "ground": (0.7, 1.2), "spacing": (10, 20)}
    elif ground == "mucin":
        ranges |= {"mucin": (0.15, 0.5), "ground": (0.1, 0.3), "spacing": (10, 22)}
    elif ground == "empty":
        spacing = [(0, 0), (0, 0), (16, 22)][rng.integers(3)]
        ranges |= {"ground": (0.02, 0.1), "spacing": spacing, "grain_length": (3, 10)}
    if ground in ("fibres", "smooth") and rng.random() < 0.65:
        ranges |= {"radius": (1.4, 2.6), "spacing": (8, 14), "kept": (0.3, 0.8)}
        if rng.random() < 0.4:
            ranges |= {"glands": (3, 8), "gland_radius": (6, 9)}
        else:
            layers = [(1, 1), (9, 9)][rng.integers(2)]
            ranges |= {"glands": (1, 2.4), "gland_radius": (9, 20), "gland_layers": layers}
    if rng.random() < 0.2:
        ranges |= {"specks": (10, 160), "spacing": (10, 22)}
    return ground, ranges


def _describe(ground: str, tissue: dict[str, float]) -> tuple[list[int], list[float]]:
    """The attributes of a tissue as places in the word lists, and the numbers behind them."""
    nuclei = tissue["kept"] * (64 / tissue["spacing"]) ** 2 if tissue["spacing"] > 0 else 0.0
    glands = round(tissue["glands"])
    fibrous, bare = tissue["fibre"] > 0, nuclei < 1
    row = {
        "number": int(np.digitize(nuclei, [1, 15, 50])),
        "size": 3 if bare else int(np.digitize(tissue["radius"], [1.8, 2.6])),
        "shape": 3 if bare else int(np.digitize(tissue["elongation"], [1.45, 2.2])),
        "ground": QUESTIONS["ground"][1].index(ground),
        "fibres": 0 if not fibrous else 1 if tissue["fibre_wave"] < 1.5 else 2,
        "glands": 0 if glands == 0 else 1 if glands <= 2 else 2,
        "lumen": 0 if glands == 0 else 1 if tissue["gland_layers"] < 2 else 2,
        "centre": int(not bare and tissue["hollow"] > 0.4),
        "debris": int(np.digitize(tissue["specks"], [10, 60])),
        "grain": int(np.digitize(tissue["grain"], [0.3, 0.5])),
    }
    measured = [tissue[name] for name in ("radius", "elongation", "specks", "fat", "hollow", "variation", "grain")]
    measured += [math.log1p(nuclei), fibrous * tissue["fibre_wave"], fibrous * tissue["fibre_pitch"]]
    return list(row.values()), [*measured, bool(glands) * tissue["gland_radius"]]


def write_text(attributes: list[int], rng: np.random.Generator) -> tuple[str, str]:
    """Make one exercise: question and answer. `attributes` are places in the word lists of `QUESTIONS`, in order."""
    words = {name: QUESTIONS[name][1][place] for name, place in zip(QUESTIONS, attributes, strict=True)}
    kind = rng.random()
    if kind < 0.4:
        named = [words[name] for name in CAPTION_ORDER]
        return "Describe the picture.", " ".join(named)
    if kind < 0.85:
        name = list(QUESTIONS)[rng.integers(len(QUESTIONS))]
        question, options = QUESTIONS[name]
        return (
            f"{question} Options: [{', '.join(options)}]. Answer with only one word.",
            f"The answer is: {words[name]}",
        )
    word = NAMES[rng.integers(len(NAMES))]
    others = list(rng.choice(NAMES, rng.integers(1, 4), replace=False))
    return f"Repeat the word {word}. Options: [{', '.join(others)}].", f"The answer is: {word}"
