"""The plots of the report, as places for its template to draw at.

All places are percentages of the plot, so that one drawing suits every width, and letters keep
their size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import zip_longest

from producer.reports.history import Durations, Pace

# The style sheet has so many colors.
COLORS = 8
THROUGHPUT_PIXELS, STAGE_PIXELS = 220, 28
BAR_SHARE = 0.3


@dataclass(frozen=True)
class Plot:
    """Labels with their places on both axes; bars as color, x, y, width, height; dots as x, y."""

    title: str
    pixels: int
    left: list[tuple[float, str]]
    below: list[tuple[float, str]]
    bars: list[tuple[int, float, float, float, float]]
    dots: list[tuple[float, float]] = field(default_factory=list)
    legend: list[tuple[int, str]] = field(default_factory=list)

    @property
    def label_letters(self) -> int:
        """How much room the labels on the left take."""
        return max(len(label) for _, label in self.left)


def throughput(pace: Pace) -> Plot:
    """Rows a second over time, a color for each stage."""
    highest = max(map(sum, zip_longest(*pace.rates.values(), fillvalue=0.0)))
    tops = [100.0] * max(map(len, pace.rates.values()))
    width, seconds = 100 / len(tops), pace.width * len(tops)
    legend, bars = [], []
    for number, (stage, rates) in enumerate(pace.rates.items()):
        color = number % COLORS + 1
        legend.append((color, stage))
        for place, rate in enumerate(rates):
            height = 100 * rate / highest
            tops[place] -= height
            if rate:
                bars.append((color, place * width, tops[place], width, height))
    return Plot(
        title="Rows a second over time, by stage",
        pixels=THROUGHPUT_PIXELS,
        left=[(100 - 100 * tick / highest, f"{tick:,.10g}") for tick in _ticks(highest)],
        below=[(100 * tick / seconds, f"{tick:,.10g}") for tick in _ticks(seconds)],
        bars=bars,
        legend=legend,
    )


def durations(found: list[Durations]) -> Plot:
    """A bar for each stage, from the 5th to the 95th percentile, and a dot at the median.

    The axis is logarithmic, and as many whole decades long as it must be.
    """
    first = math.floor(_log(min(each.low for each in found)))
    last = max(math.ceil(_log(max(each.high for each in found))), first + 1)

    def across(seconds: float) -> float:
        return 100 * (_log(seconds) - first) / (last - first)

    height = 100 / len(found)
    rows = [((number + 0.5) * height, each) for number, each in enumerate(found)]
    return Plot(
        title="Seconds a batch took, by stage",
        pixels=STAGE_PIXELS * len(found),
        left=[(y, each.stage) for y, each in rows],
        below=[(across(10**power), f"{10**power:,.10g}") for power in range(first, last + 1)],
        bars=[
            (1, across(each.low), y - BAR_SHARE * height / 2,
             across(each.high) - across(each.low), BAR_SHARE * height)
            for y, each in rows
        ],
        dots=[(across(each.median), y) for y, each in rows],
    )  # fmt: skip


def _log(seconds: float) -> float:
    return math.log10(max(0.001, seconds))


def _ticks(highest: float) -> list[float]:
    """Up to seven round numbers from 0 to the highest: 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10(highest / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if highest <= 6 * power * factor)
    return [step * number for number in range(int(highest / step) + 1)]
