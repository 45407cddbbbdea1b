"""Decode every patch once before training, and measure what the audit of the splits needs.

A picture that can't be used is refused with the reason, and never replaced by another. Results are cached by the path,
size and time of change of the file.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from histolab_sft.data.audit.near_copies import THUMBNAIL_SIDE
from histolab_sft.data.pictures.containers import ImageRefused, check_file, name_patch, read_patch
from histolab_sft.data.pictures.decoding import decode_image, hash_pixels
from histolab_sft.data.pictures.hub_files import is_remote
from histolab_sft.files import unfinished_folder

logger = logging.getLogger(__name__)

CACHE_NAME = "intake.parquet"
# Part of the cache's name: raise it whenever decoding, hashing or measuring changes.
INSPECTION_VERSION = 2
# Processes rather than threads, as small patches take most of their time in Python. To start them takes a second or
# two, in which one process checks thousands of patches.
PATCHES_WORTH_PROCESSES = 4000
CHUNK = 256
KEYS = ("path", "row", "column", "rendering")
WHITE, BLACK = 220, 20
COLUMNS = dict.fromkeys(("verdict", "reason", "conversions"), str) | dict.fromkeys(("width", "height"), "Int64")
COLUMNS |= {"mode": object, "format": object, "file_bytes": "Int64"}
COLUMNS |= dict.fromkeys(("file_sha256", "pixel_sha256", "thumbnail"), object)
COLUMNS |= {"contrast": float, "background_fraction": float, "placement": object}


def check_images(
    references: Iterable[Mapping],
    image_column: str = "image",
    cache_folder: str | Path | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Decode each patch and return one row per reference, in the same order.

    Args:
        references: `{"path": str, "row": int}` each, with `column` where it isn't `image_column`, and `rendering`
            where the data set has one (`open_patch`).
        image_column: The column of parquet files that holds the pictures.
        cache_folder: Where to keep the results for the next run. Refusals are not kept: their cause may be mended
            without the file changing.
        workers: Processes; by default one per available core.

    Returns:
        `path`, `row`, `rendering`; `verdict` (ok, converted, refused), `reason` of a refusal, `conversions` in words;
        `width` and `height` in pixels, `mode` and `format` as stored; `file_bytes` and `file_sha256` of the encoded
        picture; `pixel_sha256` of the decoded RGB picture with its size; `thumbnail` (16 x 16 grey bytes, row by row);
        `contrast` (standard deviation of the grey values, 0 to 127.5) and `background_fraction` (0 to 1);
        `placement` (`box_geometry.Placement` of the stored picture as JSON text).
    """
    keys = [
        (ref["path"], int(ref["row"]), ref.get("column", image_column), ref.get("rendering", "")) for ref in references
    ]
    stamps = {path: _stamp(path) for path in dict.fromkeys(path for path, *_ in keys)}
    cache_path = None if cache_folder is None else Path(cache_folder, CACHE_NAME)
    cache = {} if cache_path is None else _load_cache(cache_path)
    described = {key: cache[key] for key in keys if key in cache and cache[key]["stamp"] == stamps[key[0]]}
    # Neighbours in a file are checked together, so that each row group is read once.
    pending = sorted(set(keys) - set(described))
    chunks = [pending[start : start + CHUNK] for start in range(0, len(pending), CHUNK)]
    jobs = (workers or joblib.cpu_count()) if len(pending) >= PATCHES_WORTH_PROCESSES else 1
    pool = joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator")
    results = pool(joblib.delayed(_describe_patches)(chunk) for chunk in chunks)
    try:
        with tqdm(total=len(pending), desc="Checking images", unit="patch", disable=None) as progress:
            for chunk, descriptions in zip(chunks, results, strict=True):
                for key, description in zip(chunk, descriptions, strict=True):
                    described[key] = {"stamp": stamps[key[0]], **description}
                progress.update(len(chunk))
    finally:  # an interrupted check keeps what it has done
        if cache_path is not None and pending:
            _save_cache(cache_path, cache | described)
    verdicts = pd.Series([described[key]["verdict"] for key in keys], dtype=object).value_counts()
    logger.info("images: %s; %d from the cache", verdicts.to_dict(), len(set(keys)) - len(pending))
    # Names that aren't UTF-8 are refused, but still have to be named: pandas' own text type can't hold them.
    table = pd.DataFrame({"path": pd.Series([key[0] for key in keys], dtype=object), "row": [key[1] for key in keys]})
    table["rendering"] = pd.Series([key[3] for key in keys], dtype=object)
    for column, kind in COLUMNS.items():
        table[column] = pd.Series([described[key].get(column) for key in keys], dtype=kind)
    return table


def describe_patch(path: str, row: int = -1, image_column: str = "image", rendering: str = "") -> dict:
    """Return the columns of `check_images` for one patch; for a refused one, only the verdict and the reason."""
    try:
        data = read_patch(path, row, image_column)
        image, conversions = decode_image(data, name_patch(path, row), rendering=rendering)
    except ImageRefused as error:
        return {"verdict": "refused", "reason": error.reason, "conversions": ""}
    grey = image.convert("L")
    return {
        "verdict": "converted" if conversions else "ok",
        "reason": "",
        "conversions": "; ".join(conversions),
        "width": image.width,
        "height": image.height,
        "mode": image.info["source_mode"],
        "format": image.info["source_format"],
        "file_bytes": len(data) if isinstance(data, bytes) else data.nbytes,
        "file_sha256": hashlib.sha256(data).hexdigest(),
        "pixel_sha256": hash_pixels(image),
        # Averages over boxes: turning the picture turns the thumbnail, and noise of compression is levelled.
        "thumbnail": grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes(),
        "contrast": float(np.asarray(grey).std()),
        "background_fraction": compute_background_fraction(np.asarray(image)),
        "placement": json.dumps(image.info["placement"]),
    }


def compute_background_fraction(pixels: np.ndarray) -> float:
    """Return the share of pixels (H, W, 3) uint8 that show glass or the scanner's padding: all white or all black."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    glass = np.minimum(np.minimum(red, green), blue) > WHITE
    padding = np.maximum(np.maximum(red, green), blue) < BLACK
    return np.count_nonzero(glass | padding) / glass.size


def _describe_patches(keys: list[tuple[str, int, str, str]]) -> list[dict]:
    return [describe_patch(*key) for key in keys]


def _stamp(path: str) -> str:
    """Return a text that changes whenever the file does; it includes the time of change, which can't be set back."""
    if is_remote(path):
        return "remote"  # the commit stands in the address
    try:
        status = check_file(path)
    except ImageRefused:
        return "refused"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _load_cache(path: Path) -> dict[tuple[str, int, str, str], dict]:
    if not path.exists():
        return {}
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        logger.warning("the image cache %s can't be read (%s): every patch is checked again", path, error)
        return {}
    if (table.schema.metadata or {}).get(b"intake_version") != str(INSPECTION_VERSION).encode():
        logger.info("the image cache %s is of another version: every patch is checked again", path)
        return {}
    return {tuple(entry.pop(name) for name in KEYS): entry for entry in table.to_pylist()}


def _save_cache(path: Path, entries: Mapping[tuple[str, int, str, str], dict]) -> None:
    rows = [
        {**dict(zip(KEYS, key, strict=True)), **entry}
        for key, entry in entries.items()
        if entry["verdict"] != "refused"
    ]
    if not rows:
        return
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"intake_version": str(INSPECTION_VERSION)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(path.parent) as folder:
            # Whoever reads meanwhile sees the old file or the new one, never half of one.
            unfinished = Path(folder, path.name)
            pq.write_table(table, unfinished)
            os.replace(unfinished, path)
    except OSError as error:
        logger.warning("%s can't be written (%s): the next run checks every picture again", path, error.strerror)
