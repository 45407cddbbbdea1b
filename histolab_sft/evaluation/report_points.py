"""What a report shows of operating points."""

from collections.abc import Callable

from histolab_sft.evaluation import point_figures
from histolab_sft.evaluation.predictions import SYSTEMS
from histolab_sft.evaluation.score_names import NAMES, format_score

VALUES = ("sensitivity", "specificity", "ppv", "npv")
AT_PREVALENCE = ("ppv_at_prevalence", "npv_at_prevalence")


def describe_points(entry: dict, add: Callable) -> dict:
    """Return what the template shows of a data set's operating points.

    Args:
        entry: Of `results.json`.
        add: Renders and saves a figure, from its kind, alternative text, function and arguments.

    Returns:
        `positive` (None without a positive class), `prevalence`, `figures`, `rules` (a row each, with the cells of
        both systems), `target` and `abstention` (a row for each system).
    """
    points = {system: entry[system]["operating_points"] for system in SYSTEMS}
    fitted = points[SYSTEMS[0]]["fitted"]
    shown = {"positive": fitted.get("positive_class"), "prevalence": None, "figures": [], "rules": []}
    shown["target"] = f"{100 * fitted['abstention']['target']:g} %" if "abstention" in fitted else None
    shown["abstention"] = [_describe_abstention(system, points[system]) for system in SYSTEMS if shown["target"]]
    if shown["positive"] is None:
        return shown
    if fitted["prevalence"] is not None:
        shown["prevalence"] = f"{100 * fitted['prevalence']:g} %"
    values = VALUES + (AT_PREVALENCE if shown["prevalence"] else ())
    shown["rules"] = [
        {
            "name": _name_rule(rows[0]),
            "systems": [_describe_rule(*pair, values) for pair in zip(SYSTEMS, rows, strict=True)],
        }
        for rows in zip(*(points[system]["points"] for system in SYSTEMS), strict=True)
    ]
    if points[SYSTEMS[0]]["curves"] is not None:
        shown["figures"] = _draw(points, add)
    return shown


def _draw(points: dict[str, dict], add: Callable) -> list[dict]:
    def tell(values: tuple[str, ...]) -> str:
        first = {system: found["points"][0] for system, found in points.items()}
        told = {
            system: " and ".join(f"{value} {format_score(point[value], True)['text']}" for value in values)
            for system, point in first.items()
        }
        return "; ".join(f"{NAMES[system]}: {text}" for system, text in told.items())

    curve = points[SYSTEMS[-1]]["curves"]["decision"]
    middle = len(curve["threshold"]) // 2
    return [
        add(
            "roc",
            f"ROC curves with bands. By the likeliest class, {tell(('sensitivity', 'specificity'))}.",
            point_figures.draw_roc,
            points,
        ),
        add(
            "precision_recall",
            f"precision over recall with bands. By the likeliest class, {tell(('sensitivity', 'ppv'))}.",
            point_figures.draw_precision_recall,
            points,
        ),
        add(
            "decision",
            f"decision curves. At a threshold probability of {curve['threshold'][middle]:.0%} the net benefit of the "
            f"fine-tuned model is {curve['net_benefit'][middle]:.3f}, and of treating everyone "
            f"{curve['treat_all'][middle]:.3f}.",
            point_figures.draw_decision,
            points,
        ),
    ]


def _name_rule(point: dict) -> str:
    return f"{point['aim']} of {100 * point['target']:g} %" if "target" in point else point["aim"]


def _describe_rule(system: str, point: dict, values: tuple[str, ...]) -> dict:
    return {
        "system": system,
        "name": NAMES[system],
        "threshold": f"{point['threshold']:.3f}" if "threshold" in point else "–",
        "cells": [format_score(point.get(value), True) for value in values],
        "reason": point.get("reason"),
    }


def _describe_abstention(system: str, found: dict) -> dict:
    scores = found["abstention"]
    return {
        "system": system,
        "name": NAMES[system],
        "threshold": f"{100 * scores['threshold']:.1f} %" if "threshold" in scores else "–",
        "validation": format_score(
            {"value": found["fitted"]["abstention"].get("validation", {}).get("coverage"), "ci95": None}, True
        ),
        "cells": [format_score(scores.get(key), True) for key in ("coverage", "accuracy", "all_answers")],
        "reason": scores.get("reason"),
    }
