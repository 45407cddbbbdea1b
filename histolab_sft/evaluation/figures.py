"""The figures of a report: one system one colour and one shape, so that they also read in print without colour."""

import base64
import io
import textwrap
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from histolab_sft.evaluation.predictions import SYSTEMS
from histolab_sft.evaluation.score_names import NAMES
from histolab_sft.tasks.answer_forms import BOX_COLOURS

COLOURS = {system: BOX_COLOURS[system] for system in SYSTEMS}
COLOURS |= {"floor": "#767676", "linear_probe": "#00795C", "cnn": "#8A4B08"}
MARKERS = {"baseline": "o", "finetuned": "D", "floor": "s", "linear_probe": "^", "cnn": "v"}
WIDTH = 3.55  # inches, 341 pixels of a browser: drawn at the size at which it is shown, so that the text stays legible
WRAP = 16  # letters of a line of a class name beside a figure
LONGEST = 28  # letters of a class name that are shown; the table of classes has them all
MANY, TOO_MANY = 10, 24  # classes
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#6B7280",
    "axes.labelcolor": "#1F2937",
    "xtick.color": "#374151",
    "ytick.color": "#374151",
    "text.color": "#1F2937",
    "axes.axisbelow": True,
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "histolab_sft",
}
CHANGES = {
    "stain": ("Stain", "shift of the H&E stains (HED jitter, sigma)"),
    "jpeg": ("JPEG", "quality of a second compression (100: none)"),
    "blur": ("Focus", "Gaussian blur (sigma, % of the shorter side)"),
    "magnification": ("Magnification", "times the patch's own"),
    "orientation": ("Orientation", ""),
    "side": ("Resolution", "side of the pictures, pixels"),
}


@matplotlib.rc_context(STYLE)
def render(draw: Callable[..., Figure], *args) -> tuple[bytes, bytes, bytes]:
    """Return the figure that `draw(*args)` gives as SVG, as PNG at 200 dots an inch, and as PDF."""
    figure = draw(*args)
    files = []
    undated = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 200}, "pdf": {"metadata": {"CreationDate": None}}}
    for kind, options in undated.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, facecolor="white", **options)
        figure.set_layout_engine("none")  # the layout of the first is that of the second, and takes half the time
        files.append(buffer.getvalue())
    return tuple(files)


def embed(svg: bytes) -> str:
    """Return a figure as an address that holds it."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def draw_ladder(rungs: list[dict], chance: float, alone: bool = False) -> Figure:
    """Draw what each step adds, from knowing nothing to the fine-tuned model.

    Args:
        rungs: From the bottom up, `name`, `kind` (a key of `COLOURS`) and `score` with `value` and `ci95`.
        chance: Balanced accuracy of guessing.
        alone: Whether it is the only ladder of the report, and as wide as two.
    """
    figure, axes = start_figure(0.33 * len(rungs) + 0.85, 2 * WIDTH if alone else WIDTH)
    for height, rung in enumerate(rungs):
        mark_score(axes, rung["score"], height, rung["kind"], horizontal=True)
        strong = rung["kind"] == "finetuned"
        axes.text(
            1.03 if alone else 1.04,
            height,
            f"{100 * rung['score']['value']:.1f}",
            va="center",
            weight="bold" if strong else "normal",
        )
    axes.axvline(chance, color="#9CA3AF", linestyle=(0, (4, 3)), linewidth=1, zorder=0)
    axes.text(chance, len(rungs) - 0.42, "chance", ha="center", va="bottom", color="#6B7280", fontsize=8)
    axes.set_yticks(range(len(rungs)), [rung["name"] for rung in rungs])
    axes.set_ylim(-0.6, len(rungs) - 0.2)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    set_percent(axes.xaxis)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("balanced accuracy, % (95 % interval)")
    return figure


def is_wide(classes: list[str]) -> bool:
    """Whether a confusion matrix needs the width of two figures: for many classes, or some with long names."""
    return len(classes) >= MANY or (len(classes) > 4 and max(map(len, classes)) > WRAP)


def draw_confusion(matrix: dict, system: str) -> Figure:
    """Draw a confusion matrix: counts, shaded by their part of the true class; `unparsed` only where it occurs.

    It may have the width of two figures (`is_wide`); from `TOO_MANY` classes on there is no room for counts.
    """
    counts = np.array(matrix["rows"])[:-1]
    columns = list(matrix["labels"])
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], columns[:-1]
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n_rows = len(counts)
    # As wide as the page where names would be too small to read.
    width = 3 * WIDTH if n_rows >= TOO_MANY else 2.3 * WIDTH if is_wide(matrix["labels"][:-1]) else WIDTH
    size = 9 if n_rows < MANY else 7
    names = [shorten(name) for name in columns]
    longest = max(map(len, names))
    # Names stand upright where they would run into each other: 0.075 inches a letter, beside those of the rows.
    room = (width - 0.075 * min(longest, WRAP)) / len(columns) / 0.075
    turned = len(columns) > 4 or longest > room
    # The field of few classes needs no square; a name that stands upright takes height.
    field = 0.62 * width if n_rows < 3 else width - 0.06 * longest * size / 9
    figure, axes = start_figure(max(field, 1.6) + (0.055 * longest * size / 9 if turned else 0.2), width)
    axes.pcolormesh(parts, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1.5 if n_rows < MANY else 0.5)
    axes.set_aspect("auto" if n_rows < 3 else "equal")
    axes.invert_yaxis()
    for row, column in np.ndindex(*counts.shape) if n_rows < TOO_MANY else ():
        if counts[row, column]:
            share = f"\n{parts[row, column]:.0%}" if n_rows <= 4 else ""
            colour = "white" if parts[row, column] > 0.55 else "#1F2937"
            text = f"{counts[row, column]}{share}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=size)
    style = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(np.arange(len(columns)) + 0.5, names, fontsize=size, **style)
    rows = names[:n_rows] if n_rows > 4 else [_wrap(name) for name in names[:n_rows]]
    axes.set_yticks(np.arange(n_rows) + 0.5, rows, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="answer", ylabel="true class", title=NAMES[system])
    return figure


def draw_reliability(before: list[dict], after: list[dict], ece: tuple[float, float], system: str) -> Figure:
    """Draw accuracy over confidence in ten bins, as scored and after the temperature; larger marks: more patches."""
    figure, axes = start_figure(0.95 * WIDTH)
    axes.plot([0, 1], [0, 1], color="#9CA3AF", linestyle=(0, (4, 3)), linewidth=1, label="calibrated")
    total = sum(part["n"] for part in before)
    styles = {
        "before": (before, ece[0], "white", (0, (2, 2))),
        "after": (after, ece[1], COLOURS[system], "solid"),
    }
    for name, (bins, error, face, line) in styles.items():
        filled = [part for part in bins if part["n"]]
        x, y = ([part[key] for part in filled] for key in ("confidence", "accuracy"))
        axes.plot(x, y, color=COLOURS[system], linestyle=line, linewidth=1.3)
        sizes = [16 + 200 * part["n"] / total for part in filled]
        label = f"{name} temperature, ECE {error:.3f}"
        axes.scatter(x, y, sizes, face, MARKERS[system], edgecolors=COLOURS[system], zorder=3, clip_on=False)
        axes.plot([], [], MARKERS[system], ls=line, color=COLOURS[system], mfc=face, markersize=6, label=label)
    axes.set(xlabel="confidence, %", ylabel="accuracy, %", title=NAMES[system], xlim=(0, 1.02), ylim=(-0.02, 1.02))
    axes.grid()
    set_percent(axes.xaxis)
    set_percent(axes.yaxis)
    figure.legend(loc="outside lower left", fontsize=8)
    return figure


def draw_coverage(curves: dict[str, dict]) -> Figure:
    """Draw the accuracy of the answers that are kept when the least confident are withheld; system -> curve."""
    figure, axes = start_figure(0.95 * WIDTH)
    for system, curve in curves.items():
        coverage, accuracy = np.array(curve["coverage"]), np.array(curve["accuracy"])
        # A handful of patches at the left end jumps between 0 and 1, and 33,000 patches need no 33,000 points.
        kept = np.flatnonzero(coverage >= 0.05) if (coverage >= 0.05).any() else np.arange(len(coverage))
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, 300).astype(int))]
        axes.plot(coverage[kept], accuracy[kept], color=COLOURS[system], linewidth=1.6, label=NAMES[system])
        axes.plot(coverage[-1], accuracy[-1], MARKERS[system], color=COLOURS[system], markersize=6, clip_on=False)
    axes.set(
        xlabel="answers kept, % (the most confident)",
        ylabel="accuracy of those, %",
        title="withholding answers",
        xlim=(0, 1),
    )
    axes.set_ylim(max(0, min(min(curve["accuracy"]) for curve in curves.values()) - 0.1), 1.02)
    axes.grid()
    set_percent(axes.xaxis)
    set_percent(axes.yaxis)
    figure.legend(loc="outside lower left", fontsize=8)
    return figure


def draw_change(change: str, curve: dict, systems: list[str]) -> Figure:
    """Draw balanced accuracy over the strength of a change of the pictures, the unchanged patch marked."""
    title, label = CHANGES[change]
    figure, axes = start_figure(0.66 * WIDTH)
    places = np.arange(len(curve["strengths"]))
    unchanged = curve["strengths"].index(curve["unchanged"])
    axes.axvspan(unchanged - 0.3, unchanged + 0.3, color="#EEF1F5", zorder=0)
    for system, shift in zip(systems, (-0.06, 0.06), strict=True):
        if change != "orientation":
            values = [score["value"] for score in curve[system]]
            axes.plot(places + shift, values, color=COLOURS[system], linewidth=1.2, alpha=0.8)
        for place, score in zip(places + shift, curve[system], strict=True):
            mark_score(axes, score, place, system, horizontal=False)
    axes.set_xticks(
        places, [f"{strength:g}" if change != "orientation" else strength for strength in curve["strengths"]]
    )
    axes.set(xlabel=label, ylabel="balanced accuracy, %", title=title, ylim=(0, 1.04))
    axes.grid(axis="y")
    set_percent(axes.yaxis)
    name_systems(axes, systems)
    return figure


def draw_variants(title: str, names: list[str], variants: list[dict], systems: list[str]) -> Figure:
    """Draw balanced accuracy under each wording or order of the classes, the recipe's own on top."""
    figure, axes = start_figure(0.42 * len(variants) + 1.15)
    for place, variant in enumerate(variants):
        for system, shift in zip(systems, (-0.12, 0.12), strict=True):
            mark_score(axes, variant[system], place + shift, system, horizontal=True)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="balanced accuracy, % (95 % interval)", title=title, xlim=(0, 1.02))
    axes.grid(axis="x")
    set_percent(axes.xaxis)
    name_systems(axes, systems)
    return figure


def draw_positions(positions: dict[str, dict]) -> Figure:
    """Draw how much more often each place in the list of classes is chosen than it is right; system -> positions."""
    figure, axes = start_figure(0.66 * WIDTH)
    axes.axhline(0, color="#6B7280", linewidth=1)
    for (system, entry), shift in zip(positions.items(), (-0.08, 0.08), strict=True):
        for place, bias in enumerate(entry["bias"], start=1):
            mark_score(axes, bias, place + shift, system, horizontal=False)
    axes.set_xticks(range(1, len(entry["bias"]) + 1, 1 + len(entry["bias"]) // MANY))
    axes.set(xlabel="place in the list", ylabel="chosen minus\nright, points", title="Place in the list of classes")
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{100 * value:+.0f}".replace("-", "−") if round(100 * value) else "0"
    )
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    name_systems(axes, list(positions))
    return figure


def shorten(name: str) -> str:
    """Return a name of at most `LONGEST` letters: its beginning and its end, since either may tell names apart."""
    if len(name) <= LONGEST:
        return name
    kept = (LONGEST - 1) // 2
    return f"{name[:kept].rstrip()}…{name[-kept:].lstrip()}"


def _wrap(name: str) -> str:
    """A name on as few lines of `WRAP` letters as hold it, all about as long."""
    ways = (textwrap.wrap(name, width) for width in range(min(WRAP, max(map(len, name.split()))), WRAP + 1))
    return "\n".join(min(ways, key=lambda lines: (len(lines), max(map(len, lines)))))


def start_figure(height: float, width: float = WIDTH):
    """Return a figure of `height` by `width` inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def mark_score(axes, score: dict, place: float, kind: str, horizontal: bool) -> None:
    """Draw a score with its interval."""
    if score["value"] is None:
        return
    low, high = score["ci95"] or (score["value"], score["value"])
    x, y = ([low, high], [place, place]) if horizontal else ([place, place], [low, high])
    axes.plot(x, y, color=COLOURS[kind], linewidth=1.6, solid_capstyle="butt")
    x, y = (score["value"], place) if horizontal else (place, score["value"])
    face = "white" if kind == "baseline" else COLOURS[kind]
    axes.plot(x, y, MARKERS[kind], color=COLOURS[kind], mfc=face, markersize=5.5, mew=1.3, zorder=3, clip_on=False)


def name_systems(axes, systems: list[str]) -> None:
    """Add a legend of the systems below the axes."""
    for system in systems:
        face = "white" if system == "baseline" else COLOURS[system]
        axes.plot([], [], MARKERS[system], ls="-", color=COLOURS[system], mfc=face, ms=5.5, label=NAMES[system])
    axes.figure.legend(loc="outside lower left", ncols=2, fontsize=8)


def set_percent(axis) -> None:
    """Write the parts from 0 to 1 along an axis as percent."""
    axis.set_major_locator(matplotlib.ticker.MultipleLocator(0.2))
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
