"""From the entry of an external cohort to the words and numbers that a report and the screen show."""

from histolab_sft.evaluation.score_names import METRICS, format_score, is_percent, name_in_sentence, name_score

COLUMNS = ("baseline", "finetuned", "difference")


def describe_cohort(entry: dict) -> dict:
    """Return what the report shows of a cohort beside what it shows of a data set.

    Returns:
        `dict`: `of`, `verdict`, `facts` (of the cohort), `labels` (lines of labels and words), `absent` and
        `compared` (classes), `headline` and `rows` (one a score: `name`, `internal` and `change`, each of both
        systems and their difference, and `external`, of the fine-tuned model), and `calibration` (one line a system).
    """
    facts = entry["cohort"]
    rows = [_describe_change(entry, score) for score in list_compared(entry)]
    return {
        "of": entry["external_of"],
        "verdict": entry["verdict"],
        "facts": facts,
        "labels": _describe_labels(facts["labels"] or {}),
        "absent": entry.get("classes_absent", []),
        "compared": entry.get("classes_compared"),
        "headline": rows[0] if rows else None,
        "rows": rows,
        "calibrated": "task" not in entry,
    }


def list_compared(entry: dict) -> list[str]:
    """Return the scores that have a change from internal to external, the one to look at first on top."""
    order = [entry["headline"], *entry["change"]["finetuned"]] if "task" in entry else METRICS
    return [score for score in dict.fromkeys(order) if score in entry["change"]["finetuned"]]


def say_change(entry: dict) -> str:
    """Return one sentence about the first score of a cohort: from the internal test split to here."""
    scores = list_compared(entry)
    if not scores:
        return "nothing can be compared with the internal test split"
    name = scores[0]
    percent = is_percent(name)
    change = entry["change"]["finetuned"][name]
    size = format_score(change, percent, signed=True)["text"]
    within = change["ci95"] is None or change["ci95"][0] <= 0 <= change["ci95"][1]
    ground = " (no change shown)" if within else ""
    return f"from the internal test split, {name_in_sentence(name)} of the fine-tuned model changes by {size}{ground}"


def _describe_change(entry: dict, score: str) -> dict:
    percent, internal = is_percent(score), entry["internal"]
    return {
        "name": METRICS[score][0] if score in METRICS else name_score(score),
        "internal": {key: format_score(internal[key][score], percent, key == "difference") for key in COLUMNS},
        "external": format_score(entry["finetuned"].get(score), percent),
        "change": {key: format_score(entry["change"][key][score], percent, signed=True) for key in COLUMNS},
    }


def _describe_labels(labels: dict[str, str | None]) -> list[str]:
    """Return one line a class word, and one for labels that are left out."""
    lines = {}
    for label, words in labels.items():
        lines.setdefault(words, []).append(f"“{label}”")
    return [f"{', '.join(found)}: {words or 'left out'}" for words, found in lines.items()]
