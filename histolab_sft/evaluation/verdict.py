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
from histolab_sft.evaluation.open_answers import FLOOR
from histolab_sft.evaluation.report_tables import format_score
from histolab_sft.evaluation.score_names import METRICS, is_lower_better

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
    floors = {floor: scores[name] for floor, scores in entry["above_floors"].items() if floor in FLOOR_NAMES}
    places = {"the base model": _place(gain, name)}
    if floors:
        floor = min(floors, key=lambda key: _sign(name) * floors[key]["value"])
        places[FLOOR_NAMES[floor]] = _place(floors[floor], name)
    level = min((place for place, _ in places.values()), key=LEVELS.index)
    clauses = {
        place: [f"{what} {by}" for what, (found, by) in places.items() if found == place] for place in LEVELS
    }
    shown = METRICS.get(name, (name.replace("_", " "),))[0]
    shown = shown if shown.isupper() else shown[0].lower() + shown[1:]
    if level == "holds":
        text = f"A gain in {shown} over {' and over '.join(clauses['holds'])}"
    else:
        heads = {"fails": f"Not usable: {shown} below", "unclear": "No gain shown over", "holds": "above"}
        joined = [f"{heads[place]} {' or over '.join(parts)}" for place, parts in clauses.items() if parts]
        text = "; ".join([joined[0], *(part[0].lower() + part[1:] for part in joined[1:])])
        text += f" in {shown}" if level == "unclear" else ""
    return {"level": level, "text": f"{text}{_describe_ground(entry)}."}


def _place(gain: dict, name: str) -> tuple[str, str]:
    """Level of a difference, and its size in words."""
    percent = METRICS.get(name, ("", False))[1]
    size = format_score(gain, percent, signed=True)["text"]
    if gain["ci95"] is None:
        return "unclear", f"({size}, no interval)"
    low, high = sorted(_sign(name) * limit for limit in gain["ci95"])
    level = "holds" if low > 0 else "fails" if high < 0 else "unclear"
    return level, f"({size.replace(' (', ', ').rstrip(')')})"


def _sign(name: str) -> int:
    return -1 if is_lower_better(name) else 1


def _describe_ground(entry: dict) -> str:
    unit = "questions" if "task" in entry else "patches"
    groups = f" of {entry['n_groups']} patients or slides" if entry["n_groups"] else ""
    leaks = entry["split_protocol"] == "seed" and not entry["n_groups"]
    return f", on {entry['n']:,} test {unit}{groups}" + (
        ", patients unknown and dealt at random, so that scores may leak" if leaks else ""
    )


