"""Ask two systems, the base model and the fine-tuned one, the same questions, and keep every answer as it comes."""

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.answer_cache import ask_in_parts
from histolab_sft.models.compiled_layers import compiled_scoring
from histolab_sft.models.generate import generate_answers, unwrap_adapter
from histolab_sft.models.likelihood import label_log_likelihoods, place_log_probabilities
from histolab_sft.models.precision import get_precision
from histolab_sft.models.vision_cache.features import read_pictures
from histolab_sft.models.vision_cache.store import hash_parts
from histolab_sft.provenance import collect_versions
from histolab_sft.tasks import TASKS, WITH_FIELDS, choose_limit
from histolab_sft.tasks.biomarkers import list_fields
from histolab_sft.tasks.parsing.field_grammar import format_grammar
from histolab_sft.tasks.parsing.field_places import find_places

logger = logging.getLogger(__name__)

COMPUTING = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers")


def predict(
    patches: Dataset,
    model,
    processor,
    weights: str,
    config: DatasetConfig,
    histo_args: HistoArguments,
    batch_size: int,
    generate: bool = True,
) -> pd.DataFrame:
    """Return what a system says about the patches of one data set.

    Answers are kept in the cache of this machine, by weights (adapter included), pixels, question and settings: a call
    that was cut off goes on where it stood, and the base model's answers serve every recipe that asks the same.

    Args:
        patches (`Dataset`): Rows of one data set and split, with `pixel_sha256`.
        weights (`str`): `hash_weights(model)`.
        batch_size (`int`): Patches that are read at once.
        generate (`bool`): Whether the model also writes its answers, which takes longer than scoring them.

    Returns:
        `pandas.DataFrame`: `id, dataset, group, label`; `log_likelihoods`, a list of nats in the order of the data
        set's class names; with `generate` also `answer` (what the model wrote, greedy, at most `max_new_tokens`),
        `truncated` (cut off before its end of turn) and `generated` (the class in it, or `unparsed`).
    """
    options = list(config.class_names.values())
    table = patches.with_format(None).select_columns(["id", "dataset", "group", "label"]).to_pandas()
    questions = [prompt[0]["content"] for prompt in patches.with_format(None)["prompt"]]
    task = TASKS[config.task]
    targets = [task.format_target(option) for option in options]
    settings = _describe_asking(patches, questions, model, weights, processor, batch_size) | {
        "targets": targets,
        "candidate_batch_size": histo_args.candidate_batch_size,
        "max_new_tokens": histo_args.max_new_tokens if generate else 0,
    }

    def ask(rows: range) -> dict:
        pictures, asked = read_pictures(patches.select(rows), processor), questions[rows.start : rows.stop]
        with compiled_scoring(histo_args.compiled_layers, model, batch_size, len(patches)):
            scores, _ = label_log_likelihoods(
                model, processor, pictures, asked, targets, batch_size, histo_args.candidate_batch_size
            )
        found = {"log_likelihoods": list(scores.numpy().astype(np.float64))}
        if generate:
            found |= _generate(model, processor, pictures, asked, histo_args.max_new_tokens, batch_size)
        return found

    table = pd.concat([table, ask_in_parts(config.name, settings, len(patches), ask)], axis=1)
    if generate:
        table["generated"] = [task.parse(answer, options) for answer in table["answer"]]
    return table


def predict_answers(
    questions: Dataset,
    model,
    processor,
    weights: str,
    config: DatasetConfig,
    histo_args: HistoArguments,
    batch_size: int,
) -> pd.DataFrame:
    """Return what a system writes to the questions of one data set with a format; kept in the cache as by `predict`.

    The longest answer is the data set's `max_new_tokens`, else the recipe's, else the task's.

    Returns:
        `pandas.DataFrame`: `id, dataset, group, task, ask`; `truth` (JSON text, `null` where it is hidden); `answer`
        (what the model wrote, greedy), `truncated` (cut off before its end of turn), `constrained` (whether the
        fields' grammar limited it); `predicted` (the answer read, as JSON text, `null` for unparsed) and `repaired`
        (whether JSON in it had to be mended). Where the task has fields also `log_confidences`: JSON text, field ->
        logarithms of the probabilities of its `list_options`, given the pictures, the question and the answer up to
        there; a field that the answer doesn't give has none.
    """
    plain = questions.with_format(None)
    table = plain.select_columns(["id", "dataset", "group", "task", "ask", "answer"]).to_pandas()
    table = table.rename(columns={"answer": "truth"})
    name = table["task"].iloc[0]
    task = TASKS[name]
    prompts = [prompt[0]["content"] for prompt in plain["prompt"]]
    limit = choose_limit(name, config.max_new_tokens, histo_args.max_new_tokens)
    settings = _describe_asking(questions, prompts, model, weights, processor, batch_size) | {"max_new_tokens": limit}
    grammar = format_grammar(list_fields(config)) if histo_args.constrained_decoding else None
    if grammar:
        settings["grammar"] = grammar

    def ask(rows: range) -> dict:
        limits = None
        if grammar:
            # An extra of the package, which no other run needs.
            from histolab_sft.models.constrained_decoding import compile_grammar

            limits = compile_grammar(grammar, model, processor)
        pictures, asked = read_pictures(questions.select(rows), processor), prompts[rows.start : rows.stop]
        return _generate(model, processor, pictures, asked, limit, batch_size, limits)

    table = pd.concat([table, ask_in_parts(config.name, settings, len(questions), ask)], axis=1)
    read = [
        task.read_answer(text, json.loads(asked), config)
        for text, asked in zip(table["answer"], table["ask"], strict=True)
    ]
    table["predicted"] = [json.dumps(answer, ensure_ascii=False) for answer, _ in read]
    table["repaired"] = [repaired for _, repaired in read]
    table["constrained"] = histo_args.constrained_decoding
    if name not in WITH_FIELDS:
        return table

    answered = zip(table["answer"], (answer for answer, _ in read), strict=True)
    places = [find_places(text, answer, list_fields(config)) for text, answer in answered]

    def weigh(rows: range) -> dict:
        given = [row for row in rows if places[row]]
        weighed = place_log_probabilities(
            model,
            processor,
            read_pictures(questions.select(given), processor),
            [prompts[row] for row in given],
            [list(places[row].values()) for row in given],
            histo_args.candidate_batch_size,
        )
        found = {
            row: {field: scores.tolist() for field, scores in zip(places[row], values, strict=True)}
            for row, values in zip(given, weighed, strict=True)
        }
        return {"log_confidences": [json.dumps(found.get(row, {})) for row in rows]}

    settings |= {"places": places, "candidate_batch_size": histo_args.candidate_batch_size}
    return pd.concat([table, ask_in_parts(config.name, settings, len(questions), weigh)], axis=1)


def predict_splits(splits: dict[str, Dataset], *ask) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """Return `predict_answers(split, *ask)` of both splits; None for validation where nothing is fitted on it."""
    needed = len(splits["validation"]) and splits["test"].with_format(None)["task"][0] in WITH_FIELDS
    return predict_answers(splits["validation"], *ask) if needed else None, predict_answers(splits["test"], *ask)


def hash_weights(model: torch.nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers by name: base model, adapter, quantisation and precision."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_predictions(predictions: dict[tuple[str, str], pd.DataFrame], folder: Path) -> None:
    """Write `predictions.parquet`, with ids and groups as hashes: file names can name a patient.

    Args:
        predictions (`dict`): (Data set, system) -> table from `predict`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.concat([table.assign(system=system) for (_, system), table in predictions.items()], ignore_index=True)
    for column in ("id", "group"):
        table[column] = [value and hashlib.sha256(value.encode()).hexdigest()[:16] for value in table[column]]
    table.to_parquet(folder / "predictions.parquet", index=False)


def _describe_asking(rows: Dataset, questions: list[str], model, weights: str, processor, batch_size: int) -> dict:
    """Return what every answer depends on, whatever else its settings are: calls with equal settings share answers."""
    base = unwrap_adapter(model)
    return {
        "weights": weights,
        "processor": processor.image_processor.to_json_string(),
        "template": processor.chat_template,
        "words": _hash_tokenizer(processor.tokenizer),
        # What weights don't show: shapes and scales, precision, how attention is computed, when an answer ends.
        "model": {key: str(value) for key, value in base.config.to_dict().items() if key != "_name_or_path"},
        "attention": base.config._attn_implementation,
        "generation": base.generation_config.to_json_string(),
        "precision": asdict(get_precision(model)),
        "device": base.device.type,
        "libraries": {name: version for name, version in collect_versions().items() if name in COMPUTING},
        "questions": questions,
        "pixels": list(rows.with_format(None)["pixel_sha256"]),
        "batch_size": batch_size,
    }


def _hash_tokenizer(tokenizer) -> str:
    # How the last call was padded stands in it too.
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    return hash_parts(json.dumps(state).encode())


def _generate(*asked) -> dict:
    """Return what `generate_answers` does as columns."""
    texts, truncated = zip(*generate_answers(*asked), strict=True)
    return {"answer": list(texts), "truncated": list(truncated)}
