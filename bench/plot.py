"""The plot: throughput against the number of users, a line for each contestant."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot


def throughput(medians: dict[str, dict[int, float]], path: Path) -> None:
    """Write users a second against users, both on logarithmic axes, as SVG."""
    # The same text for the same figures, so that a repetition changes what has changed only.
    matplotlib.rcParams["svg.hashsalt"] = "bench"
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, rates in medians.items():
        axes.plot(list(rates), list(rates.values()), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="users", ylabel="users a second")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
