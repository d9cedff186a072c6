"""The plot: pods by deployment, and the backlog that they were scaled on, over time."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot


def draw(
    seconds: list[float],
    pods: dict[str, list[int]],
    backlog: dict[str, list[float]],
    events: list[tuple[float, str]],
    path: Path,
) -> None:
    """Write both as SVG, the events as lines across."""
    matplotlib.rcParams["svg.hashsalt"] = "autoscale"
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(8, 5), sharex=True, layout="constrained"
    )
    above.stackplot(seconds, list(pods.values()), labels=list(pods), step="post", alpha=0.8)
    above.set(ylabel="worker pods")
    above.legend(fontsize="small", loc="upper right")
    for values in backlog.values():
        below.step(seconds, values, where="post")
    below.set(xlabel="seconds", ylabel="batches that want a worker")
    for axes in (above, below):
        axes.grid(visible=True, alpha=0.3)
        for when, _ in events:
            axes.axvline(when, color="black", linewidth=0.8, linestyle="dotted")
    for when, what in events:
        below.annotate(what, (when, below.get_ylim()[1] * 0.95), rotation=90, va="top", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
