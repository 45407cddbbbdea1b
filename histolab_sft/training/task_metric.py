"""Balanced accuracy on the validation split, by label likelihood, at each evaluation in training."""

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset

from histolab_sft.metrics.classification import compute_balanced_accuracy, encode_answers
from histolab_sft.models.likelihood import label_log_likelihoods
from histolab_sft.models.vision_cache.features import read_pictures


def collect_options(rows: Dataset) -> dict[str, dict[str, str]]:
    """Return `{dataset: {label: answer}}`: of data sets with options, their labels and the answers that name them."""
    plain = rows.with_format(None).select_columns(["dataset", "label", "completion"])
    options: dict[str, dict[str, str]] = {}
    for row in plain:
        if row["label"] is None:
            continue
        options.setdefault(row["dataset"], {})[row["label"]] = row["completion"][0]["content"]
    return {name: dict(sorted(answers.items())) for name, answers in options.items()}


def measure_balanced_accuracy(
    model,
    processor,
    rows: Dataset,
    options: dict[str, dict[str, str]],
    batch_size: int,
    candidate_batch_size: int,
    accelerator: Accelerator,
) -> float:
    """Return the mean over data sets of the balanced accuracy; a patch's class is the one with the likeliest answer.

    Rows of data sets without `options` have no part in it.
    Nothing is generated: one pass over each picture and question, one over the answers. Processes share the rows, each
    scores as many as the others (the last ones twice, where they don't come out even), and all get the same number.
    """
    rows = rows.select([row for row, name in enumerate(rows.with_format(None)["dataset"]) if name in options])
    n = len(rows)
    share = -(-n // accelerator.num_processes)
    mine = [min(accelerator.process_index * share + i, n - 1) for i in range(share)]
    part = rows.select(mine)
    plain = part.with_format(None)
    names = list(plain["dataset"])
    questions = [prompt[0]["content"] for prompt in plain["prompt"]]
    answers = [list(options[name].values()) for name in names]
    scores, _ = label_log_likelihoods(
        model, processor, read_pictures(part, processor), questions, answers, batch_size, candidate_batch_size
    )
    likeliest = scores.argmax(dim=1).tolist()
    found = [(row, name, list(options[name])[k]) for row, name, k in zip(mine, names, likeliest, strict=True)]
    predicted = {row: (name, label) for row, name, label in gather_object(found)}

    labels, values = list(rows.with_format(None)["label"]), []
    for dataset, classes in options.items():
        chosen = [row for row, (name, _) in predicted.items() if name == dataset]
        if chosen:
            gold = np.array([labels[row] for row in chosen])
            said = np.array([predicted[row][1] for row in chosen])
            values.append(compute_balanced_accuracy(*encode_answers(gold, said, list(classes))))
    return float(np.mean(values))
