"""Prove that a model in another engine and format still answers as the adapter that was scored."""

import gc

import numpy as np
import torch
from datasets import Dataset
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.metrics.classification import UNPARSED
from histolab_sft.models.generate import generate_answers
from histolab_sft.models.likelihood import label_log_likelihoods
from histolab_sft.models.load import load_base_processor
from histolab_sft.models.precision import read_precision
from histolab_sft.publishing.engines import Engine, ask
from histolab_sft.publishing.merge import MIN_AGREEMENT, load_trained, select_rows
from histolab_sft.tasks import classification

# On the demo llama.cpp is 0.08 nats off on average at every precision; an engine that sees no picture is beyond it.
MAX_MEAN_GAP = 0.5  # nats


def compare_engine(
    engine: Engine, patches: Dataset, histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig
) -> dict:
    """Ask an engine and the adapter, on the weights it was trained on, about the same patches.

    Args:
        patches (`Dataset`): Validation split; 64 of them, evenly spaced, are asked about.

    Returns:
        `dict`: As from `compare_answers`, with the engine's name.
    """
    rows = select_rows(patches)
    questions = [prompt[0]["content"] for prompt in rows["prompt"]]
    asked = zip(rows["images"], questions, strict=True)
    theirs = [ask(engine, pictures, question, histo_args.max_new_tokens) for pictures, question in asked]
    processor = load_base_processor(model_args)
    model = load_trained(model_args, training_args.output_dir, read_precision(histo_args, training_args))
    own = generate_answers(model, processor, rows["images"], questions, histo_args.max_new_tokens)
    candidates = [[text] for text, _ in theirs]
    expected = label_log_likelihoods(model, processor, rows["images"], questions, candidates)[0][:, 0].numpy()
    del model
    gc.collect()
    torch.cuda.empty_cache()

    found = np.array([np.nan if value is None else value for _, value in theirs], dtype=float)
    options = {config.name: list(config.class_names.values()) for config in histo_args.datasets}
    names = rows["dataset"]
    answers = [
        [read_answer(text, options[name]) for (text, _), name in zip(texts, names, strict=True)]
        for texts in (own, theirs)
    ]
    return {"engine": engine.name} | compare_answers(names, *answers, expected - found)


def read_answer(text: str, options: list[str]) -> str:
    """Return the class that an answer names, or the answer itself where it names none."""
    option = classification.parse(text, options)
    return text.strip() if option == UNPARSED else option


def compare_answers(names: list[str], own: list[str], theirs: list[str], gaps: np.ndarray) -> dict:
    """Compare answers to the same questions, over all and by data set.

    Args:
        names (`list` of N strings): Data set of each question.
        own, theirs (`list` of N strings): As `read_answer` reads them, of the adapter and of the engine.
        gaps (`np.ndarray` of shape (N,)): Log-probability of the engine's whole answer by the adapter less that by the
            engine, in nats; NaN where the engine gave none.

    Returns:
        `dict`: `passed`, the tolerances `min_agreement` and `max_mean_gap`, and for `all` and each of `datasets`
        `n_patches`, `agreement` (share of equal answers), `n_probabilities`, `mean_gap` and `largest_gap` (absolute,
        None without probabilities).
    """
    same = np.array(own, dtype=object) == np.array(theirs, dtype=object)
    places = {name: np.array(names) == name for name in dict.fromkeys(names)}
    whole = _summarise(same, gaps)
    close = whole["mean_gap"] is None or whole["mean_gap"] <= MAX_MEAN_GAP
    return {
        "passed": bool(whole["agreement"] >= MIN_AGREEMENT and close),
        "min_agreement": MIN_AGREEMENT,
        "max_mean_gap": MAX_MEAN_GAP,
        "all": whole,
        "datasets": {name: _summarise(same[place], gaps[place]) for name, place in places.items()},
    }


def describe(parity: dict) -> str:
    """Return the comparison in one line."""
    return "; ".join(
        f"{name}: {part['agreement']:.1%} of {part['n_patches']} answers as the adapter's"
        + ("" if part["mean_gap"] is None else f", {part['mean_gap']:.3g} nats apart on average")
        for name, part in {**parity["datasets"], "all": parity["all"]}.items()
    )


def _summarise(same: np.ndarray, gaps: np.ndarray) -> dict:
    known = np.abs(gaps[~np.isnan(gaps)])
    return {
        "n_patches": len(same),
        "agreement": float(same.mean()),
        "n_probabilities": len(known),
        "mean_gap": float(known.mean()) if len(known) else None,
        "largest_gap": float(known.max()) if len(known) else None,
    }
