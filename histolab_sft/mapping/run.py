"""From a recipe and pictures to their maps."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.phase import list_trained_parts
from histolab_sft.data.pictures.containers import read_patch
from histolab_sft.data.pictures.decoding import decode_image
from histolab_sft.data.slides.grid import Grid, grid_picture, grid_slide, open_slide
from histolab_sft.demo.data_set import DataSet
from histolab_sft.demo.describe import describe_base_model, describe_data_sets
from histolab_sft.evaluation.predictions import FINETUNED, System, hash_weights
from histolab_sft.mapping.arguments import MapArguments
from histolab_sft.mapping.figure import count_answers
from histolab_sft.mapping.files import describe_map, write_files
from histolab_sft.mapping.score import score_squares
from histolab_sft.models.load import (
    check_recipe_model,
    find_weights,
    load_base_model,
    load_base_processor,
    load_finetuned,
)
from histolab_sft.models.precision import read_precision
from histolab_sft.processes import check_processes
from histolab_sft.provenance import collect_versions, compute_sha256, find_commit, write_json

logger = logging.getLogger(__name__)


def map_pictures(
    args: MapArguments, histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig
) -> list[str]:
    """Write the map of every picture to `output_dir/maps/NAME`, and return what to tell about each.

    A map is `squares.csv` and, for QuPath, `squares.geojson` (one square a row, from `score_squares`), `map.png` and
    `map.pdf`, and `map.json`, which says what it was made from and how.

    Raises:
        FileNotFoundError, ImportError, ValueError: Weights, a picture or OpenSlide isn't there, or no square is left.
    """
    check_processes(training_args, model_args, scoring=True)
    check_recipe_model(model_args)
    output_dir = Path(training_args.output_dir)
    find_weights(output_dir, model_args.use_peft)
    described, remarks = describe_data_sets(histo_args, output_dir)
    data_set = choose_data_set(described, args.dataset)
    for remark in remarks:
        logger.warning(remark)
    # What can be refused is, before the weights are loaded.
    for path in args.pictures:
        with open_grid(Path(path), args) as grid:
            choose_squares(grid, path, args)

    precision = read_precision(histo_args, training_args)
    model = load_base_model(model_args, precision)
    model = load_finetuned(model, model_args, output_dir, list_trained_parts(histo_args), precision)
    batch_size = training_args.per_device_eval_batch_size
    processor = load_base_processor(model_args)
    system = System(FINETUNED, model, processor, hash_weights(model), histo_args, batch_size)
    lines = []
    for path in map(Path, args.pictures):
        sha256 = compute_sha256(path)
        with open_grid(path, args) as grid:
            squares = choose_squares(grid, str(path), args)
            table = score_squares(grid, squares, path.name, sha256, system, data_set)
            if training_args.process_index > 0:
                continue
            folder = output_dir / "maps" / f"{path.stem}-{sha256[:8]}" / _name_grid(args, data_set)
            folder.mkdir(parents=True, exist_ok=True)
            write_files(folder, grid, table, data_set.options, args.mpp)
        write_json(
            folder / "map.json",
            {
                "picture": path.name,
                "sha256": sha256,
                "size": list(grid.size),
                "patch_size": args.patch_size,
                "mpp": args.mpp,
                "min_tissue": args.min_tissue,
                "dataset": data_set.name,
                "threshold": data_set.thresholds.get(FINETUNED, 0.0),
                "target_accuracy": data_set.target,
                "squares": {"asked": len(table), "of": grid.tissue.size},
                "answers": count_answers(table, data_set.options),
                "base_model": describe_base_model(model_args.model_name_or_path),
                "weights_sha256": system.weights,
                "versions": collect_versions(),
                "commit": find_commit(),
            },
        )
        lines += [describe_map(path.name, grid, table, data_set.options, args), f"  {folder}"]
    return lines


def choose_data_set(described: list[DataSet], name: str | None) -> DataSet:
    """Return the data set whose question is asked.

    Raises:
        ValueError: There is none of this name or, without a name, not just one; or its answers aren't options.
    """
    names = [entry.name for entry in described]
    if name is None and len(names) > 1:
        raise ValueError(f"the recipe has {', '.join(names)}, expected one data set to ask for; add --dataset NAME")
    if name is not None and name not in names:
        raise ValueError(f"dataset is {name!r}, expected one of the recipe's: {', '.join(names)}")
    chosen = described[0 if name is None else names.index(name)]
    if not chosen.options:
        raise ValueError(f"{chosen.name}: its answers are written, expected a data set with classes to map")
    return chosen


@contextmanager
def open_grid(path: Path, args: MapArguments) -> Iterator[Grid]:
    """Give the grid of a slide where there is an `mpp`, else that of an ordinary picture."""
    if args.mpp is None:
        image, conversions = decode_image(read_patch(str(path)), str(path))
        for conversion in conversions:
            logger.info("%s: %s", path.name, conversion)
        yield grid_picture(image, args.patch_size)
        return
    with open_slide(path) as slide:
        yield grid_slide(slide, path.name, args.mpp, args.patch_size)


def choose_squares(grid: Grid, name: str, args: MapArguments) -> np.ndarray:
    """Return row and column of the squares that are asked, top to bottom, int (N, 2).

    Raises:
        ValueError: There are none.
    """
    squares = np.argwhere(grid.tissue >= args.min_tissue)
    if not grid.tissue.size:
        side = f"{args.patch_size} px" + (f" at {args.mpp:g} µm/px" if args.mpp else "")
        raise ValueError(
            f"{name} has {grid.size[0]} x {grid.size[1]} px, expected room for a square of {side}; lower patch_size"
        )
    if not len(squares):
        raise ValueError(
            f"{name}: the most tissue that a square has is {grid.tissue.max():.2f} of it, expected min_tissue, "
            f"{args.min_tissue:g}, or more in one square at least; lower min_tissue"
        )
    return squares


def _name_grid(args: MapArguments, data_set: DataSet) -> str:
    scale = f"-at-{args.mpp:g}" if args.mpp else ""
    tissue = f"-tissue-{args.min_tissue:g}" if args.min_tissue else ""
    return f"{data_set.name}-{args.patch_size}px{scale}{tissue}"
