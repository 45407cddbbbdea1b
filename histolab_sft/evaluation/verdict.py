"""One sentence above all scores that says what they amount to, written from the numbers of `results.json`."""

from pathlib import Path

from histolab_sft.evaluation.answer_findings import (
    NEARLY_ALL,
    find_copies,
    find_cut_off,
    find_one_answer,
    find_unread,
)
from histolab_sft.evaluation.data_panel import add_data_panel
from histolab_sft.evaluation.results import FLOOR
from histolab_sft.evaluation.rung_tables import say_rungs
from histolab_sft.evaluation.score_names import is_lower_better, is_percent, name_in_sentence, say_difference

LEVELS = ("fails", "unclear", "holds")
SUMMARIES = {"fails": "not usable on", "unclear": "nothing shown on", "holds": "a gain on"}
FLOOR_NAMES = {"colour_histogram": "colour alone", "mean_rgb": "colour alone", FLOOR: "the constant answer"}


def add_front(results: dict, output_dir: str | Path) -> None:
    """Add to `results` what stands above all scores: `data`, from the audit in `output_dir`, and `verdict`."""
    add_data_panel(results, output_dir)
    results["verdict"] = judge_run(results["datasets"])


def judge_run(datasets: dict[str, dict]) -> dict:
    """Return the entry `verdict` of `results.json`: `level` and `text` of the run, and both of each data set.

    The level is that of the worst data set: `fails`, `unclear` or `holds`.
    """
    judged = {name: judge_dataset(entry) for name, entry in datasets.items()}
    if len(judged) == 1:
        [verdict] = judged.values()
        return verdict | {"datasets": judged}
    parts = []
    for level in LEVELS:
        names = [name for name, verdict in judged.items() if verdict["level"] == level]
        if names:
            parts.append(f"{SUMMARIES[level]} {', '.join(names)}")
    text = "; ".join(parts)
    level = min((verdict["level"] for verdict in judged.values()), key=LEVELS.index)
    return {"level": level, "text": f"{text[0].upper()}{text[1:]}.", "datasets": judged}


def judge_dataset(entry: dict) -> dict:
    """Return `level` and `text` of one data set.

    It fails where the answers are broken, or where the score lies below the base model or below a floor (the 95 %
    interval of the paired difference wholly below zero); it is unclear where an interval holds zero; else it holds.
    How far rungs without a language model come is said beside it: the level is that of the training's gain.
    """
    broken = [find(entry, "finetuned") for find in (find_one_answer, find_unread, find_cut_off)]
    if entry["finetuned"].get("written", {}).get("n_from_train", 0) >= NEARLY_ALL * entry["n"]:
        broken.append(find_copies(entry, "finetuned"))
    if clause := next(filter(None, broken), None):
        return {"level": "fails", "text": f"Not usable: the fine-tuned model {clause}."}
    name = entry.get("headline", "balanced_accuracy")
    gain = entry["difference"].get(name)
    if gain is None or gain["value"] is None:
        return {"level": "unclear", "text": "No verdict: nothing in the test split can be told apart."}
    places = {"the base model": _place(gain, name)}
    floors = {key: scores[name] for key, scores in entry["above_floors"].items() if key in FLOOR_NAMES}
    floors = {key: found for key, found in floors.items() if found["value"] is not None}
    if floors:
        nearest = min(floors, key=lambda key: _sign(name) * floors[key]["value"])
        places[FLOOR_NAMES[nearest]] = _place(floors[nearest], name)
    heads = {
        "fails": "worse than" if is_lower_better(name) else "below",
        "unclear": "no gain shown over",
        "holds": "better than",
    }
    clauses = []
    for level in LEVELS:
        named = [f"{place} {size}" for place, (found, size) in places.items() if found == level]
        clauses += [f"{heads[level]} {' and '.join(named)}"] if named else []
    level = min((found for found, _ in places.values()), key=LEVELS.index)
    text = "; ".join(clauses)
    text = f"Not usable: {text}" if level == "fails" else text[0].upper() + text[1:]
    text = f"{text}, in {name_in_sentence(name)}, {_describe_ground(entry)}."
    return {"level": level, "text": " ".join(filter(None, [text, say_rungs(entry)]))}


def _place(gain: dict, name: str) -> tuple[str, str]:
    """Level of a difference, and its size in words."""
    size = say_difference(gain, is_percent(name))
    if gain["ci95"] is None:
        return "unclear", f"({size}, no interval)"
    low, high = sorted(_sign(name) * limit for limit in gain["ci95"])
    level = "holds" if low > 0 else "fails" if high < 0 else "unclear"
    return level, f"({size})"


def _sign(name: str) -> int:
    return -1 if is_lower_better(name) else 1


def _describe_ground(entry: dict) -> str:
    unit = "questions" if "task" in entry else "patches"
    groups = f" of {entry['n_groups']} patients or slides" if entry["n_groups"] else ""
    leaks = entry["split_protocol"] == "seed" and not entry["n_groups"]
    scored = f"{entry['n']:,} of {entry['n_available']:,}" if "n_available" in entry else f"{entry['n']:,}"
    return f"on {scored} test {unit}{groups}" + (
        ", patients unknown and dealt at random, so that scores may leak" if leaks else ""
    )
