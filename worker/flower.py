"""How Flower starts here, `celery -A worker flower`: what it does by default would be open to all.

Flower reads its settings from FLOWER_*, its command line and `flowerconfig.py`, later ones first;
what is set here stands where none of them says else.
"""

from __future__ import annotations

import os
import sys

from models.settings import Settings


def prepare(settings: Settings) -> None:
    """No remote control; without a login, nobody but this machine. Does nothing for a worker."""
    if "flower" not in sys.argv:
        return
    os.environ.setdefault("FLOWER_READ_ONLY", "true")
    # A batch's ids are its arguments, and its outcome is its result.
    os.environ.setdefault("FLOWER_TASKS_COLUMNS", "name,args,state,result,received,runtime,worker")
    if settings.flower_auth:
        os.environ["FLOWER_BASIC_AUTH"] = settings.flower_auth.get_secret_value()
    elif not os.environ.get("FLOWER_AUTH"):
        os.environ.setdefault("FLOWER_ADDRESS", "127.0.0.1")
