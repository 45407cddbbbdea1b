"""What a report shows of sites and subgroups."""

from collections.abc import Callable

from histolab_sft.evaluation import site_figures
from histolab_sft.evaluation.predictions import SYSTEMS
from histolab_sft.evaluation.score_names import NAMES, format_score

# Name of a score and whether it is shown in percent.
COLUMNS = {
    "balanced_accuracy": ("Balanced accuracy", True),
    "auroc": ("AUROC", False),
    "confidence_gap": ("Too sure by", True),
    "calibration_slope": ("Calibration slope", False),
}


def describe_sites(entry: dict, add: Callable) -> list[dict]:
    """Return what the template shows of sites and then of each kind of subgroup; none where none is known.

    Args:
        entry: Of `results.json`.
        add: Renders and saves a figure, from its kind, alternative text, function and arguments.
    """
    kinds = ({"site": entry["sites"]} if "sites" in entry else {}) | entry.get("subgroups", {})
    overall = {system: entry[system]["balanced_accuracy"]["value"] for system in SYSTEMS}
    return [_describe_kind(number, name, scored, overall, add) for number, (name, scored) in enumerate(kinds.items())]


def _describe_kind(number: int, name: str, scored: dict, overall: dict[str, float], add: Callable) -> dict:
    rows = [
        {"name": part, "n": found["n"]} | {system: found[system]["balanced_accuracy"] for system in SYSTEMS}
        for part, found in scored["parts"].items()
        if "reason" not in found
    ]
    rows.sort(key=lambda row: -row[SYSTEMS[-1]]["value"])
    texts = "; ".join(f"{row['name']} {format_score(row[SYSTEMS[-1]], True)['text']}" for row in rows)
    alt = f"balanced accuracy by {name} of the fine-tuned model: {texts}."
    names = [row["name"] for row in rows] + [part for part, found in scored["parts"].items() if "reason" in found]
    return {
        "name": name,
        "figure": add(f"parts_{number}", alt, site_figures.draw_parts, f"By {name}", rows, overall) if rows else None,
        "heads": [head for head, _ in COLUMNS.values()],
        "rows": [_describe_part(part, scored["parts"][part]) for part in names],
        "n_unknown": scored["n_unknown"],
        "comparison": [_describe_comparison(system, scored["comparison"][system]) for system in SYSTEMS],
        "probe": _describe_probe(scored["probe"]) if scored.get("probe") else None,
    }


def _describe_part(name: str, found: dict) -> dict:
    shown = {"name": name, "n": found["n"], "groups": found["n_groups"], "reason": found.get("reason"), "systems": []}
    if shown["reason"] is None:
        shown["missing"] = ", ".join(label for label, count in found["n_by_class"].items() if count == 0)
        shown["systems"] = [
            {
                "system": system,
                "name": NAMES[system],
                "cells": [
                    format_score(found[system][score], percent, signed=score == "confidence_gap")
                    for score, (_, percent) in COLUMNS.items()
                ],
            }
            for system in SYSTEMS
        ]
        shown["difference"] = format_score(found["difference"]["balanced_accuracy"], True, signed=True)
    return shown


def _describe_comparison(system: str, found: dict) -> dict:
    shown = {"system": system, "name": NAMES[system], "n": found["n_compared"], "reason": found.get("reason")}
    if shown["reason"] is None:
        spread = found["spread"]
        shown |= {
            "worst": found["worst"]["name"],
            "score": format_score(found["worst"], True),
            "chance_lowest": f"{100 * found['chance_lowest']:.1f} %",
            "spread": f"{100 * spread['value']:.1f} points",
            "chance": f"{100 * spread['chance']:.1f} points, up to {100 * spread['most']:.1f}",
            "p": "< 0.001" if spread["p"] < 0.001 else f"{spread['p']:.3f}",
        }
    return shown


def _describe_probe(found: dict) -> dict:
    shown = {"n_sites": found["n_sites"], "reason": found.get("reason")}
    if shown["reason"] is None:
        shown |= {key: format_score(found[key], True)["text"] for key in ("balanced_accuracy", "from_class")}
        shown |= {key: found[key] for key in ("n", "folds", "grouped", "n_left_out")}
        shown["chance"] = f"{100 * found['chance']:.1f} %"
    return shown
