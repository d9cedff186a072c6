"""All that the author of a migration imports: see docs/your-own-migration.md."""

from models.engine.authored import Authored as Step
from models.engine.checks.expects import Expect
from models.engine.copy import Copy
from models.engine.migration import Migration
from models.engine.parts import Example, Fill, Insert, Reject, derived_id
from models.engine.schema.declaration import KeyOf
from models.engine.source import Source
from models.engine.step import Context, Counts, Scope

__all__ = [
    "Context",
    "Copy",
    "Counts",
    "Example",
    "Expect",
    "Fill",
    "Insert",
    "KeyOf",
    "Migration",
    "Reject",
    "Scope",
    "Source",
    "Step",
    "derived_id",
]
