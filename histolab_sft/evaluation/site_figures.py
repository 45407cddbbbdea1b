"""The figure of sites and subgroups: one line a part, both systems on it."""

from matplotlib.figure import Figure

from histolab_sft.evaluation.figures import (
    COLOURS,
    WIDTH,
    mark_score,
    name_systems,
    set_percent,
    shorten,
    start_figure,
)
from histolab_sft.evaluation.predictions import SYSTEMS

MOST = 30  # parts that a figure has room for; the table has them all


def draw_parts(title: str, parts: list[dict], overall: dict[str, float]) -> Figure:
    """Draw balanced accuracy of each part that was scored, the whole test split as a line.

    Args:
        parts: `name`, `n`, and of each system its score with `value` and `ci95`; from the best to the worst.
        overall: System -> balanced accuracy of the whole test split.
    """
    shown = parts[: MOST // 2] + parts[-MOST // 2 :] if len(parts) > MOST else parts
    figure, axes = start_figure(0.36 * len(shown) + 1.15, WIDTH)
    for system in SYSTEMS:
        axes.axvline(overall[system], color=COLOURS[system], linestyle=(0, (4, 3)), linewidth=1, alpha=0.7, zorder=0)
    for place, part in enumerate(shown):
        for system, shift in zip(SYSTEMS, (-0.13, 0.13), strict=True):
            mark_score(axes, part[system], place + shift, system, horizontal=True)
    axes.set_yticks(range(len(shown)), [f"{shorten(part['name'])} ({part['n']:,})" for part in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="balanced accuracy, % (95 % interval)", title=title, xlim=(0, 1.02))
    axes.grid(axis="x")
    set_percent(axes.xaxis)
    name_systems(axes, list(SYSTEMS))
    return figure
