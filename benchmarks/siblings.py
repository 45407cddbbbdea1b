"""
How many patches that were turned by any angle, mirrored and cropped are found again, and how many others with them:

    python -m benchmarks.siblings --patches FOLDER [FOLDER ...] --name NAME [--sizes 1000 10000]

Each real patch has one copy, turned by up to 25 degrees, mirrored by chance, cropped by up to 10 % beyond the corners
that turning opens, scaled back and saved as JPEG 90. A found pair that is no such pair counts as wrong, unless the
patches it goes back to are copies by pixels or thumbnails (`find_near_copies`), which asks nothing of this method.
Neighbours that overlap in the data count as wrong too, so precision is a lower limit: 18 of the 134 pairs of files
that are found beside the planted ones in pcam_1000 were drawn at random and looked at, and all show one field.
Times are of as many patches and copies as `--sizes` say, drawn with new angles where the folder has fewer.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import joblib
import numpy as np
from PIL import Image

from histolab_sft.data.audit.copies import find_near_copies
from histolab_sft.data.audit.siblings import find_siblings
from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES
from histolab_sft.data.pictures.inspection import check_images

RESULTS = Path(__file__).parent / "results"
ANGLE, CROP = 25, 0.1  # degrees, share of a side


def turn_patch(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return a square patch turned, mirrored, cropped to what turning leaves whole or less, and scaled back."""
    angle = random.uniform(-ANGLE, ANGLE)
    for flip in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        image = image.transpose(flip) if random.random() < 0.5 else image
    whole = image.width / (np.cos(np.deg2rad(angle)) + np.sin(np.deg2rad(abs(angle))))
    side = whole * (1 - random.uniform(0, CROP))
    left, top = (image.width - side) / 2 + random.uniform(-0.5, 0.5, 2) * (whole - side)
    turned = image.rotate(angle, Image.Resampling.BICUBIC)
    return turned.crop((left, top, left + side, top + side)).resize(image.size, Image.Resampling.BICUBIC)


def write_pairs(files: list[Path], count: int, folder: Path, random: np.random.Generator) -> tuple[list, np.ndarray]:
    """Write `count` patches and a turned copy of each; return where they lie and which file each goes back to."""
    references, origins = [], []
    for number in range(count):
        with Image.open(files[number % len(files)]) as stored:
            image = stored.convert("RGB")
        # Beyond the files that there are, a patch is itself a turned one.
        first = image if number < len(files) else turn_patch(image, random)
        first.save(folder / f"{number}.png")
        turn_patch(first, random).save(folder / f"{number}.jpg", quality=90)
        for suffix in ("png", "jpg"):
            place = {"path": str(folder / f"{number}.{suffix}"), "row": -1, "column": "image", "rendering": ""}
            references.append(place)
            origins.append(number % len(files))
    return references, np.array(origins)


def measure(files: list[Path], count: int, judged: bool) -> dict:
    """Return recall and precision (where `judged`), the pairs of different classes that passed, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        references, origins = write_pairs(files, count, Path(folder), np.random.default_rng(0))
        classes = np.unique([file.parent.name for file in files], return_inverse=True)[1]
        start = time.perf_counter()
        pairs, _, _, passed = find_siblings(references, classes[origins], folder)
        measured = {"patches": len(references), "seconds": time.perf_counter() - start}
        measured |= {"different_classes_tried": len(passed), "different_classes_passed": int(passed.sum())}
        if judged:
            intake = check_images([{"path": str(file), "row": -1} for file in files])
            copies, number = {}, dict(zip(intake["pixel_sha256"], range(len(files)), strict=True))
            for first, second in find_near_copies(intake)[["first", "second"]].itertuples(index=False):
                copies[number[first], number[second]] = copies[number[second], number[first]] = True
            twin = intake["pixel_sha256"].to_numpy()
            left, right = origins[pairs.T]
            own = left == right
            known = [twin[a] == twin[b] or (a, b) in copies for a, b in zip(left, right, strict=True)]
            wrong = ~own & ~np.array(known, bool)
            measured |= {"planted": count, "found": int(own.sum()), "others": int(wrong.sum())}
            measured |= {"recall": own.sum() / count, "precision": own.sum() / (own.sum() + wrong.sum())}
            measured["other_pairs"] = sorted(
                {tuple(sorted((files[a].name, files[b].name))) for a, b in zip(left[wrong], right[wrong], strict=True)}
            )
    return measured


def main() -> None:
    """Measure, and write the results of `NAME` into `results/siblings.json` and `siblings.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", nargs="+", required=True, type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--sizes", nargs="*", type=int, default=[])
    options = parser.parse_args()
    found = [file for folder in options.patches for file in sorted(folder.rglob("*"))]
    files = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
    result = {
        "command": "python -m benchmarks.siblings " + shlex.join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "cores": joblib.cpu_count(),
        "judged": measure(files, len(files), judged=True),
        "timed": [measure(files, size // 2, judged=False) for size in options.sizes],
    }
    path = RESULTS / "siblings.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[options.name] = result
    path.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(format_results(results), encoding="utf-8")


def format_results(results: dict) -> str:
    """Return the results as Markdown."""
    lines = ["# Siblings under free rotation", *__doc__.strip().splitlines()[4:], ""]
    lines += [
        "| patches | planted | recall | precision | others | different classes that pass |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        one = result["judged"]
        passed = f"{one['different_classes_passed']} of {one['different_classes_tried']}"
        cells = [name, one["planted"], f"{one['recall']:.3f}", f"{one['precision']:.3f}", one["others"], passed]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| patches | number | seconds | cores |", "|---|---|---|---|"]
    for name, result in results.items():
        for one in (result["judged"], *result["timed"]):
            lines.append(f"| {name} | {one['patches']} | {one['seconds']:.0f} | {result['cores']} |")
    lines += ["", *(f"{result['date']}: `{result['command']}`\n" for result in results.values())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
