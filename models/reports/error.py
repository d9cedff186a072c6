"""What every report says after an error."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorReport(BaseModel):
    """What went wrong and how to fix it."""

    kind: str
    message: str
    hint: str = ""
