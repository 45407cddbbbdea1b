"""24 made-up patients of two projects: expression, clinical tables, patches and slides, as ImmunoPath's files are."""

import json
import struct

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from histolab_sft.tasks.label_rules import GENE_SETS

GENES = sorted({gene for genes in GENE_SETS.values() for gene in genes})
PATIENTS = [f"TCGA-{site}-{1000 + number}" for number in range(12) for site in ("05", "22")]
PROJECTS = {"05": "TCGA-LUAD", "22": "TCGA-LUSC"}
TWO_SLIDES, AT_40X, WITHOUT_SUBTYPE, SPELT_IE_F = PATIENTS[3], PATIENTS[5], PATIENTS[7], PATIENTS[8]
SIZE = 64
# What ImmunoPath's own example comes out as.
WORKED_EXAMPLE = {
    "cd274_expression": "high",
    "msi_status": "MSS",
    "tme_subtype": "IE/F",
    "til_fraction": 0.675,
    "til_density": "high",
    "immune_phenotype": "inflamed",
    "cd8_infiltration": "moderate",
    "immune_score": 0.626,
}


def write_tables(folder, seed=0):
    """Write `expression.tsv` (log2, genes in rows) and three clinical tables; return their paths."""
    rng = np.random.default_rng(seed)
    infiltration = rng.normal(size=len(PATIENTS))
    values = 5 + infiltration[:, None] + rng.normal(scale=0.7, size=(len(PATIENTS), len(GENES)))
    expression = pd.DataFrame(values.clip(0), index=[f"{patient}-01A-11R" for patient in PATIENTS], columns=GENES)
    expression.loc[f"{PATIENTS[0]}-11A-11R"] = 9.0  # normal tissue of the first patient
    expression = expression.assign(NOTAGENE=1.0)
    rows = rng.permutation(len(expression))
    expression.iloc[rows].T.round(4).to_csv(folder / "expression.tsv", sep="\t", index_label="gene")

    metadata = pd.DataFrame({"submitter_id": PATIENTS, "project_id": [PROJECTS[name[5:7]] for name in PATIENTS]})
    metadata.to_csv(folder / "metadata.csv", index=False)
    subtypes = [("IE", "IE/F", "F", "D")[number % 4] for number in range(len(PATIENTS))]
    bagaev = pd.DataFrame({"MFP": subtypes, "MSI": "MSS"}, index=PATIENTS)
    bagaev.loc[WITHOUT_SUBTYPE, "MFP"] = None
    bagaev.loc[SPELT_IE_F, "MFP"] = "IE_F"
    bagaev.loc[PATIENTS[1], "MSI"] = "MSI-L"
    bagaev.to_csv(folder / "annotation.tsv", sep="\t")
    scores = pd.DataFrame({"PATIENT_ID": PATIENTS, "MSI_SENSOR_SCORE": 0.1, "MSI_SCORE_MANTIS": 0.3})
    text = "#Patient\tMSIsensor\tMANTIS\n" + scores.to_csv(sep="\t", index=False)
    (folder / "cbioportal.txt").write_text(text)
    return folder / "expression.tsv", [folder / name for name in ("metadata.csv", "annotation.tsv", "cbioportal.txt")]


def paint_tissue(rng, size=SIZE):
    """Return a picture of pink with blue spots, sharp and different each time."""
    blue = ndimage.gaussian_filter(rng.normal(size=(size, size)), 1.5) > rng.uniform(0.02, 0.1)
    pixels = np.where(blue[..., None], rng.normal((95, 60, 140), 4), rng.normal((215, 150, 190), 4))
    return Image.fromarray((pixels + rng.normal(scale=6, size=(size, size, 3))).clip(0, 255).astype(np.uint8))


def write_patches(folder, order=1):
    """Write 10 patches for each patient, with metadata; `order` -1 makes the same files in reverse order."""
    jobs = []
    for patient in PATIENTS:
        slides = [f"{patient}-01Z-00-DX{number}" for number in ((1, 2) if patient == TWO_SLIDES else (1,))]
        for number in range(10):
            jobs.append((slides[number % len(slides)], number))
    for slide, number in jobs[::order]:
        rng = np.random.default_rng([int(slide[8:12]), int(slide[5:7]), number])
        place = folder / slide
        place.mkdir(parents=True, exist_ok=True)
        paint_tissue(rng).save(place / f"{slide}_patch_{number:03d}.png")
        mpp = 0.25 if slide.startswith(AT_40X) else 0.5
        (place / f"{slide}_metadata.json").write_text(json.dumps({"mpp": mpp, "patches": []}))
    return folder


def write_pyramid(path, pixels, mpp, n_levels=3, tile=64):
    """Write (H, W, 3) uint8 as an uncompressed tiled TIFF with levels of half the size each and its resolution."""
    file, previous = bytearray(struct.pack("<2sHI", b"II", 42, 0)), 4
    image = Image.fromarray(pixels)
    for level in range(n_levels):
        width, height = image.size
        across, down = -(-width // tile), -(-height // tile)
        padded = np.full((down * tile, across * tile, 3), 255, dtype=np.uint8)
        padded[:height, :width] = np.asarray(image)
        tiles = padded.reshape(down, tile, across, tile, 3).swapaxes(1, 2).reshape(-1, tile * tile * 3)
        offsets = [len(file) + number * tiles.shape[1] for number in range(len(tiles))]
        file += tiles.tobytes()
        counts = [tiles.shape[1]] * len(tiles)
        resolution = (round(1e4 / mpp * 100 / 2**level), 100)  # px per cm
        entries = [(254, 4, [int(level > 0)]), (256, 4, [width]), (257, 4, [height]), (258, 3, [8, 8, 8])]
        entries += [(259, 3, [1]), (262, 3, [2]), (277, 3, [3]), (282, 5, resolution), (283, 5, resolution)]
        entries += [(284, 3, [1]), (296, 3, [3]), (322, 4, [tile]), (323, 4, [tile])]
        entries += [(324, 4, offsets), (325, 4, counts)]
        directory = b""
        for tag, kind, values in entries:
            packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
            if len(packed) > 4:
                file += b"\0" * (len(file) % 2)
                packed, place = struct.pack("<I", len(file)), packed
                file += place
            count = 1 if kind == 5 else len(values)
            directory += struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")
        file += b"\0" * (len(file) % 2)
        struct.pack_into("<I", file, previous, len(file))
        file += struct.pack("<H", len(entries)) + directory
        previous = len(file)
        file += b"\0" * 4
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    path.write_bytes(file)
    return path


def paint_slide(seed, mpp, columns=4, rows=3, size=SIZE):
    """Return a slide of tissue (H, W, 3) whose left column is glass; at any `mpp` it shows the same tissue.

    It measures `columns` x `rows` patches of `size` px at 0.5 µm/px.
    """
    tissue = paint_tissue(np.random.default_rng(seed), size=max(columns, rows) * size)
    tissue = np.asarray(tissue).copy()[: rows * size, : columns * size]
    tissue[:, :size] = 245
    image, factor = Image.fromarray(tissue), 0.5 / mpp
    return np.asarray(
        image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.NEAREST)
    )
