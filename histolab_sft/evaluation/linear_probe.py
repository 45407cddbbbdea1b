"""What the picture's features give without the language model: the rung between colour floors and zero-shot."""

import hashlib
import json
import logging
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from tqdm import tqdm

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.floors import compute_linear_probe
from histolab_sft.evaluation.groups import name_units
from histolab_sft.evaluation.neighbours import compute_neighbours
from histolab_sft.evaluation.predictions import System, select_probe_rows
from histolab_sft.evaluation.site_probe import compute_site_probe
from histolab_sft.files import cache_folder, replacing
from histolab_sft.models.generate import evaluating
from histolab_sft.models.picture_loader import prepare_ahead
from histolab_sft.models.precision import autocasting, get_precision
from histolab_sft.models.vision_cache.features import read_pictures
from histolab_sft.provenance import name_pixels

logger = logging.getLogger(__name__)


def measure_linear_probe(rows: dict[str, Dataset], system: System, config: DatasetConfig) -> dict:
    """Score a logistic regression on the base model's picture features, on one data set of a recipe.

    Trained on at most `PROBE_PATCHES` patches of its train split, its penalty chosen on the validation split, and
    scored on the whole test split.

    Args:
        rows (`dict`): Split -> rows of the data set.
        system: The base model, before an adapter is attached; under its `weights` the features are kept in the cache
            of this machine.

    Returns:
        What `compute_linear_probe` does.
    """
    return compute_linear_probe(*_read_tower(rows, system), config.options)


def measure_neighbours(rows: dict[str, Dataset], system: System, config: DatasetConfig) -> dict:
    """Score the nearest neighbours among the features of `measure_linear_probe`; arguments as there."""
    return compute_neighbours(*_read_tower(rows, system), config.options)


def _read_tower(rows: dict[str, Dataset], system: System) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return split -> features and split -> labels of the probe's rows."""
    rows = select_probe_rows(rows)
    features = {split: encode_pictures(part, system) for split, part in rows.items()}
    return features, {split: np.array(part.with_format(None)["label"]) for split, part in rows.items()}


def measure_site_probe(rows: dict[str, Dataset], system: System) -> dict:
    """Return how well the site can be told from the same features as of `measure_linear_probe`, and the same patches.

    Patches of all splits count, since no site was learnt from any of them.

    Returns:
        What `compute_site_probe` does.
    """
    rows = select_probe_rows(rows)
    features = np.concatenate([encode_pictures(part, system) for part in rows.values()])
    columns = ["id", "group", "site", "label"]
    table = pd.concat(
        [part.with_format(None).select_columns(columns).to_pandas() for part in rows.values()], ignore_index=True
    )
    return compute_site_probe(features, table["site"], table["label"].to_numpy(str), name_units(table))


def encode_pictures(patches: Dataset, system: System) -> np.ndarray:
    """Return the mean over a picture's tokens of what the language model is given: float32, shape (patches, width)."""
    model, processor, batch_size = system.model, system.processor, system.batch_size
    settings = [
        *(system.weights, asdict(get_precision(model)), processor.image_processor.to_json_string()),
        name_pixels(patches),
    ]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    path = cache_folder() / "features" / f"{digest}.npy"
    if path.exists():
        return np.load(path)
    images = read_pictures(patches, processor)

    def prepare(rows: range) -> dict[str, torch.Tensor]:
        # Each in a list of its own: an Idefics 3 takes a plain list for the pictures of one row.
        inputs = dict(processor.image_processor([[images[row][0]] for row in rows], return_tensors="pt"))
        inputs.pop("num_crops", None)  # a count for the processor, not for the model
        return inputs

    batches = [range(start, min(start + batch_size, len(patches))) for start in range(0, len(patches), batch_size)]
    features = []
    with evaluating(model), autocasting(model):
        prepared = prepare_ahead(prepare, batches, len(patches))
        for inputs in tqdm(prepared, "encoding", len(batches), unit="batch", disable=None):
            inputs = {name: values.to(model.device, non_blocking=True) for name, values in inputs.items()}
            pictures = model.get_image_features(**inputs).pooler_output
            features += [picture.float().mean(dim=0).cpu() for picture in pictures]
    features = torch.stack(features).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, features)
    return features
