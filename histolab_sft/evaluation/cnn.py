"""A small convolutional network, trained on the same rows for the same number of samples: what any lab can build."""

import hashlib
import json
import logging
from collections import Counter
from math import ceil

import numpy as np
import torch
import transformers
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
    get_cosine_schedule_with_warmup,
)

from histolab_sft.config.class_balance import BALANCED
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.augmentation import augment
from histolab_sft.data.class_balance import draw_epoch, weigh_classes
from histolab_sft.evaluation.floors import describe_fit, rate_fit
from histolab_sft.evaluation.predictions import hash_weights
from histolab_sft.files import cache_folder, replacing
from histolab_sft.hub_access import explain_hub_errors
from histolab_sft.models.generate import evaluating
from histolab_sft.models.image_encoders import describe_config, load_image_processor
from histolab_sft.models.picture_loader import prepare_ahead
from histolab_sft.models.weight_checks import check_loaded
from histolab_sft.provenance import name_pixels

logger = logging.getLogger(__name__)

RESNET18 = "resnet18"  # from random weights
SIDES = (32, 224)  # of its pictures, in pixels, least and most
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the channels of ImageNet
BATCH = 32
RATES = {True: 1e-3, False: 3e-4}  # from random weights, and from trained ones
WEIGHT_DECAY, WARMUP = 0.05, 0.05


def count_epochs(name: str, rows: dict[str, int], histo_args, training_args) -> float:
    """Return how often the recipe's training sees each train row of a data set, by epochs or by steps.

    Args:
        name (`str`): The data set's.
        rows (`dict`): Data set -> its train rows.
    """
    step = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    step *= training_args.world_size
    seen = 0.0
    for phase in histo_args.phases or [None]:
        names = rows if phase is None or phase.datasets is None else phase.datasets
        epochs, steps = training_args.num_train_epochs, training_args.max_steps
        if phase is not None:
            epochs, steps = (phase.num_train_epochs, -1) if phase.num_train_epochs is not None else (epochs, steps)
            steps = steps if phase.max_steps is None else phase.max_steps
        if name in names:
            seen += steps * step / sum(rows[one] for one in names) if steps > 0 else epochs
    return seen


def measure_cnn(rows: dict[str, Dataset], config: DatasetConfig, epochs: float, histo_args, training_args) -> dict:
    """Train the recipe's `cnn` on the train split, choose its best epoch on validation, and score it on test.

    It gets the recipe's seed, augmentation, class weights and sampling. What it says is kept in the cache of this
    machine under all that it depends on, so that a call that was cut off after it doesn't train again.

    Args:
        rows (`dict`): Split -> rows of one data set with options.
        epochs (`float`): How often each train row is seen.

    Returns:
        The dict of `compute_classification`, plus `predictions` and `probabilities` as in `compute_linear_probe`, and
        `fitted` with `epoch` (the one chosen), `epochs` and `samples_seen` (in all).

    Raises:
        ValueError: There is nothing to train for.
    """
    if epochs <= 0:
        raise ValueError(f"cnn: {histo_args.cnn} and a training of {epochs} epochs; raise num_train_epochs")
    classes, seed = config.options, training_args.seed
    labels = {split: np.array(part.with_format(None)["label"]) for split, part in rows.items()}
    model, processor = load_cnn(histo_args.cnn, len(classes), rows["train"], seed)
    orders = plan_epochs(labels["train"], epochs, histo_args.class_sampling == BALANCED, seed)
    counts = Counter(labels["train"].tolist())
    weights = weigh_classes(counts, histo_args.class_weights)
    settings = {
        "pixels": {split: name_pixels(part) for split, part in rows.items()},
        "labels": {split: names.tolist() for split, names in labels.items()},
        "classes": classes,
        "model": [histo_args.cnn == RESNET18, hash_weights(model), describe_config(model)],
        "processor": processor.to_json_string(),
        "training": [epochs, seed, histo_args.augmentation, histo_args.class_weights, histo_args.class_sampling],
        "optimiser": [BATCH, RATES, WEIGHT_DECAY, WARMUP],
        "machine": [training_args.device.type, torch.__version__, transformers.__version__],
    }
    digest = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:32]
    path = cache_folder() / "cnn" / f"{digest}.npz"
    if not path.exists():
        gold = {split: np.array([classes.index(name) for name in names]) for split, names in labels.items()}
        loss = nn.CrossEntropyLoss(torch.tensor([weights.get(name, 0.0) for name in classes]))
        model, loss = model.to(training_args.device), loss.to(training_args.device)
        shown, told = dict(rows), None
        if histo_args.augmentation != "none":
            shown["train"], told = augment(rows["train"], histo_args.augmentation, seed)
        # Algorithms of cuDNN that give the same bits each time.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            epoch = _train(model, processor, shown, gold, orders, loss, told, config.name, histo_args.cnn)
            found = _predict(model, processor, rows["test"])
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, probabilities=found, epoch=epoch)
        del model
        clear_device_cache(garbage_collection=True)
    with np.load(path) as kept:
        probabilities, epoch = kept["probabilities"], int(kept["epoch"])
    fitted = {"epoch": epoch, "epochs": len(orders), "samples_seen": int(sum(map(len, orders)))}
    return describe_fit(labels["test"], probabilities, classes) | {"fitted": fitted}


def load_cnn(name: str, n_classes: int, train: Dataset, seed: int) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Return the network with a head for the classes, and what makes pixels of pictures.

    `resnet18` has random weights and takes pictures at their own size, in squares of at most 224 pixels. A folder or
    an id on the Hub is any image classifier of transformers with its own processor; its head is drawn by the seed.

    Raises:
        HubAccessError, EncoderError, WeightsError: It can't be had, or isn't whole.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == RESNET18:
            config = ResNetConfig(
                hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=n_classes
            )
            side = choose_side(train)
            processor = ViTImageProcessorPil(
                size={"height": side, "width": side}, image_mean=list(MEAN), image_std=list(DEVIATION)
            )
            return ResNetForImageClassification(config), processor
        with explain_hub_errors(name, "encoder"):
            model, found = AutoModelForImageClassification.from_pretrained(
                name,
                trust_remote_code=False,
                dtype="float32",
                num_labels=n_classes,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    body = f"{model.base_model_prefix}."
    check_loaded(name, [key for key in found["missing_keys"] if key.startswith(body)], [])
    return model, load_image_processor(name)


def choose_side(train: Dataset) -> int:
    """Return the median shorter side in pixels of a hundred train pictures, within `SIDES`."""
    images = train["images"]
    chosen = np.unique(np.linspace(0, len(train) - 1, 100).astype(int)).tolist()
    return int(np.clip(np.median([min(images[row][0].size) for row in chosen]), *SIDES))


def plan_epochs(labels: np.ndarray, epochs: float, balanced: bool, seed: int) -> list[np.ndarray]:
    """Return the row numbers of each epoch in their order; the last one may be a part of an epoch.

    Args:
        balanced (`bool`): Draw the classes equally often, as `class_sampling: balanced` does.
    """
    orders = []
    for epoch in range(ceil(epochs)):
        generator = np.random.default_rng([seed, epoch])
        members = [np.flatnonzero(labels == name) for name in np.unique(labels)]
        order = draw_epoch([members], generator) if balanced else generator.permutation(len(labels))
        # A batch of one has no spread to normalise by.
        orders.append(order[: max(2, round(min(1, epochs - epoch) * len(labels)))])
    return orders


def _train(model, processor, rows, gold, orders, loss, told, dataset: str, name: str) -> int:
    """Train, give the model the weights of its best epoch on validation, and return that epoch's number from 1."""
    batches = [np.array_split(order, ceil(len(order) / BATCH)) for order in orders]
    total = sum(map(len, batches))
    optimiser = torch.optim.AdamW(model.parameters(), RATES[name == RESNET18], weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimiser, ceil(WARMUP * total), total)
    targets, best = torch.tensor(gold["train"]), None
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(0)  # for dropout, where a network has it
        for epoch, parts in enumerate(batches, start=1):
            if told is not None:
                told.epoch.fill_(epoch - 1)
            model.train()
            pixels = _prepare(processor, rows["train"], parts)
            shown = tqdm(pixels, f"{name}, epoch {epoch}", len(parts), disable=None)
            for part, values in zip(parts, shown, strict=True):
                logits = model(pixel_values=values.to(model.device, non_blocking=True)).logits
                loss(logits, targets[part].to(model.device)).backward()
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
            reached = rate_fit(_predict(model, processor, rows["validation"]), gold["validation"])
            logger.info(
                "%s: %s, epoch %d of %d: balanced accuracy %.3f on validation",
                *(dataset, name, epoch, len(orders), reached[0]),
            )
            if best is None or reached > best[0]:
                weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
                best = reached, epoch, weights
    model.load_state_dict(best[2])
    return best[1]


def _predict(model, processor, rows: Dataset) -> np.ndarray:
    """Return the probability of each class: float64, shape (rows, classes)."""
    parts = np.array_split(np.arange(len(rows)), ceil(len(rows) / BATCH))
    with evaluating(model):
        logits = [model(pixel_values=values.to(model.device)).logits for values in _prepare(processor, rows, parts)]
    return torch.cat(logits).double().softmax(dim=1).cpu().numpy()


def _prepare(processor, rows: Dataset, parts: list[np.ndarray]):
    images = rows["images"]

    def prepare(part: np.ndarray) -> torch.Tensor:
        pictures = [images[row][0].convert("RGB") for row in part.tolist()]
        return processor(pictures, return_tensors="pt")["pixel_values"]

    return prepare_ahead(prepare, parts, sum(map(len, parts)))
