"""Commands in any order, at any moment: the last run ends right, and its rollback undoes it all."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

import pytest
import redis
from sqlalchemy import text

from models.settings import DEFAULT_GRANTS, parse_grants
from tests import oracle, variants
from tests.acceptance.conftest import Ended, Product, kill_group
from tests.acceptance.test_window import hours

SEEDS = range(3)
LEGACY = ("users", "gpt_subscriptions", "projects")
KILL, FLUSH, RUN, BAD, CLOSED, KEY = "kill", "flush", "a run", "a bad row", "closed", "a key"
COMMANDS = (
    *2 * (("enqueue-all",), ("resume",), ("cancel", "--yes"), ("rollback", "--yes")),
    ("enqueue-all", "--percent", "20"),
    ("enqueue-all", "--only", KEY),
    ("pause",),
    ("retry",),
    ("rollback", "--force", "--yes"),
    ("rollback", RUN, "--yes"),
    ("verify",),
    ("reconcile",),
    ("tune", "--window", CLOSED),
    ("tune", "--window", "default"),
    ("tune", "--batch-size", "7"),
    ("quarantine", "--accept", BAD),
    ("quarantine", "--unaccept", BAD),
    ("schema", "upgrade"),
    ("schema", "downgrade", "--yes"),
    ("status",),
    ("doctor",),
    ("repair", "missing-data"),
    (KILL,),
    (FLUSH,),
)


class Night:
    """A school, a worker of one process, and an operator who is not sure."""

    def __init__(self, product: Product, dice: random.Random, stack: ExitStack) -> None:
        self._product, self._dice, self._stack = product, dice, stack
        self._worker = stack.enter_context(product.worker("--concurrency=1"))

    def go_on(self) -> None:
        """One command, or one fault, and some time."""
        words = self._dice.choice(COMMANDS)
        if words == (KILL,):
            kill_group(self._worker)
            self._worker = self._stack.enter_context(self._product.worker("--concurrency=1"))
        elif words == (FLUSH,):
            redis.Redis.from_url(self._product.environment["REDIS_URL"]).flushdb()
        else:
            self.run(*map(self._fill_in, words))
        time.sleep(self._dice.choice((0, 0, 0.1, 0.5, 2)))

    def run(self, *words: str) -> Ended:
        """The command, which may refuse, but neither break nor hang."""
        ended = self._product.run(*words)
        print(words, ended.status, ended.err.splitlines()[-1:])
        assert ended.status in range(5), ended
        assert "Traceback" not in ended.err and "a bug" not in ended.err, ended
        return ended

    def _fill_in(self, word: str) -> str:
        if word == CLOSED:
            return hours(3, 6)
        if word == RUN:
            runs = self.ask("SELECT string_agg(id, ' ' ORDER BY id) FROM migration.runs").split()
            return self._dice.choice(runs or ["none"])
        queries = {
            BAD: "SELECT max(legacy_key) FROM migration.quarantine",
            KEY: "SELECT max(id) FROM users",
        }
        return (self.ask(queries[word]) or "none") if word in queries else word

    def ask(self, query: str) -> str:
        """One value as text; empty where there is none, or no ledger."""
        with self._product.engine.connect() as connection:
            has_ledger = connection.scalar(text("SELECT to_regclass('migration.runs')"))
            if "migration." in query and not has_ledger:
                return ""
            return str(connection.scalar(text(query)) or "")

    def rows(self, columns: dict[str, str]) -> dict[str, str]:
        """What the legacy tables hold, in these columns."""
        return {
            name: self.ask(
                "SELECT md5(string_agg(r, '|' ORDER BY r)) || count(*)"
                f" FROM (SELECT ROW({these})::text AS r FROM {name}) AS t"
            )
            for name, these in columns.items()
        }


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_any_order_of_commands_ends_right(product: Product, seed: int) -> None:
    dice = random.Random(seed)
    product.environment["MIGRATION_BATCH_SIZE"] = "5"
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
        before = oracle.snapshot(connection, oracle.Names())
    with ExitStack() as stack:
        night = Night(product, dice, stack)
        columns = {
            name: night.ask(
                "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute"
                f" WHERE attrelid = '{name}'::regclass AND attnum > 0"
            )
            for name in LEGACY
        }
        was = night.rows(columns)
        for _ in range(dice.randint(6, 14)):
            night.go_on()
        # A canary, a failed run and a rollback may come first.
        for _ in range(6):
            night.run("tune", "--window", "default")
            night.run("resume")
            night.run("status", "--watch")
            last = night.run("enqueue-all", "--wait", "--json")
            if last.status in (0, 3) and last.json["selection"] is None:
                break
        assert last.status in (0, 3), last
        with product.engine.connect() as connection:
            assert oracle.compare_now(connection, before, parse_grants(DEFAULT_GRANTS)) == []
        assert night.run("rollback", "--yes", "--wait").status == 0
        assert night.rows(columns) == was
        assert night.run("schema", "downgrade", "--yes").status == 0
