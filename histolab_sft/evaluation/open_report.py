"""The page of a run on records: every score with its interval, the constant answer beside it, and answers as read."""

import json
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict

from histolab_sft.data.rows import select_dataset
from histolab_sft.evaluation.error_atlas import hash_id
from histolab_sft.evaluation.html_report import render_page
from histolab_sft.evaluation.open_answers import FLOOR, SYSTEMS
from histolab_sft.evaluation.report_tables import describe_front, flatten, list_unread
from histolab_sft.evaluation.score_names import format_score, name_score
from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks import TASKS
from histolab_sft.tasks.answer_forms import BOX_COLOURS, describe_answer, draw_boxes, draw_outlines, encode_picture
from histolab_sft.tasks.boxes import place
from histolab_sft.tasks.parsing.box_geometry import move_boxes

EXAMPLES = 8
RATES = ("unparsed_rate", "truncated_rate", "repaired_rate")


def write_answers_report(
    results: dict, predictions: dict[tuple[str, str], pd.DataFrame], questions: DatasetDict, folder: Path
) -> None:
    """Write `report.html` of data sets with a format, which needs no other file and no network.

    Args:
        results (`dict`): What stands in `results.json`.
        predictions (`dict`): (Data set, system) -> table of the test split from `predict_answers`.
        questions (`DatasetDict`): The splits that were scored; only pictures of the examples get opened.
        folder (`Path`): `evaluation/` of the run.

    Raises:
        ValueError: The questions aren't those of the tables.
    """
    described = [
        _describe_dataset(
            name,
            entry,
            {system: predictions[name, system] for system in SYSTEMS},
            select_dataset(questions["test"], name),
        )
        for name, entry in results["datasets"].items()
    ]
    overall = results["overall"]
    render_page(
        "open_report.html.jinja",
        folder,
        datasets=described,
        **describe_front(results),
        means=_describe_means(overall) if len(described) > 1 else [],
        reason=overall.get("reason") if len(described) > 1 else None,
        box_colours=BOX_COLOURS,
        recipe=flatten(results.get("recipe")),
        provenance=flatten(results.get("provenance")),
    )


def list_scores(entry: dict) -> list[dict]:
    """Return one row a score, the one to look at first on top: floor, both systems and the difference as text."""
    names = [entry["headline"], *(score for score in entry["difference"] if score != entry["headline"])]
    rows = []
    for score in names:
        if score in entry["finetuned"] and score not in RATES:
            cells = {"floor": entry["floors"][FLOOR].get(score)} | {s: entry[s][score] for s in SYSTEMS}
            rows.append(
                {"name": name_score(score)}
                | {key: format_score(cell, False) for key, cell in cells.items()}
                | {"difference": format_score(entry["difference"].get(score), False, signed=True)}
            )
    return rows


def list_examples(tables: dict[str, pd.DataFrame], questions: Dataset) -> list[dict]:
    """Return up to `EXAMPLES` questions, evenly spread: pictures, the question, the truth and both answers."""
    if list(questions.with_format(None)["id"]) != tables["baseline"]["id"].tolist():
        raise ValueError(
            "the questions of the report aren't those that were scored, expected the same rows in the same order; "
            "score them again"
        )
    chosen = np.unique(np.linspace(0, len(questions) - 1, min(EXAMPLES, len(questions))).round().astype(int))
    examples = []
    for row in chosen.tolist():
        question, task = questions[row], tables["baseline"]["task"].iloc[row]
        truth = json.loads(tables["baseline"]["truth"].iloc[row])
        answers = {system: json.loads(table["predicted"].iloc[row]) for system, table in tables.items()}
        pictures = question["images"]
        if task == "boxes":
            boxes = {"truth": truth} | answers
            # Those of the stored picture, on the one that the model saw.
            placement = place(json.loads(tables["baseline"]["ask"].iloc[row]))
            moved = {name: move_boxes([Box(*box) for box in drawn or []], placement) for name, drawn in boxes.items()}
            pictures = [draw_boxes(pictures[0], placement.size, moved)]
        if task == "masks":
            drawn = {name: outlines or [] for name, outlines in ({"truth": truth} | answers).items()}
            pictures = [draw_outlines(pictures[0], json.loads(tables["baseline"]["ask"].iloc[row])["size"], drawn)]
        examples.append(
            {
                "id": hash_id(question["id"]),
                "question": question["prompt"][0]["content"],
                "pictures": [encode_picture(picture) for picture in pictures],
                "boxes": task in ("boxes", "masks"),
                "truth": None if truth is None else describe_answer(task, truth),
                "answers": [
                    {
                        "system": system,
                        "read": None if answers[system] is None else describe_answer(task, answers[system]),
                        "written": table["answer"].iloc[row],
                        "truncated": bool(table["truncated"].iloc[row]),
                    }
                    for system, table in tables.items()
                ],
            }
        )
    return examples


def _describe_dataset(name: str, entry: dict, tables: dict[str, pd.DataFrame], questions: Dataset) -> dict:
    scores = list_scores(entry)
    return {
        "name": name,
        "anchor": f"data-{quote(name, safe='').replace('%', '_')}",
        "task": entry["task"],
        "explained": TASKS[entry["task"]].SCORED_AS,
        "n": entry["n"],
        "groups": entry["n_groups"],
        "protocol": entry["split_protocol"],
        "warnings": [text[0].upper() + text[1:] + "." for text in entry["warnings"]],
        "unread": list_unread(entry),
        "headline": scores[0] if scores else None,
        "scores": scores,
        "rates": {system: {rate: format_score(entry[system][rate], True) for rate in RATES} for system in SYSTEMS},
        "labels": _list_labels(entry),
        "fields": _list_fields(entry),
        "confidences": list_confidences(entry),
        "constrained": entry["constrained_decoding"],
        "examples": list_examples(tables, questions),
    }


def _list_labels(entry: dict) -> list[dict]:
    """F1 of each label or class of both systems, where the task has any."""
    key = next((key for key in ("per_label", "per_class") if entry["finetuned"].get(key)), None)
    if key is None:
        return []
    names = sorted({name for system in SYSTEMS for name in entry[system][key]})
    rows = []
    for name in names:
        found = {system: entry[system][key].get(name, {}) for system in SYSTEMS}
        count = next((f.get(k) for f in found.values() for k in ("n_gold", "support") if k in f), 0)
        texts = {s: "–" if f.get("f1") is None else f"{f['f1']:.3f}" for s, f in found.items()}
        rows.append({"name": name, "n": count} | texts)
    return rows


def _list_fields(entry: dict) -> list[dict]:
    """One row a field of a JSON answer: its score, or why it has none."""
    rows = []
    for name, field in entry["finetuned"].get("fields", {}).items():
        score = next((s for s in ("balanced_accuracy", "mae") if f"{name}_{s}" in entry["difference"]), None)
        cells = {"floor": entry["floors"][FLOOR]} | {system: entry[system] for system in SYSTEMS}
        shown = {key: format_score(cell.get(f"{name}_{score}"), False) for key, cell in cells.items()}
        rows.append(
            {"name": name, "n": field["n"], "score": score and name_score(score)}
            | shown
            # They begin with the field's name, which stands beside them here.
            | {"remark": (field.get("reason") or field.get("warning") or "").removeprefix(f"{name}: ")}
        )
    return rows


def list_confidences(entry: dict) -> list[dict]:
    """Return one row a field with words for values: how far both systems' confidences in it can be believed."""
    rows = []
    for name, field in entry["finetuned"].get("fields", {}).items():
        if "confidence" in field:
            found = {system: entry[system]["fields"][name]["confidence"] for system in SYSTEMS}
            row = {"name": name, "remarks": sorted({f["reason"] for f in found.values() if "reason" in f})}
            rows.append(row | {system: _describe_confidence(f) for system, f in found.items()})
    return rows


def _describe_confidence(found: dict) -> dict:
    temperature = found.get("temperature")
    return {
        "n": "–" if "n" not in found else f"{found['n']} of {found['n'] + found['n_without']}",
        "temperature": "–" if temperature is None else f"{temperature['temperature']:.2f}",
        "at_bound": temperature is not None and temperature["hit_bound"],
        **{key: format_score(found.get(key), False)["value"] for key in ("ece", "ece_calibrated", "auroc")},
    }


def _describe_means(overall: dict) -> list[dict]:
    """Means over the data sets: of all, or of those of each task."""
    parts = {"all data sets": overall} | overall.get("by_task", {})
    return [
        {
            "of": of if "n_datasets" not in part else f"{of} ({part['n_datasets']})",
            "name": name_score(score),
            **{system: format_score(part[system][score], False) for system in SYSTEMS},
            "difference": format_score(part["difference"][score], False, signed=True),
        }
        for of, part in parts.items()
        for score in part["finetuned"]
    ]
