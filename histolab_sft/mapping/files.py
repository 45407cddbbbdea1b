"""Write a map: its squares as a table and for QuPath, and its figure."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from histolab_sft.data.slides.grid import Grid
from histolab_sft.demo.batch import format_csv
from histolab_sft.evaluation.figures import render
from histolab_sft.files import replacing, write_text
from histolab_sft.mapping.arguments import MapArguments
from histolab_sft.mapping.figure import choose_colours, count_answers, draw_map, say_share
from histolab_sft.mapping.score import PROBABILITY


def write_files(folder: Path, grid: Grid, table: pd.DataFrame, options: list[str], mpp: float | None) -> None:
    """Write the squares as CSV and GeoJSON, and the map as PNG and PDF."""
    write_text(folder / "squares.csv", format_csv(table))
    write_text(folder / "squares.geojson", json.dumps(list_features(grid, table, options), ensure_ascii=False))
    _, png, pdf = render(draw_map, grid, table, options, mpp)
    for name, content in {"map.png": png, "map.pdf": pdf}.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)


def list_features(grid: Grid, table: pd.DataFrame, options: list[str]) -> dict:
    """Return the squares as GeoJSON in the form that QuPath 0.4 and later import as detections.

    A withheld square has no class, but its probabilities.
    """
    colours = {name: [round(255 * part) for part in colour] for name, colour in choose_colours(options).items()}
    features = []
    for square in table.to_dict("records"):
        left, top = square["x"], square["y"]
        right, bottom = grid.find_corner(square["row"] + 1, square["column"] + 1)
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        properties = {
            "objectType": "detection",
            "measurements": {option: square[PROBABILITY + option] for option in options},
        }
        if not square["withheld"]:
            properties["classification"] = {"name": square["answer"], "color": colours[square["answer"]]}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def describe_map(name: str, grid: Grid, table: pd.DataFrame, options: list[str], args: MapArguments) -> str:
    """Return what was asked, what was left out, and what came out, in one line."""
    side = f"{args.patch_size} px" + (f" at {args.mpp:g} µm/px" if args.mpp else "")
    told = [f"{name}: {len(table):,} squares of {side}"]
    if left := grid.tissue.size - len(table):
        told.append(f"{left:,} left out, less than {args.min_tissue:g} of them tissue")
    rows, columns = grid.tissue.shape
    right, bottom = np.array(grid.size) - grid.find_corner(rows, columns)
    if right or bottom:
        told.append(f"{right} px at the right and {bottom} px at the bottom belong to no square")
    counts = count_answers(table, options)
    answers = ", ".join(f"{say_share(count, len(table))} {answer}" for answer, count in counts.items())
    return f"{'; '.join(told)}\n  {answers}"
