"""From `results.json` to the words and numbers that a report shows."""

from pathlib import Path

from histolab_sft.evaluation.results import FLOOR, SYSTEMS
from histolab_sft.evaluation.rung_tables import list_own_rungs, name_rung
from histolab_sft.evaluation.score_names import METRICS, NAMES, format_score, name_score
from histolab_sft.evaluation.zero_shot import READINGS

RATES = ("unparsed_rate", "truncated_rate", "repaired_rate")
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
    keys = list(RUNGS)
    keys[keys.index("raw") : keys.index("raw")] = list_own_rungs(entry)
    named = {key: RUNGS.get(key) or name_rung(key) for key in keys}
    return [
        {"name": name, "kind": kind, "score": steps[key]["balanced_accuracy"]}
        for key, (name, kind) in named.items()
        if steps.get(key)
    ]


def list_warnings(entry: dict) -> list[str]:
    """Return what a reader has to know before believing a score."""
    warnings = [entry["colour_floor"]] if entry["colour_floor"] else []
    warnings += [text[0].upper() + text[1:] + "." for text in entry["warnings"]]
    for system in SYSTEMS:
        if entry[system].get("temperature", {}).get("hit_bound"):
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


def list_labels(entry: dict) -> list[dict]:
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


def list_fields(entry: dict) -> list[dict]:
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


def describe_means(overall: dict) -> list[dict]:
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


def _describe_confidence(found: dict) -> dict:
    temperature = found.get("temperature")
    return {
        "n": "–" if "n" not in found else f"{found['n']} of {found['n'] + found['n_without']}",
        "temperature": "–" if temperature is None else f"{temperature['temperature']:.2f}",
        "at_bound": temperature is not None and temperature["hit_bound"],
        **{key: format_score(found.get(key), False)["value"] for key in ("ece", "ece_calibrated", "auroc")},
    }


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
    return [] if value is None else [(place.replace("_", " "), write_value(value))]


def write_value(value) -> str:
    """Return the value of a key as text: of a path of this machine only its end."""
    if isinstance(value, list):
        return ", ".join(map(write_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return f"…/{Path(text).name}" if Path(text).is_absolute() else text
