"""From `results.json` to the words and numbers that a report shows."""

from pathlib import Path

from histolab_sft.evaluation.results import SYSTEMS
from histolab_sft.evaluation.score_names import METRICS, NAMES, format_score
from histolab_sft.evaluation.zero_shot import READINGS

RUNGS = {
    "majority": ("majority class", "floor"),
    "mean_rgb": ("mean colour", "floor"),
    "colour_histogram": ("colour histogram", "floor"),
    "file": ("file alone", "floor"),
    "linear_probe": ("linear probe", "linear_probe"),
    "raw": ("zero-shot, raw", "baseline"),
    "corrected": ("zero-shot, corrected", "baseline"),
    "finetuned": ("fine-tuned", "finetuned"),
}


def list_rungs(entry: dict) -> list[dict]:
    """Return the ladder from the bottom up: `name`, `kind` and `score` of each step that was measured."""
    steps = entry["floors"] | {key: entry["zero_shot"][key] for key in READINGS} | {"finetuned": entry["finetuned"]}
    return [
        {"name": name, "kind": kind, "score": steps[key]["balanced_accuracy"]}
        for key, (name, kind) in RUNGS.items()
        if steps.get(key)
    ]


def list_warnings(entry: dict) -> list[str]:
    """Return what a reader has to know before believing a score."""
    warnings = [entry["colour_floor"]] if entry["colour_floor"] else []
    warnings += [text[0].upper() + text[1:] + "." for text in entry["warnings"]]
    for system in SYSTEMS:
        if entry[system]["temperature"]["hit_bound"]:
            warnings.append(
                f"No temperature calibrates the {NAMES[system]} model: its validation answers are all right, "
                "or no better than chance."
            )
    return warnings


def describe_front(results: dict) -> dict:
    """Return what stands above all scores: `verdict` and `data`, with the `labels` of each data set."""
    datasets = {}
    for name, part in results["data"]["datasets"].items():
        labels = dict.fromkeys(label for row in part["splits"].values() for label in row["classes"])
        datasets[name] = part | {"labels": list(labels)}
    return {"verdict": results["verdict"], "data": results["data"] | {"datasets": datasets}}


def list_unread(entry: dict) -> list[dict]:
    """Return the commonest answers that couldn't be read, of both systems: `system`, `text` and `n`."""
    return [
        {"system": system} | part for system in SYSTEMS for part in entry[system].get("written", {}).get("unread", [])
    ]


def describe_scores(entry: dict) -> list[dict]:
    """Return one row a score that was measured: `name`, both systems and the difference by `format_score`."""
    return [
        {
            "name": name,
            "baseline": format_score(entry["baseline"][metric], percent),
            "finetuned": format_score(entry["finetuned"][metric], percent),
            "difference": format_score(entry["difference"].get(metric), percent, signed=True),
        }
        for metric, (name, percent) in METRICS.items()
        if metric in entry["finetuned"]
    ]


def describe_written(entry: dict) -> dict:
    """Scores of the generated answers beside those by likelihood; empty where nothing was generated."""
    if "generation" not in entry["finetuned"]:
        return {}
    return {
        system: {
            "balanced_accuracy": format_score(entry[system]["generation"]["balanced_accuracy"], True),
            "unparsed": format_score(entry[system]["unparsed_rate"], True),
            "truncated": format_score(entry[system]["generation"]["truncated_rate"], True),
            "agreement": format_score(entry[system]["agreement"], True),
        }
        for system in SYSTEMS
    }


def describe_classes(entry: dict) -> list[dict]:
    """Return one row a class: `name`, `support`, and recall and precision of both systems by `format_score`."""

    def read(system: str, label: str, key: str) -> dict:
        row = entry[system]["per_class"][label]
        return format_score({"value": row[key], "ci95": row[f"{key}_ci95"]}, True)

    return [
        {
            "name": label,
            "support": row["support"],
            **{f"{system}_{key}": read(system, label, key) for system in SYSTEMS for key in ("recall", "precision")},
        }
        for label, row in entry["finetuned"]["per_class"].items()
    ]


def describe_groups(entry: dict) -> dict | None:
    """Answers of whole slides or patients; None where no group is known or every group holds several classes."""
    groups = entry["finetuned"].get("groups")
    if not groups or not groups["n"]:
        return None
    rules = {"mean_log_probability": "mean log-probability", "majority_vote": "majority vote"}
    rows = [
        {"name": name} | {s: format_score(entry[s]["groups"][rule]["balanced_accuracy"], True) for s in SYSTEMS}
        for rule, name in rules.items()
    ]
    return {"n": groups["n"], "n_mixed": groups["n_mixed"], "rows": rows}


def format_p(p: float) -> str:
    """Return a p-value as text, to three decimals."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def flatten(value, place: str = "") -> list[tuple[str, str]]:
    """Names and values of nested records, those without a value left out.

    Of a list of records each goes by its `name`, or its number. Of a path of this machine only its end is shown.
    """
    if isinstance(value, dict):
        return [row for key, part in value.items() for row in flatten(part, f"{place} {key}".strip())]
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        named = [
            part.get("name", number) if isinstance(part, dict) else number for number, part in enumerate(value, 1)
        ]
        return [
            row for name, part in zip(named, value, strict=True) for row in flatten(part, f"{place} {name}".strip())
        ]
    return [] if value is None else [(place.replace("_", " "), _write_value(value))]


def _write_value(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(_write_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return f"…/{Path(text).name}" if Path(text).is_absolute() else text
