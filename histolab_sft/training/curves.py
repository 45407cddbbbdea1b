"""The curves of a run as one picture in its folder: no tracker is needed to see how it went."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from histolab_sft.files import replacing

# Okabe & Ito 2008, told apart under every form of colour blindness.
COLOURS = {"train": "#0072B2", "validation": "#D55E00"}
LOSSES = {"loss": "whole answer", "answer_loss": "tokens that tell the classes apart"}


def draw_curves(log_history: list[dict], path: str | Path) -> None:
    """Write the losses of a run, on train and validation, over optimiser steps, as PNG; nothing if none was logged.

    Args:
        log_history: `trainer.state.log_history`: one entry a log, with `step`, and `loss` and `answer_loss` in nats a
            token, the same with the prefix `eval_` where the validation split was scored.
    """
    curves = {name: _collect(log_history, name) for loss in LOSSES for name in (loss, f"eval_{loss}")}
    shown = [loss for loss in LOSSES if curves[loss] or curves[f"eval_{loss}"]]
    if not shown:
        return
    figure = Figure(figsize=(4.5 * len(shown), 3.2), layout="constrained")
    for axes, loss in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for split, name, marker in (("train", loss, ""), ("validation", f"eval_{loss}", "o")):
            if curves[name]:
                steps, values = zip(*curves[name], strict=True)
                # A lone value would be no line.
                marker = marker or ("." if len(steps) == 1 else "")
                axes.plot(steps, values, marker=marker, markersize=4, color=COLOURS[split], label=split)
        axes.set(title=LOSSES[loss], xlabel="optimiser step", ylabel=f"{loss} (nats a token)")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white")


def _collect(log_history: list[dict], name: str) -> list[tuple[int, float]]:
    """Steps and finite values of one curve, the last value of each step, in their order."""
    values = {entry["step"]: entry[name] for entry in log_history if name in entry and math.isfinite(entry[name])}
    return sorted(values.items())
