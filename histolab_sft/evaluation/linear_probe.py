"""What the picture's features give without the language model: the rung between colour floors and zero-shot."""

import hashlib
import json
import logging
from dataclasses import asdict

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from tqdm import tqdm

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.rows import select_dataset
from histolab_sft.data.splits import cap_patches
from histolab_sft.evaluation.floors import compute_linear_probe
from histolab_sft.files import cache_folder, replacing
from histolab_sft.models.generate import evaluating
from histolab_sft.models.picture_loader import prepare_ahead
from histolab_sft.models.precision import autocasting, get_precision
from histolab_sft.models.vision_cache.features import read_pictures
from histolab_sft.tasks import WITH_FIELDS

logger = logging.getLogger(__name__)

TRAIN_PATCHES = 5000  # class-balanced; more hardly move a linear fit and cost a pass of the tower each


def measure_linear_probe(
    patches: DatasetDict, config: DatasetConfig, model, processor, weights: str, batch_size: int
) -> dict:
    """Score a logistic regression on the base model's picture features, on one data set of a recipe.

    Trained on at most `TRAIN_PATCHES` patches of its train split, its penalty chosen on the validation split, and
    scored on the whole test split.

    Args:
        model, processor: The base model, before an adapter is attached.
        weights (`str`): `hash_weights(model)`, under which the features are kept in the cache of this machine.

    Returns:
        What `compute_linear_probe` does.
    """
    rows = select_probe_rows(patches, config)
    features = {split: encode_pictures(part, model, processor, weights, batch_size) for split, part in rows.items()}
    labels = {split: np.array(part.with_format(None)["label"]) for split, part in rows.items()}
    classes = list(config.class_names.values())
    return compute_linear_probe(features, labels, classes)


def list_looks(patches: DatasetDict, histo_args: HistoArguments, system: str) -> list[tuple[Dataset, int]]:
    """Return which rows a system looks at when it is scored, and how often, both systems counted for those they share.

    Patches are scored by likelihood and in words, validation by likelihood alone; the base model's features of the
    probe's rows are taken as well. Questions of records are answered in words, on test alone unless confidences are
    weighed, which looks once more and at validation too.
    """
    if any(config.format is not None for config in histo_args.datasets):
        weighed = set(patches["test"].with_format(None)["task"]) & set(WITH_FIELDS)
        return [(patches["validation"], 4), (patches["test"], 4)] if weighed else [(patches["test"], 2)]
    looks = [(patches["validation"], 2), (patches["test"], 2 + 2 * histo_args.generate_answers)]
    if system == "baseline":
        looks += [(rows, 1) for config in histo_args.datasets for rows in select_probe_rows(patches, config).values()]
    return looks


def select_probe_rows(patches: DatasetDict, config: DatasetConfig) -> dict[str, Dataset]:
    """Return the rows of one data set that the probe is trained on, chosen on and scored on: split -> rows."""
    rows = {split: select_dataset(part, config.name) for split, part in patches.items()}
    table = rows["train"].with_format(None).select_columns(["label"]).to_pandas().assign(split="train")
    return rows | {"train": rows["train"].select(cap_patches(table, TRAIN_PATCHES).index)}


def encode_pictures(patches: Dataset, model, processor, weights: str, batch_size: int) -> np.ndarray:
    """Return the mean over a picture's tokens of what the language model is given: float32, shape (patches, width)."""
    settings = [
        *(weights, asdict(get_precision(model)), processor.image_processor.to_json_string()),
        list(patches.with_format(None)["pixel_sha256"]),
    ]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    path = cache_folder() / "features" / f"{digest}.npy"
    if path.exists():
        return np.load(path)
    images = read_pictures(patches, processor)

    def prepare(rows: range) -> dict[str, torch.Tensor]:
        inputs = dict(processor.image_processor([images[row] for row in rows], return_tensors="pt"))
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
