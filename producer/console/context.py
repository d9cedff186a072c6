"""What the pages and actions of the console work on."""

from __future__ import annotations

from dataclasses import dataclass, field

from flask import current_app
from sqlalchemy import Engine

from models.settings import Settings
from producer.console.presence import Presence


@dataclass(frozen=True)
class Console:
    """The database, the settings, and who of the workers answers."""

    engine: Engine
    settings: Settings
    presence: Presence = field(default_factory=Presence)


def here() -> Console:
    """The console that answers this request."""
    found: Console = current_app.extensions["console"]
    return found
