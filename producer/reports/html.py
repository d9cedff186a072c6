"""The report as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from sqlalchemy import Engine

from models.errors import Misconfigured
from models.reports.run import RunReport
from models.reports.words import number
from models.settings import Settings
from producer.reports import history, plots
from producer.reports.history import Record

STATES = {
    "preparing": "is being prepared",
    "running": "is under way",
    "paused": "is paused",
    "completed": "is complete",
    "completed_with_quarantine": "is complete, with quarantined rows",
    "failed": "failed",
    "cancelled": "was cancelled",
    "rolling_back": "is being rolled back",
    "rolled_back": "was rolled back",
}


def write(engine: Engine, settings: Settings, run_id: str | None, file: Path | None) -> Path:
    """Write the report of a run (the newest by default), below MIGRATION_HOME unless said.

    Replaces an earlier one. Raises UnknownRun, and Misconfigured where the file cannot be written.
    """
    found = history.read(engine, settings, run_id)
    place = file or settings.home.absolute() / "reports" / f"{found.report.run_id}.html"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(render(found), encoding="utf-8")
    except OSError as failure:
        raise Misconfigured(
            f"The report cannot be written to {place}: {failure.strerror}",
            hint="Name a file that you may write: producer report --output FILE",
        ) from None
    return place


def render(found: Record) -> str:
    """The page."""
    return (
        environment()
        .get_template("report.html")
        .render(
            record=found,
            report=found.report,
            sentence=sentence(found.report),
            throughput=plots.throughput(found.pace) if found.pace.rates else None,
            durations=plots.durations(found.durations) if found.durations else None,
            style=Markup(style()),
        )
    )


def sentence(found: RunReport) -> str:
    """The outcome as one would say it."""
    (name, first), error = found.first, found.error
    what = f"canary ({found.canary})" if found.canary else "run"
    said = f"The {what} {STATES.get(found.state or '', 'is unknown')}: {first.migrated:,} of"
    said += f" {first.total:,} {name} are migrated after {duration(found.seconds)}"
    quarantined = sum(found.quarantine.values())
    if quarantined:
        said += f", {number(quarantined, 'row')} {'is' if quarantined == 1 else 'are'} quarantined"
    checked, reconciled = found.verification, found.reconciliation
    if checked.state == "done" and reconciled.state in ("done", "none"):
        said += "; every row was compared"
        if reconciled.state == "done":
            said += f", {reconciled.checked:,} {reconciled.rows} were reconciled"
        wrong = {"difference": checked.differences, "discrepancy": reconciled.discrepancies}
        numbers = [number(count, what) for what, count in wrong.items() if count]
        said += f", with {' and '.join(numbers)}" if numbers else ", and nothing differs"
    return f"{said}. {error.message}." if error else f"{said}."


def duration(seconds: float) -> str:
    """Seconds as one would say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@cache
def environment() -> Environment:
    """Where the pages are; everything that they show is escaped."""
    found = Environment(
        loader=PackageLoader("producer", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= FILTERS
    return found


@cache
def style() -> str:
    """The style sheet of report and console."""
    return (resources.files("producer") / "pages" / "style.css").read_text(encoding="utf-8")


def _moment(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "not yet"


def _clock(at: datetime | str) -> str:
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _money(value: float) -> str:
    return f"{value:,.2f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


FILTERS = {
    "clock": _clock,
    "duration": duration,
    "moment": _moment,
    "number": _number,
    "money": _money,
    "words": _words,
}
