"""Plots as inline SVG that takes its colours and its font from the page, so that it fits light and dark."""

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ace.drawing.words import NUM_COLOURS, encoder_mark, encoder_name

# Placeholder colours and the style sheet's variables that replace them.
INK, MUTED, REFERENCE = "#010101", "#020202", "#030303"
ENCODERS = tuple(f"#0400{number:02x}" for number in range(NUM_COLOURS))
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    REFERENCE: "reference",
    **{colour: encoder_mark(number) for number, colour in enumerate(ENCODERS)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
TITLE_CHARACTERS = 40
"""Longest line of a curve's title; a longer title is broken."""
LEGEND_COLUMNS = 3
ROC_COLUMNS = 4
COUNTERS = {"step", "epoch", "images"}
SCHEDULES = {"lr", "weight_decay", "momentum"}
Values = Float[np.ndarray, " values"]


def encoder_colour(number: int) -> str:
    """Return the colour of an encoder by its position in `encoders`."""
    return ENCODERS[number % NUM_COLOURS]


def density_plot(cosines: Mapping[str, tuple[Values, Values]]) -> str:
    """Densities of true and mismatched cosines, each scaled to its peak, one panel per encoder on one axis.

    Args:
        cosines: Encoder → (true, mismatched).
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.7 * len(cosines)), layout="constrained")
        panels = figure.subplots(len(cosines), 1, sharex=True, squeeze=False)[:, 0]
        low = min(float(values.min()) for pair in cosines.values() for values in pair)
        grid = np.linspace(max(-1.0, low - 0.05), 1.02, 400)
        for number, (axes, (name, (true, mismatched))) in enumerate(zip(panels, cosines.items(), strict=True)):
            for values, colour, alpha, label in (
                (mismatched, REFERENCE, 0.35, "parts of another region"),
                (true, encoder_colour(number), 0.45, "its own parts"),
            ):
                height = kernel_density(values, grid)
                height /= height.max()
                axes.fill_between(grid, height, color=colour, alpha=alpha, linewidth=0, label=label)
                axes.plot(grid, height, color=colour, linewidth=1.2)
            axes.set_title(encoder_name(name))
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.legend(loc="upper left", borderaxespad=0, handlelength=1.2)
        panels[-1].set_xlabel("cosine of E(whole) with the mean of E(parts)")
        return _svg(figure, "density")


def error_curves(errors: Mapping[str, Values], baselines: Mapping[str, Values], success_px: float) -> str:
    """Share of landmarks found within a radius, for encoders and for baselines.

    Args:
        errors: Encoder → radial errors in px of a 1024-px canvas.
        baselines: Likewise, of guesses that need no encoder.
        success_px: Marked radius.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        limit = 4 * success_px
        for number, (name, values) in enumerate({**errors, **baselines}.items()):
            radii = np.sort(values)
            share = np.arange(1, len(radii) + 1) / len(radii)
            shown = radii <= limit
            edges = np.concatenate([[0], radii[shown], [limit]])
            heights = np.concatenate([[0], share[shown], [shown.mean()]])
            is_encoder = name in errors
            axes.step(
                edges,
                heights,
                where="post",
                color=encoder_colour(number) if is_encoder else REFERENCE,
                linewidth=2 if is_encoder else 1.2,
                linestyle="-" if is_encoder else ("--" if "same" in name else ":"),
                label=encoder_name(name),
            )
        axes.axvline(success_px, color=MUTED, linewidth=0.6)
        axes.annotate(f" {success_px:g} px", (success_px, 0.01), color=MUTED, fontsize=8)
        axes.set(xlim=(0, limit), ylim=(0, 1), xlabel="radius in px of a 1024-px canvas", ylabel="share found within")
        figure.legend(loc="outside upper left", ncols=LEGEND_COLUMNS, columnspacing=1.4, handlelength=1.6)
        return _svg(figure, "errors")


def roc_panels(curves: Mapping[str, Mapping[str, tuple[Values, Values]]]) -> str:
    """Draw the share of the images with a label that is found against the share of the others that is taken for it.

    Args:
        curves: Label → encoder → false and true positive rates, ascending; a panel a label, `ROC_COLUMNS` in a row.
    """
    num_rows = math.ceil(len(curves) / ROC_COLUMNS)
    num_names = math.ceil(max(map(len, curves.values())) / LEGEND_COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * ROC_COLUMNS, 0.2 + 0.2 * num_names + 2.3 * num_rows), layout="constrained")
        panels = figure.subplots(num_rows, ROC_COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (label, own) in zip(panels, curves.items(), strict=False):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.6)
            for number, (name, (false, true)) in enumerate(own.items()):
                axes.plot(
                    false,
                    true,
                    color=encoder_colour(number),
                    linewidth=1.6,
                    label=encoder_name(name) * (axes is panels[0]),
                )
            axes.set_title("\n".join(textwrap.wrap(label, TITLE_CHARACTERS // 2)), parse_math=False)
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        for axes in panels[max(len(curves) - ROC_COLUMNS, 0) : len(curves)]:
            axes.tick_params(labelbottom=True)  # no panel below it has the numbers
        for axes in panels[len(curves) :]:
            axes.remove()
        middle = min(len(curves), ROC_COLUMNS) / ROC_COLUMNS / 2
        figure.supxlabel("share of the images without it", x=middle, fontsize=9)
        figure.supylabel("share of the images with it", fontsize=9)
        figure.legend(loc="outside upper left", ncols=LEGEND_COLUMNS, columnspacing=1.4, handlelength=1.6)
        return _svg(figure, "roc")


def scatter_panels(points: Mapping[str, Float[np.ndarray, "points 2"]], colours: Sequence[str]) -> str:
    """Points on a plane, one panel per encoder; axes have no unit.

    Args:
        points: Encoder → points.
        colours: Of each point, as #rrggbb.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(points), 2.8), layout="constrained")
        panels = figure.subplots(1, len(points), squeeze=False)[0]
        for axes, (name, own) in zip(panels, points.items(), strict=True):
            axes.scatter(own[:, 0], own[:, 1], s=9, c=list(colours), linewidths=0)
            axes.set_title(encoder_name(name))
            axes.set(xticks=[], yticks=[])
        return _svg(figure, "scatter")


def interval_chart(panels: Mapping[str, Sequence[tuple[float, float, float]]], encoders: Sequence[str]) -> str:
    """Draw figures as points with their intervals, one panel per kind of figure and one row per encoder.

    Args:
        panels: Title → (value, low, high) of each encoder; NaN for one that was not measured.
        encoders: Their names, from top to bottom.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 1.7 * len(panels), 0.8 + 0.24 * len(encoders)), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, (title, intervals) in zip(axes, panels.items(), strict=True):
            for row, (value, low, high) in enumerate(intervals):
                panel.plot([low, high], [row, row], color=encoder_colour(row), linewidth=1.6)
                panel.plot([value], [row], "o", color=encoder_colour(row), markersize=4)
            panel.set_title(title)
            panel.locator_params(axis="x", nbins=4)
        axes[0].set_yticks(range(len(encoders)), [encoder_name(name) for name in encoders])
        axes[0].invert_yaxis()
        return _svg(figure, "intervals")


def curve(title: str, steps: Values, values: Values, smoothing: int) -> str:
    """Draw one logged quantity over the training, the raw rows behind their running mean."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3, 1.95), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, values, color=encoder_colour(0), linewidth=0.7, alpha=0.35)
        axes.plot(steps, running_mean(values, smoothing), color=encoder_colour(0), linewidth=1.6)
        axes.set_title("\n".join(textwrap.wrap(title, TITLE_CHARACTERS)))
        _tidy(axes)
        return _svg(figure, title)


def kernel_density(values: Values, grid: Float[np.ndarray, " grid"]) -> Float[np.ndarray, " grid"]:
    """Gaussian kernel density with Silverman's bandwidth; a constant becomes a narrow peak."""
    spread = min(float(values.std()), float(np.subtract(*np.percentile(values, [75, 25]))) / 1.34 or np.inf)
    bandwidth = max(0.9 * spread * len(values) ** -0.2, 0.004)
    kernels = np.exp(-0.5 * ((grid[:, None] - values) / bandwidth) ** 2)
    density: Float[np.ndarray, " grid"] = kernels.mean(axis=1) / (bandwidth * np.sqrt(2 * np.pi))
    return density


def running_mean(values: Values, width: int) -> Values:
    """Mean over up to `width` values around each one; shorter at the ends, so that nothing is invented there."""
    half = width // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    mean: Values = (sums[last] - sums[first]) / (last - first)
    return mean


def _tidy(axes: Axes) -> None:
    axes.margins(x=0.01)
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=4)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))


def _svg(figure: Figure, salt: str) -> str:
    text = io.StringIO()
    # Ids in one page must differ between plots and stay the same between runs.
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for placeholder, variable in VARIABLES.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    svg = re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--sans)", svg)
    svg = re.sub(r'<g id="[^"]*"(/?)>', r"<g\1>", svg)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg)


def curve_panels(rows: Sequence[dict[str, float]], names: dict[str, str], smoothing: int) -> list[str]:
    """Draw a curve of every quantity but the counters; known ones first, in the order and words of `names`.

    A loss that is also logged above its floor (`…_excess`) is left out: it is the same curve.
    """
    logged = dict.fromkeys(name for row in rows for name in row)
    is_shown = {name: name not in COUNTERS and f"{name}_excess" not in logged for name in logged}
    panels = []
    for name in dict.fromkeys((*names, *logged)):
        if not is_shown.get(name):
            continue
        present = [(row["step"], row[name]) for row in rows if name in row and np.isfinite(row[name])]
        if len(present) > 1:
            steps, values = np.array(present, dtype=float).T
            width = 1 if name in SCHEDULES else min(smoothing, len(values) // 6)
            panels.append(curve(names.get(name, name), steps, values, width))
    return panels
