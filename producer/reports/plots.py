"""The plots of the report: SVG whose colours are the page's own, so that it suits light and dark.

Each comes wide and narrow: letters keep their size on a phone.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from typing import Any

from producer.reports.history import Durations, Pace

# Colours that stand for a variable of the page's style sheet.
_INK, _FAINT = "#010101", "#020202"
_SERIES = [f"#0300{number:02x}" for number in range(1, 9)]
_VARIABLES = {_INK: "var(--ink)", _FAINT: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, 1)
}
_WIDTHS = {"wide": 8.6, "narrow": 3.9}


def throughput(pace: Pace) -> str:
    """Rows a second over time, a colour for each stage."""

    def draw(axes: Any, is_wide: bool) -> None:
        bottom = [0.0] * max(map(len, pace.rates.values()))
        edges = [pace.width * number for number in range(len(bottom) + 1)]
        for (stage, rates), colour in zip(pace.rates.items(), itertools.cycle(_SERIES)):
            top = [low + rate for low, rate in zip(bottom, rates, strict=True)]
            axes.stairs(top, edges, baseline=bottom, fill=True, color=colour, label=stage)
            bottom = top
        axes.set_xlabel("seconds since the start")
        axes.set_ylabel("rows a second")
        axes.set_xlim(0, edges[-1])
        axes.set_ylim(0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(
            ncols=len(pace.rates) if is_wide else 2,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            frameon=False,
            handlelength=1,
            handleheight=1,
        )

    return _both("throughput", "Rows a second over time, by stage", 3.0, draw)


def durations(found: list[Durations]) -> str:
    """A line a stage: from the 5th to the 95th percentile, with the median on it."""

    def draw(axes: Any, is_wide: bool) -> None:
        places = range(len(found))
        axes.hlines(
            places, [d.low for d in found], [d.high for d in found], color=_SERIES[0], linewidth=6
        )
        axes.plot([d.median for d in found], places, "o", color=_INK, markersize=5)
        axes.set_yticks(places, [d.stage for d in found])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_seconds)
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("seconds a batch: the dot is the median,\nthe line holds nine of ten")
        axes.margins(y=0.12)

    return _both("durations", "Seconds a batch took, by stage", 0.9 + 0.3 * len(found), draw)


def _seconds(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.3f}".rstrip("0")


def _both(name: str, title: str, height: float, draw: Callable[[Any, bool], None]) -> str:
    return "".join(_svg(name, kind, title, height, draw) for kind in _WIDTHS)


def _svg(name: str, kind: str, title: str, height: float, draw: Callable[[Any, bool], None]) -> str:
    # A second to import: only who writes a report waits for it.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10,
        "text.color": _INK, "axes.labelcolor": _INK, "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK, "xtick.color": _FAINT, "ytick.color": _FAINT,
        "axes.edgecolor": _FAINT, "grid.color": _FAINT, "grid.linewidth": 0.6,
        "axes.grid": True, "axes.grid.axis": "y" if name == "throughput" else "x",
        "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with rc_context(settings):
        figure = Figure(figsize=(_WIDTHS[kind], height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot(facecolor="none")
        draw(axes, kind == "wide")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue(), f"{name}-{kind}", title, kind)


def _themed(svg: str, name: str, title: str, kind: str) -> str:
    """As part of a page: colours by variable, ids of its own, as wide as the page has room."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub("|".join(_VARIABLES), lambda found: _VARIABLES[found[0]], svg)
    return svg.replace("<svg", f'<svg class="plot {kind}" role="img" aria-label="{title}"', 1)
