"""The old application, going on with its work: one small write after the other, any of them.

It works with any shape in `tests/variants.py` and `tests/shapes.py`: text, integer or uuid keys,
columns that are missing or have another name, tables that are not there, and foreign keys that
refuse to delete a user.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from uuid import UUID

import psycopg2
from sqlalchemy import Connection, Engine, text

from models.postgres import database
from tests.oracle import History, Names

# Types with names in capitals; the first one knows no plain user.
ENUMS = ("userrole", "subscription_status")
GPTS = ("math_tutor", "essay_coach", "lab_partner", "new_gpt")
INTEGERS = ("smallint", "integer", "bigint")
FOREIGN_KEY_VIOLATION = "23503"
# No tool of the application's own has a higher number.
TOOLS = 100
# So many keys of a table are known; a row is found near one of them, by the index.
LANDMARKS = 5_000


class Application:
    """Writes to the legacy tables as an application does that has never heard of a migration.

    The same seed makes the same choices; the keys of new rows begin with `live`, or are of the
    column's own kind. `blocked` counts the deletions that a foreign key refused.
    """

    def __init__(
        self, engine: Engine, *, seed: int, names: Names | None = None, prefix: str = "live"
    ) -> None:
        self.engine, self.names = engine, names or Names()
        self.random = Random(seed)
        self.done: Counter[str] = Counter()
        self.refused: list[str] = []
        self.blocked: Counter[str] = Counter()
        self.history = History()
        self._prefix, self._count = prefix, 0
        self.is_sparing = False
        self._columns: dict[str, dict[str, str]] = {}
        self._landmarks: dict[str, list[str]] = {}
        self._made: dict[str, list[str]] = {}
        self._tops: dict[str, int] = {}
        self._writes: list[tuple[int, Callable[[Connection], object]]] = [
            (4, self.add_user),
            (3, self.add_subscription),
            (3, self.add_project),
            (12, self.change_preferences),
            (6, self.change_gpt),
            (6, self.change_email),
            (3, self.change_role),
            (3, self.pause_subscription),
            (8, self.choose_gpt),
            (3, self.deselect_gpt),
            (2, self.blank_email),
            (2, self.break_preferences),
            (3, self.move_subscription),
            (3, self.move_project),
            (3, self.delete_subscription),
            (3, self.delete_project),
            (2, self.delete_user_with_all),
            (1, self.delete_user_alone),
            (30, self.use),
        ]

    def spare(self, *more: str) -> None:
        """From now on no write that a later run leaves alone, as the new application may own it.

        Rows that turn bad after they were migrated stay as they are, those that get a bad owner
        too; a role is read once, and a project without a tool may have lost it to its user.
        """
        self.is_sparing = True
        spared = ("blank_email", "break_preferences", "change_role", "deselect_gpt", *more)
        self._writes = [pair for pair in self._writes if pair[1].__name__ not in spared]

    def write(self) -> None:
        """One write, in a transaction of its own."""
        weights = [weight for weight, _ in self._writes]
        (_, write) = self.random.choices(self._writes, weights)[0]
        try:
            with self.engine.begin() as connection:
                write(connection)
            self.done[write.__name__] += 1
        except psycopg2.Error as failure:
            self.refused.append(f"{write.__name__}: {failure}")
        except database.DBAPIError as failure:
            is_deletion = write.__name__.startswith("delete")
            if is_deletion and database.sqlstate(failure) == FOREIGN_KEY_VIOLATION:
                self.blocked[write.__name__] += 1
            else:
                self.refused.append(f"{write.__name__}: {failure.orig}")

    def add_user(self, connection: Connection) -> None:
        key = self._new(connection, self.names.users)
        values = {"email": f"{self._prefix}{self._count}@live.example", "role": self._role()}
        self._insert(
            connection,
            self.names.users,
            values | {"id": key, "hashed_password": "", "full_name": ""},
        )
        for _ in range(self.random.randrange(3)):
            self._subscribe(connection, key)
            self._project(connection, key)

    def add_subscription(self, connection: Connection) -> None:
        self._subscribe(connection, self._any(connection, self.names.users))

    def add_project(self, connection: Connection) -> None:
        self._project(connection, self._any(connection, self.names.users))

    def change_preferences(self, connection: Connection) -> None:
        document = f'{{"changed": {self.random.randrange(10**6)}}}'
        self._set(connection, self.names.subscriptions, "preferences", document)

    def break_preferences(self, connection: Connection) -> None:
        self._set(connection, self.names.subscriptions, "preferences", "[1]")

    def change_gpt(self, connection: Connection) -> None:
        self._set(connection, self.names.subscriptions, "gpt_id", self._gpt(connection))

    def pause_subscription(self, connection: Connection) -> None:
        self._set(connection, self.names.subscriptions, "status", "paused")

    def use(self, connection: Connection) -> None:
        table = self.names.subscriptions
        if "usage_count" in self._types(connection, table):
            connection.execute(
                text(
                    f"UPDATE {table} SET usage_count = coalesce(usage_count, 0) + 1,"
                    f" last_used = now() WHERE id = {self._key(connection, table)}"
                ),
                {"id": self._any(connection, table)},
            )

    def change_email(self, connection: Connection) -> None:
        mail = f"changed{self.random.randrange(10**12)}@live.example"
        self._set(connection, self.names.users, "email", mail)

    def blank_email(self, connection: Connection) -> None:
        self._count += 1
        self._set(connection, self.names.users, "email", " " * (300 + self._count))

    def change_role(self, connection: Connection) -> None:
        self._set(connection, self.names.users, "role", self._role())

    def choose_gpt(self, connection: Connection) -> None:
        """A GPT, or where a project holds one, a subscription of the owner.

        Not a number that may be the id of a tool: its meaning changes with the switch.
        """
        table, value = self.names.projects, self.random.choice(GPTS)
        if not self._types(connection, table):
            return
        project = self._any(connection, table)
        if self.names.active_gpt == "subscription" and self.random.random() < 0.5:
            query = (
                f"SELECT max(s.id)::text FROM {self.names.subscriptions} s JOIN {table} p"
                f" ON p.user_id = s.user_id WHERE p.id = {self._key(connection, table)}"
                f" AND s.id > {TOOLS}"
            )
            value = connection.scalar(text(query), {"id": project}) or value
        self._set(connection, table, "active_gpt_id", value, project)

    def deselect_gpt(self, connection: Connection) -> None:
        value = self.random.choice((None, ""))
        self._set(connection, self.names.projects, "active_gpt_id", value)

    def move_subscription(self, connection: Connection) -> None:
        self._set(connection, self.names.subscriptions, "user_id", self._owner(connection))

    def move_project(self, connection: Connection) -> None:
        self._set(connection, self.names.projects, "user_id", self._owner(connection))

    def delete_subscription(self, connection: Connection) -> None:
        self._delete(connection, self.names.subscriptions)

    def delete_project(self, connection: Connection) -> None:
        self._delete(connection, self.names.projects)

    def delete_user_with_all(self, connection: Connection) -> None:
        key = self._any(connection, self.names.users)
        for table in (self.names.subscriptions, self.names.projects):
            if not self._types(connection, table):
                continue
            owner = self._key(connection, table, "user_id")
            connection.execute(text(f"DELETE FROM {table} WHERE user_id = {owner}"), {"id": key})
        self._delete(connection, self.names.users, key)
        if self.is_sparing:
            self.history.gone.add(key)

    def delete_user_alone(self, connection: Connection) -> None:
        self._delete(connection, self.names.users)

    def _own(self, table: str, column: str) -> str:
        """The name here of a column of the rules."""
        mapped = self.names.columns.get("subscriptions", {})
        return mapped.get(column, column) if table == self.names.subscriptions else column

    def _gpt(self, connection: Connection) -> str:
        """What a subscription names its GPT with: a name, or the key of a row."""
        table = self.names.subscriptions
        is_key = self._types(connection, table).get(self._own(table, "gpt_id")) == "integer"
        return self.random.choice(("1", "2", "3") if is_key else GPTS)

    def _types(self, connection: Connection, table: str) -> dict[str, str]:
        """The table's columns and their types; none for a table that is not there."""
        if table not in self._columns:
            found = connection.execute(
                text(
                    "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute"
                    " WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped"
                ),
                {"name": table},
            )
            self._columns[table] = {name: kind for name, kind in found}
        return self._columns[table]

    def _key(
        self, connection: Connection, table: str, column: str = "id", bound: str = "id"
    ) -> str:
        """SQL for the bound key, in the column's own type."""
        return f"CAST(:{bound} AS {self._types(connection, table)[column]})"

    def _new(self, connection: Connection, table: str) -> str:
        self._count += 1
        kind = self._types(connection, table)["id"]
        if kind == "uuid":
            return str(UUID(int=self.random.getrandbits(128)))
        if kind in INTEGERS:
            return str(self._highest(connection, table) + 1)
        return f"{self._prefix}{self._count:06d}"

    def _highest(self, connection: Connection, table: str) -> int:
        """The highest key that the table ever had: as a sequence, none is given twice."""
        now = connection.scalar(text(f"SELECT coalesce(max(id), 0) FROM {table}")) or 0
        self._tops[table] = max(now, self._tops.get(table, 0))
        return self._tops[table]

    def _role(self) -> str:
        return self.random.choice(("student", "teacher", "admin", "user"))

    def _owner(self, connection: Connection) -> str:
        return self._any(
            connection, self.names.users, "btrim(email) <> ''" if self.is_sparing else "true"
        )

    def _any(self, connection: Connection, table: str, condition: str = "true") -> str:
        """A key anywhere in the table, found by its index; new rows are met more often."""
        if table not in self._landmarks:
            self._landmarks[table] = list(
                connection.scalars(
                    text(f"SELECT id::text FROM {table} ORDER BY md5(id::text) LIMIT {LANDMARKS}")
                )
            )
        is_new = self.random.random() < 0.1 and table in self._made
        near = self.random.choice((self._made if is_new else self._landmarks)[table])
        key = self._key(connection, table, bound="near")
        found = connection.scalar(
            text(
                f"SELECT id::text FROM {table} WHERE id >= {key} AND {condition}"
                " ORDER BY id LIMIT 1"
            ),
            {"near": near},
        )
        first = text(f"SELECT id::text FROM {table} WHERE {condition} ORDER BY id LIMIT 1")
        return str(found or connection.scalar(first))

    def _subscribe(self, connection: Connection, owner: str) -> None:
        table = self.names.subscriptions
        if not self._types(connection, table):
            return
        # Before the GPT, which may have that column.
        values = {"name": "live", "gpt_id": self._gpt(connection), "preferences": '{"live": true}'}
        values |= {"status": "active", "version": "1"}
        key = self._new(connection, table)
        self._insert(connection, table, values | {"id": key, "user_id": owner})

    def _project(self, connection: Connection, owner: str) -> None:
        if not self._types(connection, self.names.projects):
            return
        gpt = self.random.choice((*GPTS, None))
        values = {"name": "live", "status": "active", "active_gpt_id": gpt}
        key = self._new(connection, self.names.projects)
        self._insert(connection, self.names.projects, values | {"id": key, "user_id": owner})

    def _insert(self, connection: Connection, table: str, values: dict[str, str | None]) -> None:
        types = self._types(connection, table)
        values = {self._own(table, name): value for name, value in values.items()}
        written = [name for name in values if name in types]
        connection.execute(
            text(
                f"INSERT INTO {table} ({', '.join(written)})"
                f" VALUES ({', '.join(f'CAST(:{name} AS {types[name]})' for name in written)})"
            ),
            {name: _word(types[name], values[name]) for name in written},
        )
        self._made.setdefault(table, []).append(str(values["id"]))
        self._note(connection, table, str(values["id"]), values)

    def _set(
        self,
        connection: Connection,
        table: str,
        column: str,
        value: str | None,
        key: str | None = None,
    ) -> None:
        types, column = self._types(connection, table), self._own(table, column)
        if column in types:
            key = key or self._any(connection, table)
            connection.execute(
                text(
                    f"UPDATE {table} SET {column} = CAST(:value AS {types[column]})"
                    f" WHERE id = {self._key(connection, table)}"
                ),
                {"value": _word(types[column], value), "id": key},
            )
            self._note(connection, table, key, {column: value})

    def _note(
        self, connection: Connection, table: str, key: str, written: Mapping[str, str | None]
    ) -> None:
        """Remember what the projects and the subscriptions were, for the oracle."""
        gpt = self._own(table, "gpt_id")
        if table == self.names.projects:
            if "active_gpt_id" in written:
                self.history.held[key] = written["active_gpt_id"]
            if owner := written.get("user_id"):
                self.history.owners[key].add(owner)
        elif table == self.names.subscriptions and written.keys() & {"user_id", gpt}:
            query = f"SELECT user_id::text, {gpt}::text FROM {table} WHERE id = "
            row = connection.execute(text(query + self._key(connection, table)), {"id": key})
            self.history.gpts[key].update((str(owner), str(of)) for owner, of in row if of)

    def _delete(self, connection: Connection, table: str, key: str | None = None) -> None:
        if not self._types(connection, table):
            return
        if self._types(connection, table)["id"] in INTEGERS:
            self._highest(connection, table)
        connection.execute(
            text(f"DELETE FROM {table} WHERE id = {self._key(connection, table)}"),
            {"id": key or self._any(connection, table)},
        )


def _word(kind: str, value: str | None) -> str | None:
    """The value as a column of this type has it."""
    if kind in ENUMS and value is not None:
        return "PARENT" if value == "user" else value.upper()
    return value


class Traffic(threading.Thread):
    """An application that writes so many times a second, until it is stopped."""

    def __init__(self, application: Application, writes_a_second: float) -> None:
        super().__init__(daemon=True)
        self.application, self._pause = application, 1 / writes_a_second
        self._over = threading.Event()
        # How long it went on, and its slowest write.
        self.seconds = self.slowest = 0.0

    def run(self) -> None:
        started = due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            begun = time.monotonic()
            self.application.write()
            self.slowest = max(self.slowest, time.monotonic() - begun)
            due += self._pause
        self.seconds = time.monotonic() - started

    def stop(self) -> None:
        """Stop after the write under way."""
        self._over.set()
        self.join()
