"""Write and list patches in ImmunoPath's layout: `{slide}_patch_{number}.jpg` beside `{slide}_metadata.json`.

The JSON file has a list `patches` of `patch_name`, `x`, `y`, `tissue_fraction`; ours also say `mpp`, the µm per pixel
of the patches, and how they were cut.
"""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import joblib
import pandas as pd

from histolab_sft.data.biomarkers.barcodes import is_normal_tissue, name_patients
from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES, ImageRefused
from histolab_sft.data.slides.cutting import Cutting, cut_slide_file
from histolab_sft.data.slides.grid import MPP_TOLERANCE, SLIDE_SUFFIXES
from histolab_sft.files import write_text

logger = logging.getLogger(__name__)

_PATCH_NAME = re.compile(r"(?P<slide>.+)_patch_\d+")


def cut_slides(source: Path, folder: Path, cutting: Cutting, workers: int = 1) -> list[dict]:
    """Cut all slides below `source` into patches in folders of `folder`; slides already cut the same way are kept.

    Returns:
        A row for each slide: `slide`; `reason` it was refused for ("" if it wasn't); `patches`, how many came of it;
        `refused`, how many squares were refused, by reason.

    Raises:
        FileNotFoundError: There are no slides.
        ImportError: OpenSlide isn't installed.
        ValueError: Two slides have one name.
    """
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SLIDE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{source} holds no slides, expected {', '.join(SLIDE_SUFFIXES)}; correct the folder")
    names = [path.stem for path in paths]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{source}: {len(doubled)} slides share a name, {doubled[0]!r} first; rename one of each")
    pool = joblib.Parallel(n_jobs=workers)
    return pool(joblib.delayed(_cut_one)(path, folder, cutting) for path in paths)


def list_patches(source: Path, mpp: float, declared_mpp: float | None, pattern: str) -> pd.DataFrame:
    """Return `path`, `name`, `slide`, `patient` and `reason` ("" or why it is refused) of all patches, sorted by name.

    Args:
        source: Searched with its subfolders.
        mpp: What the patches must have, within a tenth. Others are refused: to scale them is no help, as every
            patch is scaled to the model's input size anyway.
        declared_mpp: Of patches whose metadata don't say it.
        pattern: Regular expression that finds the patient in a slide's name.

    Raises:
        FileNotFoundError: There are no patches.
        ValueError: A picture with another name, two of one name, or a resolution that nothing tells.
    """
    paths = [path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    paths.sort(key=lambda path: (path.stem, str(path)))
    if not paths:
        raise FileNotFoundError(f"{source} holds no patches, expected slide_patch_000.jpg and so on; cut the slides")
    matches = [_PATCH_NAME.fullmatch(path.stem) for path in paths]
    if strange := [path for path, match in zip(paths, matches, strict=True) if match is None]:
        raise ValueError(
            f"{len(strange)} of {len(paths)} pictures below {source} are named otherwise than SLIDE_patch_NUMBER, "
            f"{strange[0]} first; rename or move them"
        )
    table = pd.DataFrame({"path": [str(path) for path in paths], "name": [path.stem for path in paths]})
    if table["name"].duplicated().any():
        raise ValueError(f"two patches are named {table['name'][table['name'].duplicated()].iloc[0]}; rename one")
    table["slide"] = [match["slide"] for match in matches]
    table["patient"] = name_patients(table["slide"], pattern, str(source))
    reasons = _judge_slides(table, mpp, declared_mpp)
    return table.assign(reason=[reasons[slide] for slide in table["slide"]])


def _judge_slides(table: pd.DataFrame, mpp: float, declared_mpp: float | None) -> dict[str, str]:
    reasons, unknown = {}, []
    for slide, rows in table.groupby("slide", sort=True):
        found = _read_metadata(rows["path"], slide).get("mpp", declared_mpp)
        if found is None:
            unknown.append(slide)
        elif is_normal_tissue(slide):
            reasons[slide] = "normal tissue"
        elif abs(found / mpp - 1) > MPP_TOLERANCE:
            reasons[slide] = f"cut at {found:g} µm/px instead of {mpp:g}"
        else:
            reasons[slide] = ""
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {table['slide'].nunique()} slides don't tell the µm per pixel of their patches, "
            f"{unknown[0]} first, expected `mpp` in SLIDE_metadata.json; cut them from the slides, or declare it"
        )
    return reasons


def _read_metadata(paths: Sequence[str], slide: str) -> dict:
    for folder in sorted({Path(path).parent for path in paths}):
        file = folder / f"{slide}_metadata.json"
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
    return {}


def _cut_one(path: Path, folder: Path, cutting: Cutting) -> dict:
    name, entry = path.stem, {"slide": path.stem, "reason": "", "patches": 0, "refused": {}}
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}_metadata.json"
    settings = cutting._asdict() | {"limits": list(cutting.limits), "file_bytes": path.stat().st_size}
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["settings"] == settings:
            return entry | {"patches": len(known["patches"]), "refused": known["refused"]}
    for unfinished in folder.glob("*.jpg"):
        unfinished.unlink()
    try:
        patches, refused = cut_slide_file(path, cutting)
    except ImageRefused as error:
        logger.warning("%s", error)
        return entry | {"reason": error.reason}
    listed = []
    for number, patch in enumerate(patches):
        patch_name = f"{name}_patch_{number:03d}.jpg"
        patch.image.save(folder / patch_name, quality=95, subsampling=0)
        listed.append(
            {"patch_name": patch_name, "x": patch.x, "y": patch.y, "tissue_fraction": round(patch.tissue, 4)}
        )
    # Written last: the file shows that all patches are there.
    content = {"mpp": cutting.mpp, "settings": settings, "refused": dict(refused), "patches": listed}
    write_text(file, json.dumps(content, indent=2))
    return entry | {"patches": len(listed), "refused": dict(refused)}
