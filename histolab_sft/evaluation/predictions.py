"""Ask two systems, the base model and the fine-tuned one, the same questions, and keep every answer as it comes."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.rows import select_datasets
from histolab_sft.data.splits import cap_patches
from histolab_sft.evaluation.answer_cache import ask_in_parts
from histolab_sft.metrics.classification import UNPARSED
from histolab_sft.models.compiled_layers import compiled_scoring
from histolab_sft.models.generate import generate_answers, unwrap_adapter
from histolab_sft.models.likelihood import score_parts, slot_log_probabilities
from histolab_sft.models.precision import get_precision
from histolab_sft.models.vision_cache.features import read_pictures
from histolab_sft.models.vision_cache.store import hash_parts
from histolab_sft.provenance import collect_versions, name_pixels
from histolab_sft.tasks import TASKS, choose_limit
from histolab_sft.tasks.parsing.field_grammar import format_grammar
from histolab_sft.tasks.parsing.field_places import find_places

logger = logging.getLogger(__name__)

PARTS = ("site", "subgroups")  # columns by which a test split is scored apart
PROBE_PATCHES = 5000  # class-balanced; more hardly move a linear fit and cost a pass of the tower each
COMPUTING = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers")


BASELINE, FINETUNED = SYSTEMS = ("baseline", "finetuned")


@dataclass(frozen=True)
class System:
    """A system that is asked: the model as it stands, and how it is read to.

    Args:
        name (`str`): `baseline` or `finetuned`.
        model: With its adapter, where it has one.
        processor: The base model's, or that of a cache of its pictures' features.
        weights (`str`): `hash_weights(model)`.
        histo_args: The recipe.
        batch_size (`int`): Rows that are read at once.
    """

    name: str
    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    weights: str
    histo_args: HistoArguments
    batch_size: int


def predict(rows: Dataset, system: System, config: DatasetConfig, generate: bool = True) -> pd.DataFrame:
    """Return what a system says about rows of one data set: by likelihood where they have options, and in words.

    Answers are kept in the cache of this machine, by weights (adapter included), pixels, question and settings: a call
    that was cut off goes on where it stood, and the base model's answers serve every recipe that asks the same. The
    longest written answer is the data set's `max_new_tokens`, else the recipe's, else the task's.

    Args:
        rows (`Dataset`): Of one data set and split, with `pixel_sha256`.
        generate (`bool`): Whether the model also writes its answers to rows with options (as `generate_answers` has
            it), which takes longer than scoring them.

    Returns:
        `pandas.DataFrame`: `id, dataset, group`; where the model wrote, `answer` (greedy) and `truncated` (cut off
        before its end of turn).

        Of rows with options also `site` and `subgroups`, as of `list_rows`; `label`; `log_likelihoods`, a list of nats
        in the order of the options; and where the model wrote, `generated` (the option in its words, or `unparsed`).

        Of the others also `task, ask`; `truth` (JSON text, `null` where it is hidden); `predicted` (the answer read,
        as JSON text, `null` for unparsed) and `repaired` (whether JSON in it had to be mended); `constrained` (whether
        the fields' grammar limited it). Where the task has fields, `log_confidences`: JSON text, field -> logarithms
        of the probabilities of its `list_options`, given the pictures, the question and the answer up to there; a
        field that the answer doesn't give has none.
    """
    columns = ["id", "dataset", "group", "task", "ask", "answer", "label"] + (list(PARTS) if config.options else [])
    table = rows.with_format(None).select_columns(columns)
    table = table.to_pandas().rename(columns={"answer": "truth"})
    if config.options:
        return _choose(rows, table, system, config, generate and system.histo_args.generate_answers)
    return _write(rows, table, system, config)


def predict_held_out(rows: Dataset, system: System, config: DatasetConfig) -> pd.DataFrame | None:
    """Return `predict` of the validation split, for what is fitted there; None where nothing is.

    Fitted are the temperatures of options and of fields, and the base model's leaning towards options.
    """
    fitted = config.options or (len(rows) and TASKS[rows.with_format(None)["task"][0]].list_fields)
    return predict(rows, system, config, generate=False) if fitted else None


def count_readings(patches: DatasetDict, histo_args: HistoArguments, system: str) -> list[tuple[Dataset, int]]:
    """Return which rows a system looks at when it is scored, and how often, both systems counted for those they share.

    Rows with options are scored by likelihood and in words, those of validation by likelihood alone; the base model's
    features of the probe's rows are taken as well. The others are answered in words, on test alone unless the
    confidences of fields are weighed, which looks once more and at validation too.
    """
    readings = []
    for config in histo_args.datasets:
        rows = {split: select_datasets(part, config.name) for split, part in patches.items()}
        uses = count_uses(rows["test"], config, histo_args)
        readings.append((rows["test"], uses))
        if config.options:
            readings.append((rows["validation"], 2))
            readings += [(part, 1) for part in select_probe_rows(rows).values()] if system == BASELINE else []
        elif uses > 2:
            readings.append((rows["validation"], uses))
    return readings


def count_uses(rows: Dataset, config: DatasetConfig, histo_args: HistoArguments) -> int:
    """Return how often both systems together look at each row of a test split or cohort."""
    if config.options:
        return 2 + 2 * histo_args.generate_answers
    return 4 if TASKS[rows.with_format(None)["task"][0]].list_fields else 2


def select_probe_rows(rows: dict[str, Dataset]) -> dict[str, Dataset]:
    """Return the rows of one data set that the linear probe is trained on, chosen on and scored on: split -> rows."""
    table = rows["train"].with_format(None).select_columns(["label"]).to_pandas().assign(split="train")
    return rows | {"train": rows["train"].select(cap_patches(table, PROBE_PATCHES).index)}


def _choose(rows: Dataset, table: pd.DataFrame, system: System, config: DatasetConfig, generate: bool) -> pd.DataFrame:
    """Add how likely each option is, and with `generate` what the model writes."""
    histo_args, batch_size = system.histo_args, system.batch_size
    task = TASKS[table["task"].iloc[0]]
    asks = [json.loads(text) for text in table["ask"]]
    targets = [task.format_answer(asks[0], option, config) for option in config.options]
    questions = _list_questions(rows)
    limit = choose_limit(table["task"].iloc[0], config.max_new_tokens, histo_args.max_new_tokens)
    settings = describe_asking(system, questions, name_pixels(rows)) | {
        "targets": targets,
        "candidate_batch_size": histo_args.candidate_batch_size,
        "max_new_tokens": limit if generate else 0,
    }

    def ask(parts: list[range]) -> Iterator[dict]:
        model, processor = system.model, system.processor
        pictures, most = read_pictures(rows, processor), histo_args.candidate_batch_size
        with compiled_scoring(histo_args.compiled_layers, model, batch_size, sum(map(len, parts))):
            scored = score_parts(model, processor, pictures, questions, targets, parts, batch_size, most)
            for part, (scores, _) in zip(parts, scored, strict=True):
                written = _generate(system, rows, questions, part, limit) if generate else {}
                yield {"log_likelihoods": list(scores.numpy())} | written

    table = table[["id", "dataset", "group", *PARTS, "label"]]
    table = pd.concat([table, ask_in_parts(config.name, settings, len(rows), ask)], axis=1)
    if generate:
        read = [task.read_answer(text, ask, config)[0] for text, ask in zip(table["answer"], asks, strict=True)]
        table["generated"] = [UNPARSED if option is None else option for option in read]
    return table


def _write(rows: Dataset, table: pd.DataFrame, system: System, config: DatasetConfig) -> pd.DataFrame:
    """Add what the model writes, how it reads, and how sure it is of each field."""
    histo_args, processor = system.histo_args, system.processor
    name = table["task"].iloc[0]
    task, prompts = TASKS[name], _list_questions(rows)
    limit = choose_limit(name, config.max_new_tokens, histo_args.max_new_tokens)
    settings = describe_asking(system, prompts, name_pixels(rows)) | {"max_new_tokens": limit}
    grammar = format_grammar(task.list_fields(config)) if histo_args.constrained_decoding else None
    if grammar:
        settings["grammar"] = grammar

    def ask(parts: list[range]) -> Iterator[dict]:
        limits = None
        if grammar:
            # An extra of the package, which no other run needs.
            from histolab_sft.models.constrained_decoding import compile_grammar

            limits = compile_grammar(grammar, system.model, processor)
        for part in parts:
            yield _generate(system, rows, prompts, part, limit, limits)

    table = table.drop(columns="label")
    table = pd.concat([table, ask_in_parts(config.name, settings, len(rows), ask)], axis=1)
    read = [
        task.read_answer(text, json.loads(asked), config)
        for text, asked in zip(table["answer"], table["ask"], strict=True)
    ]
    table["predicted"] = [json.dumps(answer, ensure_ascii=False) for answer, _ in read]
    table["repaired"] = [repaired for _, repaired in read]
    table["constrained"] = histo_args.constrained_decoding
    if task.list_fields is None:
        return table

    answered = zip(table["answer"], (answer for answer, _ in read), strict=True)
    places = [find_places(text, answer, task.list_fields(config)) for text, answer in answered]

    def weigh(parts: list[range]) -> Iterator[dict]:
        for part in parts:
            given = [row for row in part if places[row]]
            weighed = slot_log_probabilities(
                system.model,
                processor,
                read_pictures(rows.select(given), processor),
                [prompts[row] for row in given],
                [list(places[row].values()) for row in given],
                histo_args.candidate_batch_size,
            )
            found = {
                row: {field: scores.tolist() for field, scores in zip(places[row], values, strict=True)}
                for row, values in zip(given, weighed, strict=True)
            }
            yield {"log_confidences": [json.dumps(found.get(row, {})) for row in part]}

    settings |= {"places": places, "candidate_batch_size": histo_args.candidate_batch_size}
    return pd.concat([table, ask_in_parts(config.name, settings, len(rows), weigh)], axis=1)


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
        table[column] = [None if pd.isna(v) else hashlib.sha256(v.encode()).hexdigest()[:16] for v in table[column]]
    table.to_parquet(folder / "predictions.parquet", index=False)


def describe_asking(system: System, questions: list[str], pixels: list) -> dict:
    """Return what every answer depends on, whatever else its settings are: calls with equal settings share answers.

    Args:
        pixels (`list`): A name of each row's pictures that changes with their pixels, such as `name_pixels` gives.
    """
    base, processor = unwrap_adapter(system.model), system.processor
    return {
        "weights": system.weights,
        "processor": processor.image_processor.to_json_string(),
        "template": processor.chat_template,
        "words": _hash_tokenizer(processor.tokenizer),
        # What weights don't show: shapes and scales, precision, how attention is computed, when an answer ends.
        "model": {key: str(value) for key, value in base.config.to_dict().items() if key != "_name_or_path"},
        "attention": base.config._attn_implementation,
        "generation": base.generation_config.to_json_string(),
        "precision": asdict(get_precision(system.model)),
        "device": base.device.type,
        "libraries": {name: version for name, version in collect_versions().items() if name in COMPUTING},
        "questions": questions,
        "pixels": pixels,
        "batch_size": system.batch_size,
    }


def _list_questions(rows: Dataset) -> list[str]:
    return [prompt[0]["content"] for prompt in rows.with_format(None)["prompt"]]


def _hash_tokenizer(tokenizer) -> str:
    # How the last call was padded stands in it too.
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    return hash_parts(json.dumps(state).encode())


def _generate(
    system: System, rows: Dataset, questions: list[str], part: range, limit: int, limits: Callable | None = None
) -> dict:
    """Return what `generate_answers` does for a part of the rows, as columns."""
    pictures, asked = read_pictures(rows.select(part), system.processor), questions[part.start : part.stop]
    written = generate_answers(system.model, system.processor, pictures, asked, limit, system.batch_size, limits)
    texts, truncated = zip(*written, strict=True)
    return {"answer": list(texts), "truncated": list(truncated)}
