"""Draw a map: the picture, the class of each square, and how likely each class is where."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from histolab_sft.data.slides.grid import Grid
from histolab_sft.evaluation.figures import LONGEST, shorten
from histolab_sft.mapping.score import PROBABILITY

COLUMNS = 3
PANEL = 3.2  # inches, the longer side of a picture in a panel
WITHHELD = "#D1D5DB"
BAR = 0.25  # of the picture's width, which the scale bar may take at most


def choose_colours(options: list[str]) -> dict[str, tuple[float, float, float]]:
    """Return a colour for each class, the same for the same list of classes."""
    if len(options) <= 10:
        return dict(zip(options, matplotlib.colormaps["tab10"].colors, strict=False))
    spread = matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, len(options)))
    return {option: tuple(map(float, colour[:3])) for option, colour in zip(options, spread, strict=True)}


def draw_map(grid: Grid, table: pd.DataFrame, options: list[str], mpp: float | None) -> Figure:
    """Draw the map that `table` (from `score_squares`) is of.

    Args:
        mpp: µm per pixel of a patch, for a scale bar; None where it isn't known.
    """
    width, height = grid.size
    shape = np.array([width, height]) / max(width, height) * PANEL
    n_columns = 2 if len(options) == 2 else COLUMNS  # four panels are a square
    n_rows = -(-(2 + len(options)) // n_columns)
    legend = 0.2 * -(-(len(options) + 1) // n_columns)
    figure = Figure(figsize=(n_columns * (shape[0] + 0.25), n_rows * (shape[1] + 0.4) + legend), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    shown, classes, *likely = panels[: 2 + len(options)]
    shown.imshow(grid.overview, extent=(0, width, height, 0), interpolation="antialiased")
    shown.set_title("picture")
    if mpp is not None:
        _draw_scale(shown, grid.size, mpp * grid.patch_size / grid.step[0])
    _draw_classes(classes, grid, table, options)
    for axes, option in zip(likely, options, strict=True):
        values = _spread(grid, table, table[PROBABILITY + option].to_numpy())
        image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, extent=_find_extent(grid), interpolation="nearest")
        axes.set_title(f"probability of {shorten(option)}")
        axes.set(xlim=(0, width), ylim=(height, 0))
    figure.colorbar(image, ax=list(panels), shrink=0.5, aspect=30, pad=0.02)
    return figure


def _draw_classes(axes, grid: Grid, table: pd.DataFrame, options: list[str]) -> None:
    """Colour the squares by their class over the picture in grey; withheld ones are grey, squares not asked clear."""
    colours = choose_colours(options)
    squares = np.zeros((*grid.tissue.shape, 4))
    fills = [
        matplotlib.colors.to_rgba(WITHHELD, 0.8) if withheld else (*colours[answer], 0.65)
        for answer, withheld in zip(table["answer"], table["withheld"], strict=True)
    ]
    squares[table["row"], table["column"]] = fills
    width, height = grid.size
    axes.imshow(grid.overview.convert("L"), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    axes.imshow(squares, extent=_find_extent(grid), interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(height, 0), title="likeliest class")
    counts = count_answers(table, options)
    handles = [
        Patch(color=colours.get(name, WITHHELD), label=f"{shorten(name)} {say_share(count, len(table))}")
        for name, count in counts.items()
    ]
    longest = max(len(handle.get_label()) for handle in handles)
    ncols = 2 if longest > LONGEST else COLUMNS
    axes.figure.legend(
        handles=handles, loc="outside lower left", ncols=ncols, title="likeliest class", alignment="left"
    )


def count_answers(table: pd.DataFrame, options: list[str]) -> dict[str, int]:
    """Return how many squares each class was given to, the most frequent first, and how many were withheld."""
    kept = table.loc[~table["withheld"], "answer"].value_counts()
    counts = {option: int(kept[option]) for option in sorted(kept.index, key=lambda name: (-kept[name], name))}
    withheld = int(table["withheld"].sum())
    return counts | ({"withheld": withheld} if withheld else {})


def say_share(count: int, total: int) -> str:
    """Return a part of all squares in percent, which is never 0 of some."""
    return "<1%" if 0 < count < 0.005 * total else f"{count / total:.0%}"


def _spread(grid: Grid, table: pd.DataFrame, values: np.ndarray) -> np.ndarray:
    """Return values of squares in their places, NaN in those that weren't asked."""
    spread = np.full(grid.tissue.shape, np.nan)
    spread[table["row"], table["column"]] = values
    return spread


def _find_extent(grid: Grid) -> tuple[float, float, float, float]:
    rows, columns = grid.tissue.shape
    return (0, columns * grid.step[0], rows * grid.step[1], 0)


def _draw_scale(axes, size: tuple[int, int], mpp: float) -> None:
    width, height = size
    lengths = [step * 10.0**power for power in range(6) for step in (1, 2, 5)]  # µm
    length = max((value for value in lengths if value / mpp <= BAR * width), default=lengths[0])
    x, y = 0.04 * width, 0.96 * height
    axes.plot([x, x + length / mpp], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    axes.text(x, y - 0.015 * height, text, va="bottom", fontsize=8)
