"""Render the scores of a model as one HTML page without other files or network: tables, and plots as inline SVG."""

import io
from pathlib import Path

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from training.common.files import write_text
from training.corpus.report import FEW
from training.evaluation.candidates import FLOOR
from training.evaluation.overlap import RECALL


FOLDER = Path(__file__).parent
# Plots are drawn in these colours, then given those of the page, which follow the reader's light or dark scheme.
INK, MAIN, FAINT = "#010203", "#040506", "#070809"
PAGE_COLOURS = {INK: "currentColor", MAIN: "var(--main)", FAINT: "var(--faint)"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sener",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
SIZE = 4.2, 3.1  # inches


def write_report(result: dict, path: str | Path) -> None:
    """
    Write the page.

    Args:
        result: the object that training/score.py prints.

    Raises:
        WriteError: the file cannot be written.
    """
    write_text(path, render(result), errors="replace")


def render(result: dict) -> str:
    """The page of a result as HTML; every text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "interval": interval, "is_defined": is_defined}
    lengths = {f"{name}\n({entry['tp'] + entry['fn']:,})".replace(" ", "\n"): entry
               for name, entry in result["by_length"].items()}  # fmt: skip
    deciles = {name.split("-")[0]: entry for name, entry in result["by_position"].items()}
    plots = {
        "position": recall_plot(deciles, "position", "per cent of the document before the entity"),
        "length": recall_plot(lengths, "length", "words (gold entities)"),
        "calibration": calibration_plot(result["calibration"]),
        "curve": curve_plot(result["overlap_curve"]["points"], result["overlap"]),
    }
    return environment.get_template("score_report.html").render(result=result, plots=plots, floor=FLOOR, few=FEW)


def percent(fraction: float, decimals: int = 1) -> str:
    return f"{100 * fraction:.{decimals}f}"


def interval(entry: dict, ratio: str) -> str:
    low, high = entry["interval"][ratio]
    return f"{100 * low:.1f}–{100 * high:.1f}"


def is_defined(entry: dict, ratio: str) -> bool:
    """Whether the ratio's denominator is above 0."""
    return entry["tp"] + {"precision": entry["fp"], "recall": entry["fn"], "f1": entry["fp"] + entry["fn"]}[ratio] > 0


def recall_plot(groups: dict[str, dict], what: str, axis: str) -> Markup:
    """Plot the recall of each group that has gold entities, with its interval."""
    groups = {name: entry for name, entry in groups.items() if is_defined(entry, "recall")}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        style(axes)
        for place, entry in enumerate(groups.values()):
            axes.bar(place, entry["recall"], width=0.7, color=FAINT)
            axes.vlines(place, *entry["interval"]["recall"], color=INK, linewidth=1)
            axes.hlines(entry["recall"], place - 0.35, place + 0.35, color=MAIN, linewidth=2.5)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlim(-0.6, max(len(groups), 3) - 0.4)
        axes.set_xlabel(axis)
        axes.set_ylabel("recall")
        return as_svg(figure, f"Recall by {what}")


def calibration_plot(bins: list[dict]) -> Markup:
    """Plot the share of right spans by score, with the diagonal of a calibrated model; below, the number of spans."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        style(axes)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        axes.plot([own["score"] for own in bins], [own["right"] for own in bins], "o-", color=MAIN, markersize=4)
        axes.set_ylabel("right")
        counts.bar([(own["low"] + own["high"]) / 2 for own in bins], [own["count"] for own in bins], width=0.09,
                   color=FAINT)  # fmt: skip
        counts.set_yscale("log")
        counts.set_ylim(0.8, 2 * max([10, *(own["count"] for own in bins)]))
        counts.yaxis.set_major_locator(LogLocator(numticks=4))
        counts.yaxis.set_minor_locator(NullLocator())
        counts.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        counts.set_xlim(0, 1)
        counts.set_xlabel("score")
        counts.set_ylabel("spans")
        return as_svg(figure, "Calibration: share of right spans by score")


def curve_plot(points: list[dict], chosen: dict) -> Markup:
    """Plot precision against recall for all thresholds; the dot is at the model's own thresholds."""
    recall, precision = ([point[name] for point in points] for name in ("recall", "precision"))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        style(axes)
        axes.axvline(RECALL, color=INK, linewidth=0.8, linestyle=":")
        axes.step([0, *recall], [*precision[:1], *precision] or [0], where="pre", color=MAIN, linewidth=1.5)
        axes.plot(chosen["recall"], chosen["precision"], "o", color=INK, markersize=5, clip_on=False)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        return as_svg(figure, "Precision by recall, by overlap")


def style(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def as_svg(figure: Figure, label: str) -> Markup:
    """The figure as an SVG element in the page's colours, with a label for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    for drawn, shown in PAGE_COLOURS.items():
        svg = svg.replace(drawn, shown)
    return Markup(svg)
