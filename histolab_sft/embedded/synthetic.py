"""Paint patches in HistoLab's folder layouts: three data sets made by code in seconds, offline.

The classes differ in texture (size, shape and order of nuclei, fibres, holes), hardly in colour: the amounts of stain
are drawn the same way for every class, and every slide has its own hue, strength and brightness. The pictures hold no
biology. Scores on them show that the pipeline works, and say nothing about patients.

A file is named `{class}-S{slide}-{number}`, such as `ADI-S07-0003.tif`. A slide holds patches of several classes, so
rows have to be split and intervals clustered by slide: `group_by: "-(S\\d+)-"`.
"""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from histolab_sft.embedded.painting import balance_stains, draw_stain, draw_tissue, paint_tissue, stain_patch
from histolab_sft.files import unfinished_folder

logger = logging.getLogger(__name__)

VERSION = 1  # raise it when a change alters a painted byte
PATCH_SIZE = 64  # pixels
SLIDES = 48  # per data set
MARKER = "synthetic.json"
DEMO_PATCHES = {"crc": 100, "pcam": 200, "bach": 120}  # for each class
GROUP_BY = r"-(S\d+)-"

# Tissue parameters by class, over `painting.BLANK`; lengths in pixels of a 64-pixel patch.
FIBROUS = {"ground": (0.3, 0.5), "fibre": (0.6, 1.0), "spacing": (9, 12), "kept": (0.4, 0.7), "radius": (1.2, 1.6)}
GLANDULAR = FIBROUS | {"fibre_wave": (2, 4), "glands": (1, 2), "radius": (1.8, 2.2), "elongation": (1.2, 1.6)}
LYMPHOID = {"ground": (0.5, 0.8), "spacing": (5.2, 6.8), "kept": (0.6, 1), "radius": (1.7, 2.2)}
CANCEROUS = {
    "ground": (0.5, 0.8),
    "spacing": (7.5, 10),
    "kept": (0.6, 1),
    "radius": (3.1, 4),
    "variation": (0.2, 0.35),
}

TISSUES = {
    "crc": {
        "ADI": {"ground": (0.8, 1.2), "fat": (12, 22), "spacing": (14, 18), "kept": (0.2, 0.5)},
        "BACK": {"ground": (0.02, 0.06), "grain": (0.3, 0.6), "grain_length": (6, 10), "specks": (0, 3)},
        "DEB": {
            "ground": (0.4, 0.8),
            "grain": (0.5, 0.8),
            "specks": (60, 160),
            "spacing": (14, 18),
            "kept": (0.2, 0.5),
        },
        "LYM": LYMPHOID,
        "MUC": {"ground": (0.1, 0.2), "mucin": (0.2, 0.4), "spacing": (16, 20), "kept": (0.2, 0.4)},
        "MUS": FIBROUS
        | {"fibre_pitch": (5.5, 7), "fibre_wave": (0, 0.8), "kept": (0.6, 0.9), "elongation": (2.6, 3.4)},
        "NORM": GLANDULAR | {"glands": (1.6, 3.4), "gland_radius": (10, 13)},
        "STR": FIBROUS | {"fibre_pitch": (4, 5.5), "fibre_wave": (4, 7), "kept": (0.2, 0.5), "elongation": (2.6, 3.4)},
        "TUM": CANCEROUS | {"elongation": (1.2, 1.7)},
    },
    "pcam": {
        "Normal": LYMPHOID | {"hollow": (0, 0.6)},
        "Tumor": CANCEROUS | {"hollow": (0, 0.9)},
    },
    "bach": {
        "Normal": GLANDULAR | {"gland_radius": (12, 15), "radius": (1.6, 2)},
        "Benign": GLANDULAR | {"glands": (5, 8), "gland_radius": (6, 7.5), "radius": (1.4, 1.8)},
        "InSitu": GLANDULAR | {"gland_radius": (15, 20), "gland_layers": (9, 9)},
        "Invasive": FIBROUS | {"spacing": (7, 8.5), "kept": (0.7, 0.9), "radius": (2.5, 3.1), "variation": (0.2, 0.3)},
    },
}
SUFFIXES = {"crc": ".tif", "pcam": ".png", "bach": ".png"}


def write_synthetic_patches(
    folder: str | Path, patches_per_class: dict[str, int] | int, seed: int = 0, size: int = PATCH_SIZE
) -> Path:
    """Paint the data sets `crc`, `pcam` and `bach`, one folder a class; does nothing if they are already there.

    Args:
        folder: receives `crc/ADI/ADI-S07-0003.tif` and so on; made if missing.
        patches_per_class: how many for each class, one number or one per data set, as `{"crc": 60, "pcam": 150}`.
        seed: the same arguments give the same bytes.
        size: side of a patch in pixels.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds patches painted with other arguments.
        ValueError: a data set is unknown, or a number of patches is below one.
    """
    if isinstance(patches_per_class, int):
        patches_per_class = dict.fromkeys(TISSUES, patches_per_class)
    for name, count in patches_per_class.items():
        if name not in TISSUES or count < 1:
            raise ValueError(
                f"patches_per_class asks for {count} patches of {name!r}; expected at least 1 patch of any of "
                f"{', '.join(TISSUES)}. Correct the entry."
            )
    arguments = {"kind": "synthetic", "patches_per_class": patches_per_class, "seed": seed, "size": size}
    return _write_once(Path(folder), arguments, _paint_data_sets(patches_per_class, seed, size))


def write_colour_only_patches(
    folder: str | Path, patches_per_class: int, seed: int = 0, size: int = PATCH_SIZE
) -> Path:
    """Paint one data set of two classes, `Blue` and `Red`, alike in texture and apart in tint alone.

    A check for colour shortcuts must warn of it. Arguments, return value and errors as in
    `write_synthetic_patches`; the files are `Blue/Blue-S03-0001.png` and so on.
    """
    arguments = {"kind": "colour_only", "patches_per_class": patches_per_class, "seed": seed, "size": size}
    return _write_once(Path(folder), arguments, _paint_tints(patches_per_class, seed, size))


def _write_once(folder: Path, arguments: dict, patches: Iterable[tuple[Path, np.ndarray]]) -> Path:
    """Save the patches in a temporary folder and rename it, so that a folder that exists is complete."""
    wanted = arguments | {"version": VERSION}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists() and any(folder.iterdir()):
            marker = folder / MARKER
            found = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else "files of another origin"
            if found == wanted:
                return folder
            raise FileExistsError(
                f"{folder} holds {found}; expected patches painted with {wanted}. "
                "Choose another folder, or delete this one if it is not needed."
            )
        with unfinished_folder(folder.parent) as unfinished:
            count = 0
            for name, pixels in patches:
                path = Path(unfinished, "patches", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
                count += 1
            Path(unfinished, "patches", MARKER).write_text(json.dumps(wanted), encoding="utf-8")
            os.replace(Path(unfinished, "patches"), folder)
    logger.info("Painted %s patches into %s", count, folder)
    return folder


def _paint_data_sets(patches_per_class: dict[str, int], seed: int, size: int) -> Iterable[tuple[Path, np.ndarray]]:
    for set_number, (name, classes) in enumerate(TISSUES.items()):
        stains = [draw_stain(np.random.default_rng([seed, set_number, slide])) for slide in range(SLIDES)]
        for class_number, (class_name, ranges) in enumerate(classes.items()):
            for number in range(patches_per_class.get(name, 0)):
                # Steps without a common divisor with the number of slides: each class visits every slide in turn.
                slide = (7 * number + 5 * class_number) % SLIDES
                rng = np.random.default_rng([seed, set_number, SLIDES + class_number, number])
                maps = balance_stains(paint_tissue(draw_tissue(ranges, rng), size, rng), rng)
                file_name = f"{class_name}-S{slide:02d}-{number:04d}{SUFFIXES[name]}"
                yield Path(name, class_name, file_name), stain_patch(maps, stains[slide], rng)


def _paint_tints(patches_per_class: int, seed: int, size: int) -> Iterable[tuple[Path, np.ndarray]]:
    for class_number, class_name in enumerate(["Blue", "Red"]):
        for number in range(patches_per_class):
            slide = (7 * number) % 12
            stain = draw_stain(np.random.default_rng([seed, 9, slide]))
            stain["lamp"] = np.array([[0.75, 0.8, 1.0], [1.0, 0.8, 0.75]])[class_number]
            rng = np.random.default_rng([seed, 10, class_number, number])
            maps = balance_stains(paint_tissue(draw_tissue(LYMPHOID, rng), size, rng), rng)
            yield Path(class_name, f"{class_name}-S{slide:02d}-{number:04d}.png"), stain_patch(maps, stain, rng)


def is_painted(source: Path) -> bool:
    """Return whether the patches of a data set's folder were painted by this module."""
    return any((folder / MARKER).is_file() for folder in (source, source.parent))
