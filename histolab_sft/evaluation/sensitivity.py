"""How much the answers depend on what shouldn't matter: the wording, the order of the classes, scanner and laboratory.

A class-balanced part of the test split is asked again under every variant, by label likelihood, and each variant is
scored on the same draws of the same patches.
"""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import Image
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.pictures.decoding import open_stored
from histolab_sft.data.splits import cap_patches
from histolab_sft.evaluation.groups import name_units
from histolab_sft.evaluation.perturbations import STRENGTHS, UNCHANGED, change_patch
from histolab_sft.evaluation.predictions import FINETUNED, SYSTEMS, System, hash_weights, predict
from histolab_sft.evaluation.uncertainty import bootstrap, describe_units, interval
from histolab_sft.evaluation.zero_shot import read_headline
from histolab_sft.metrics.weighted import classification_measure
from histolab_sft.models.load import (
    check_recipe_model,
    load_adapter,
    load_base_model,
    load_base_processor,
    load_config,
)
from histolab_sft.models.precision import read_precision
from histolab_sft.models.resolution import read_resolution
from histolab_sft.tasks import classification

ORDERS = 5  # orders of the classes, the recipe's own among them
AS_IT_IS, SIDE = "as_it_is", "side"


def predict_variants(patches: Dataset, system: System, config: DatasetConfig) -> pd.DataFrame:
    """Return what a system says about a part of the test split under every variant; arguments as of `predict`.

    Returns:
        `pandas.DataFrame`: the columns of `predict` without generation, and `variant`: `as_it_is`, `paraphrase:1`,
        `order:1`, `stain:1` and so on, numbered as in `list_questions`, `list_orders` and `STRENGTHS`.

    Raises:
        ValueError: `sensitivity_samples` is less than one patch a class.
    """
    rows = build_variants(patches, config, system.histo_args)
    table = predict(rows, system, config, generate=False)
    return table.assign(variant=rows.with_format(None)["variant"])


def predict_sides(
    patches: dict[str, Dataset], histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig
) -> dict[tuple[str, str], pd.DataFrame]:
    """Score base model and adapter on a part of the test split, with pictures of other sides than in training.

    For each of `sensitivity_sides` the base model is loaded anew, its own position embeddings interpolated to that
    side; the tokens of a picture stay.

    Args:
        patches: Test rows of each data set that has options.

    Returns:
        `dict`: (Data set, system) -> rows as of `predict_variants`, their variants `side:672` and so on.
    """
    parts: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for side_args in list_sides(histo_args, model_args):
        model = load_base_model(side_args, read_precision(histo_args, training_args))
        processor = load_base_processor(side_args)
        for name in SYSTEMS:
            if name == FINETUNED:
                model = load_adapter(model, training_args.output_dir, model_args.model_revision, any_resolution=True)
            batch_size = training_args.per_device_eval_batch_size
            asked = System(name, model, processor, hash_weights(model), histo_args, batch_size)
            for config in histo_args.datasets:
                if config.name not in patches:
                    continue
                rows = _open_rows(_choose_rows(patches[config.name], config, histo_args))
                table = predict(rows, asked, config, generate=False)
                table["variant"] = f"{SIDE}:{side_args.image_side}"
                parts.setdefault((config.name, name), []).append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}


def list_sides(histo_args: HistoArguments, model_args: ModelConfig) -> list[ModelConfig]:
    """Return the base model's arguments for each side that the adapter is to be compared at.

    Raises:
        ValueError: The base model can't have such a side with the tokens of the recipe (see `set_resolution`).
    """
    if not histo_args.sensitivity_sides:
        return []
    own = read_resolution(load_config(model_args))
    if own is None:
        raise ValueError(
            f"sensitivity_sides with {model_args.model_name_or_path}, expected a Gemma 3 such as MedGemma; remove it"
        )
    sides = [side for side in sorted(set(histo_args.sensitivity_sides)) if side != own.side]
    compared = [replace(model_args, image_side=side, image_tokens=own.tokens) for side in sides]
    for side_args in compared:
        check_recipe_model(side_args)
    return compared


def build_variants(patches: Dataset, config: DatasetConfig, histo_args: HistoArguments) -> Dataset:
    """Return the rows to ask, the same patches for every variant, as rows of `patches` with `variant`."""
    plain = _choose_rows(patches, config, histo_args)
    parts = [plain]
    for variant, question in list_questions(config, histo_args).items():
        prompt = [{"role": "user", "content": question}]
        parts.append(plain.assign(variant=variant, prompt=[prompt] * len(plain)))
    for change, strengths in STRENGTHS.items() if histo_args.sensitivity == "all" else ():
        for step, strength in enumerate(strengths):
            if strength == UNCHANGED[change]:
                continue
            images = [[image | {"change": change, "step": step} for image in images] for images in plain["images"]]
            pixels = [[f"{digest} {change} {strength}" for digest in digests] for digests in plain["pixel_sha256"]]
            parts.append(plain.assign(variant=f"{change}:{step}", images=images, pixel_sha256=pixels))
    return _open_rows(pd.concat(parts, ignore_index=True))


def _choose_rows(patches: Dataset, config: DatasetConfig, histo_args: HistoArguments) -> pd.DataFrame:
    plain = patches.with_format(None).to_pandas().assign(split="test", variant=AS_IT_IS)
    if histo_args.sensitivity_samples < plain["label"].nunique():
        raise ValueError(
            f"sensitivity_samples is {histo_args.sensitivity_samples}, expected at least one patch for each of the "
            f"{plain['label'].nunique()} classes of {config.name}; raise it, or set sensitivity: none"
        )
    plain = cap_patches(plain, histo_args.sensitivity_samples, histo_args.split_seed).drop(columns="split")
    unchanged = {"change": "stain", "step": STRENGTHS["stain"].index(UNCHANGED["stain"])}
    # The same draw for a patch whatever asks for it, and another one for every patch.
    plain["images"] = [
        # A row's further pictures are crops of the first.
        [image | unchanged | {"seed": int(digests[0][:8], 16)} for image in images]
        for images, digests in zip(plain["images"], plain["pixel_sha256"], strict=True)
    ]
    return plain


def _open_rows(rows: pd.DataFrame) -> Dataset:
    return Dataset.from_pandas(rows, preserve_index=False).with_transform(_open_changed)


def list_questions(config: DatasetConfig, histo_args: HistoArguments) -> dict[str, str]:
    """Return the variants of the question: `paraphrase:1` and on in other words, `order:1` and on in other orders."""
    options = list(config.class_names.values())
    paraphrases = classification.format_paraphrases(options)
    questions = {f"paraphrase:{number}": text for number, text in enumerate(paraphrases, start=1)}
    for number, order in enumerate(list_orders(options)[1:], start=1):
        questions[f"order:{number}"] = classification.format_prompt(
            config.name, order, histo_args.prompt_style, config.question
        )
    return questions


def list_orders(options: list[str]) -> list[list[str]]:
    """Return up to `ORDERS` different orders of the class names, the given one first and its reverse second."""
    rng = np.random.default_rng(0)
    drawn = ([options[i] for i in rng.permutation(len(options))] for _ in itertools.count())
    orders = []
    for order in itertools.chain([options, options[::-1]], drawn):
        if order not in orders:
            orders.append(order)
        if len(orders) == ORDERS or len(options) == 2 == len(orders):
            return orders


def score_sensitivity(
    config: DatasetConfig,
    histo_args: HistoArguments,
    tables: dict[str, pd.DataFrame],
    zero_shot: dict,
    own_side: int | None = None,
) -> dict:
    """Return the entry `sensitivity` of `results.json`, every score a `{"value", "ci95"}` of balanced accuracy.

    Args:
        tables (`dict`): System -> table of `predict_variants`.
        zero_shot (`dict`): The entry `zero_shot`: how the baseline is read, under every variant.
        own_side (`int`, *optional*): Side of the pictures in pixels, where `predict_sides` has given rows of others.

    Returns:
        `dict`: `n`, `unit`, `n_groups`; `paraphrases` and `orders`, each with `variants` (`question` or `order`, and
        the score of each system, the recipe's own first) and `spread` (largest minus smallest score of each system);
        `positions` (see `_score_positions`); `robustness`, for each change of the pictures `strengths`, the
        `unchanged` one among them, and a list of scores for each system; `side` stands among them where other sides
        were compared. `robustness` is empty unless it was asked.
    """
    classes = list(config.class_names.values())
    tables = tables | {"baseline": read_headline(tables["baseline"], zero_shot)}
    plain = tables["baseline"]
    plain = plain[plain["variant"] == AS_IT_IS]
    labels = plain["label"].to_numpy(str)
    groups = name_units(plain)
    answers = {system: _answer(table, classes) for system, table in tables.items()}
    measures = {
        (system, variant): classification_measure(labels, predictions, classes)
        for system, variants in answers.items()
        for variant, predictions in variants.items()
    }
    estimates = bootstrap(measures, len(labels), groups)

    def score(variant: str) -> dict[str, dict]:
        return {system: interval(estimates[system, variant]["balanced_accuracy"]) for system in tables}

    question = classification.format_prompt(config.name, classes, histo_args.prompt_style, config.question)
    questions, orders = list_questions(config, histo_args), list_orders(classes)
    paraphrases = {AS_IT_IS: question} | {name: text for name, text in questions.items() if name.startswith("par")}
    robustness = {}
    for change, strengths in STRENGTHS.items() if histo_args.sensitivity == "all" else ():
        names = [
            AS_IT_IS if strength == UNCHANGED[change] else f"{change}:{step}"
            for step, strength in enumerate(strengths)
        ]
        robustness[change] = {"strengths": list(strengths), "unchanged": UNCHANGED[change]} | {
            system: [score(name)[system] for name in names] for system in tables
        }
    sides = [int(name.partition(":")[2]) for name in answers["baseline"] if name.startswith(f"{SIDE}:")]
    if sides:
        strengths = sorted([own_side, *sides])
        names = [AS_IT_IS if side == own_side else f"{SIDE}:{side}" for side in strengths]
        robustness[SIDE] = {"strengths": strengths, "unchanged": own_side} | {
            system: [score(name)[system] for name in names] for system in tables
        }
    return {
        "n": len(labels),
        **describe_units(len(labels), groups),
        "paraphrases": _add_spread([{"question": text} | score(name) for name, text in paraphrases.items()], tables),
        "orders": _add_spread(
            [{"order": order} | score(f"order:{i}" if i else AS_IT_IS) for i, order in enumerate(orders)], tables
        ),
        "positions": {
            system: _score_positions(labels, variants, orders, plain["id"].to_numpy(str) if groups is None else groups)
            for system, variants in answers.items()
        },
        "robustness": robustness,
    }


def _answer(table: pd.DataFrame, classes: list[str]) -> dict[str, np.ndarray]:
    """Variant -> likeliest class of each patch."""
    return {
        variant: np.array(classes)[np.stack(rows["log_likelihoods"]).argmax(axis=1)]
        for variant, rows in table.groupby("variant", sort=False)
    }


def _add_spread(variants: list[dict], systems) -> dict:
    scores = {system: [variant[system]["value"] for variant in variants] for system in systems}
    return {"variants": variants, "spread": {system: max(values) - min(values) for system, values in scores.items()}}


def _score_positions(
    labels: np.ndarray, answers: dict, orders: list[list[str]], units: pd.Series | np.ndarray
) -> dict:
    """Return how often each place in the list of classes is `chosen`, how often it is `right`, and their difference.

    Over all orders, so that no class stands behind a place; `bias` is the difference with its interval. A patch comes
    once an order, so patches, or patients where known, are drawn with all their orders.
    """
    chosen, right = [], []
    for number, order in enumerate(orders):
        places = {name: place for place, name in enumerate(order)}
        predictions = answers[f"order:{number}" if number else AS_IT_IS]
        chosen += [places[name] for name in predictions]
        right += [places[name] for name in labels]
    chosen, right = np.eye(len(orders[0]))[chosen], np.eye(len(orders[0]))[right]
    gaps = (chosen - right).T
    estimates = bootstrap(
        {"bias": lambda weights: dict(enumerate(gaps @ weights / weights.sum(axis=0)))},
        len(chosen),
        np.tile(units, len(orders)),
    )
    return {
        "chosen": chosen.mean(axis=0).tolist(),
        "right": right.mean(axis=0).tolist(),
        "bias": [interval(estimate) for estimate in estimates["bias"].values()],
    }


def _open_changed(batch: dict) -> dict:
    if "images" in batch:
        batch["images"] = [list(map(_open_one, images)) for images in batch["images"]]
    return batch


def _open_one(image: dict) -> Image.Image:
    strength = STRENGTHS[image["change"]][image["step"]]
    return open_stored(image, lambda whole: change_patch(whole, image["change"], strength, image["seed"]))
