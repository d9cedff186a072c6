"""The data rules a second time, naively: nothing of the product.

`snapshot` before a run, `expected` from it, and `compare` after the run; `compare_now` where the
application has written since.
"""

from tests.oracle.comparison import compare, compare_now, differences
from tests.oracle.documents import parse
from tests.oracle.rules import DEFAULT, Credit, Expectation, Tool, User, counts, expected
from tests.oracle.since import History, refreshed
from tests.oracle.tables import TARGETS, Names, Row, Snapshot, snapshot

__all__ = [
    "DEFAULT",
    "TARGETS",
    "Credit",
    "Expectation",
    "History",
    "Names",
    "Row",
    "Snapshot",
    "Tool",
    "User",
    "compare",
    "compare_now",
    "counts",
    "differences",
    "expected",
    "parse",
    "refreshed",
    "snapshot",
]
