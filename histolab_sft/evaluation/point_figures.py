"""The figures of operating points: ROC, precision-recall and decision curves, each with its band."""

import numpy as np
from matplotlib.figure import Figure

from histolab_sft.evaluation.figures import COLOURS, MARKERS, WIDTH, name_systems, set_percent, start_figure
from histolab_sft.evaluation.predictions import SYSTEMS

CHANCE = {"color": "#9CA3AF", "linestyle": (0, (4, 3)), "linewidth": 1}


def draw_roc(points: dict[str, dict]) -> Figure:
    """Draw the ROC curves of both systems, and the rules that were scored; system -> `operating_points`."""
    figure, axes = _draw_curves(points, "roc", "false_positive_rate", "sensitivity")
    axes.plot([0, 1], [0, 1], zorder=0, **CHANCE)
    for system, found in points.items():
        marks = [(1 - p["specificity"]["value"], p["sensitivity"]["value"]) for p in _list_scored(found)]
        _mark_points(axes, marks, system)
    axes.set(xlabel="false positives, % (1 − specificity)", ylabel="sensitivity, %", title="ROC")
    return figure


def draw_precision_recall(points: dict[str, dict]) -> Figure:
    """Draw precision over recall of both systems, the part of positive patches as the line of chance."""
    figure, axes = _draw_curves(points, "precision_recall", "recall", "precision")
    found = points[SYSTEMS[-1]]
    axes.axhline(found["n_positive"] / (found["n_positive"] + found["n_negative"]), zorder=0, **CHANCE)
    for system, found in points.items():
        marks = [
            (p["sensitivity"]["value"], p["ppv"]["value"])
            for p in _list_scored(found)
            if p["ppv"]["value"] is not None
        ]
        _mark_points(axes, marks, system)
    axes.set(xlabel="recall, % (sensitivity)", ylabel="precision, %", title="Precision and recall")
    return figure


def draw_decision(points: dict[str, dict]) -> Figure:
    """Draw net benefit over the threshold probability, against treating everyone and nobody."""
    figure, axes = start_figure(0.95 * WIDTH)
    curve = points[SYSTEMS[-1]]["curves"]["decision"]
    axes.axhline(0, **CHANCE)
    axes.plot(curve["threshold"], curve["treat_all"], color="#6B7280", linestyle=(0, (1, 1.5)), linewidth=1.4)
    # The line of treating everyone falls without end.
    highest = max(max(found["curves"]["decision"]["net_benefit"]) for found in points.values())
    bottom = -0.35 * max(highest, curve["prevalence"])
    for system, found in points.items():
        band = found["curves"]["decision"]
        axes.fill_between(band["threshold"], band["low"], band["high"], color=COLOURS[system], alpha=0.14, linewidth=0)
        axes.plot(band["threshold"], band["net_benefit"], color=COLOURS[system], linewidth=1.6)
    axes.set_ylim(bottom, 1.15 * max(highest, curve["prevalence"]))
    axes.set_xlim(0, 1)
    everyone = np.array(curve["treat_all"])
    seen = np.flatnonzero(everyone > bottom * 0.8)
    axes.annotate(
        "treat everyone",
        (curve["threshold"][seen[-1]], everyone[seen[-1]]),
        xytext=(5, 0),
        textcoords="offset points",
        fontsize=8,
        color="#4B5563",
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
    )
    axes.text(0.99, 0.06 * bottom, "treat nobody", ha="right", va="top", fontsize=8, color="#4B5563")
    axes.set(xlabel="threshold probability, %", ylabel="net benefit", title="Decision curve")
    axes.grid()
    set_percent(axes.xaxis)
    name_systems(axes, list(points))
    return figure


def _draw_curves(points: dict[str, dict], kind: str, x: str, y: str):
    figure, axes = start_figure(0.95 * WIDTH)
    for system, found in points.items():
        curve = found["curves"][kind]
        line = {"color": COLOURS[system], "linewidth": 1.6}
        values, low, high = (np.array(curve[key], dtype=float) for key in (y, "low", "high"))
        axes.fill_between(curve[x], low, high, color=COLOURS[system], alpha=0.14, linewidth=0)
        axes.plot(curve[x], values, **line)
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
    axes.grid()
    set_percent(axes.xaxis)
    set_percent(axes.yaxis)
    name_systems(axes, list(points))
    return figure, axes


def _list_scored(found: dict) -> list[dict]:
    return [point for point in found["points"] if "sensitivity" in point]


def _mark_points(axes, marks: list[tuple[float, float]], system: str) -> None:
    """Mark rules on a curve: that of the likeliest class, the first one, larger than the thresholds."""
    face = "white" if system == SYSTEMS[0] else COLOURS[system]
    for number, mark in enumerate(marks):
        size = 4.5 if number else 7
        axes.plot(*mark, MARKERS[system], color=COLOURS[system], mfc=face, ms=size, zorder=3, clip_on=False)
