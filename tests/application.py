"""The old application, going on with its work: one small write after the other, any of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random

import psycopg2
from sqlalchemy import Connection, Engine, text

from models import database
from tests.oracle import Names

GPTS = ("math_tutor", "essay_coach", "lab_partner", "new_gpt")


class Application:
    """Writes to the legacy tables as an application does that has never heard of a migration.

    The same seed makes the same choices; the keys of new rows begin with `live`, or are numbers.
    """

    def __init__(
        self, engine: Engine, *, seed: int, names: Names | None = None, prefix: str = "live"
    ) -> None:
        self.engine, self.names = engine, names or Names()
        self.random = Random(seed)
        self.done: Counter[str] = Counter()
        self.refused: list[str] = []
        self._prefix, self._count = prefix, 0
        self._spans: dict[str, tuple[str, int]] = {}
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

    def spare(self) -> None:
        """From now on no write that a later run leaves alone, as the new application may own it.

        Rows that turn bad after they were migrated stay as they are, a role is read once, and a
        project without a tool may have lost it to its user.
        """
        spared = ("blank_email", "break_preferences", "change_role", "deselect_gpt")
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
            self.refused.append(f"{write.__name__}: {failure.orig}")

    def add_user(self, connection: Connection) -> None:
        key = self._new()
        connection.execute(
            text(
                f"INSERT INTO {self.names.users} (id, email, hashed_password, full_name, role)"
                " VALUES (:id, :email, '', '', :role)"
            ),
            {"id": key, "email": f"{key}@live.example", "role": self._role()},
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
        self._set(connection, self.names.subscriptions, "gpt_id", self.random.choice(GPTS))

    def pause_subscription(self, connection: Connection) -> None:
        self._set(connection, self.names.subscriptions, "status", "paused")

    def use(self, connection: Connection) -> None:
        key = self._any(connection, self.names.subscriptions)
        connection.execute(
            text(
                f"UPDATE {self.names.subscriptions} SET usage_count = coalesce(usage_count, 0) + 1,"
                " last_used = now() WHERE id = :id"
            ),
            {"id": key},
        )

    def change_email(self, connection: Connection) -> None:
        mail = f"changed{self.random.randrange(10**12)}@live.example"
        self._set(connection, self.names.users, "email", mail)

    def blank_email(self, connection: Connection) -> None:
        self._set(connection, self.names.users, "email", " " * self.random.randrange(1, 200))

    def change_role(self, connection: Connection) -> None:
        self._set(connection, self.names.users, "role", self._role())

    def choose_gpt(self, connection: Connection) -> None:
        self._set(connection, self.names.projects, "active_gpt_id", self.random.choice(GPTS))

    def deselect_gpt(self, connection: Connection) -> None:
        value = self.random.choice((None, ""))
        self._set(connection, self.names.projects, "active_gpt_id", value)

    def move_subscription(self, connection: Connection) -> None:
        owner = self._any(connection, self.names.users)
        self._set(connection, self.names.subscriptions, "user_id", owner)

    def move_project(self, connection: Connection) -> None:
        owner = self._any(connection, self.names.users)
        self._set(connection, self.names.projects, "user_id", owner)

    def delete_subscription(self, connection: Connection) -> None:
        self._delete(connection, self.names.subscriptions)

    def delete_project(self, connection: Connection) -> None:
        self._delete(connection, self.names.projects)

    def delete_user_with_all(self, connection: Connection) -> None:
        key = self._any(connection, self.names.users)
        for table in (self.names.subscriptions, self.names.projects):
            connection.execute(text(f"DELETE FROM {table} WHERE user_id = :id"), {"id": key})
        connection.execute(text(f"DELETE FROM {self.names.users} WHERE id = :id"), {"id": key})

    def delete_user_alone(self, connection: Connection) -> None:
        self._delete(connection, self.names.users)

    def _new(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count:06d}"

    def _role(self) -> str:
        return self.random.choice(("student", "teacher", "admin", "user"))

    def _any(self, connection: Connection, table: str) -> object:
        """A key anywhere in the table, found by its index; new rows are met more often."""
        if table not in self._spans:
            last = str(connection.scalar(text(f"SELECT max(id) FROM {table}")))
            self._spans[table] = (last[:4], int(last.split("_")[1]))
        kind, span = self._spans[table]
        near = f"{kind}{self.random.randint(0, span):09d}"
        if self._count and self.random.random() < 0.1:
            near = f"{self._prefix}{self.random.randint(0, self._count):06d}"
        found = connection.scalar(
            text(f"SELECT id FROM {table} WHERE id >= :near ORDER BY id LIMIT 1"), {"near": near}
        )
        return found or connection.scalar(text(f"SELECT min(id) FROM {table}"))

    def _subscribe(self, connection: Connection, owner: object) -> None:
        connection.execute(
            text(
                f"INSERT INTO {self.names.subscriptions} (id, user_id, gpt_id, status, preferences,"
                " version, rate_limit, usage_count, is_active)"
                " VALUES (:id, :owner, :gpt, 'active', '{\"live\": true}', '1', 10, 0, true)"
            ),
            {"id": self._new(), "owner": owner, "gpt": self.random.choice(GPTS)},
        )

    def _project(self, connection: Connection, owner: object) -> None:
        connection.execute(
            text(
                f"INSERT INTO {self.names.projects} (id, user_id, name, status, active_gpt_id)"
                " VALUES (:id, :owner, 'live', 'active', :gpt)"
            ),
            {"id": self._new(), "owner": owner, "gpt": self.random.choice((*GPTS, None))},
        )

    def _set(self, connection: Connection, table: str, column: str, value: object) -> None:
        connection.execute(
            text(f"UPDATE {table} SET {column} = :value WHERE id = :id"),
            {"value": value, "id": self._any(connection, table)},
        )

    def _delete(self, connection: Connection, table: str) -> None:
        connection.execute(
            text(f"DELETE FROM {table} WHERE id = :id"), {"id": self._any(connection, table)}
        )


class Traffic(threading.Thread):
    """An application that writes so many times a second, until it is stopped."""

    def __init__(self, application: Application, writes_a_second: float) -> None:
        super().__init__(daemon=True)
        self.application, self._pause = application, 1 / writes_a_second
        self._over = threading.Event()
        self.seconds = 0.0

    def run(self) -> None:
        started = due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            self.application.write()
            due += self._pause
        self.seconds = time.monotonic() - started

    def stop(self) -> None:
        """Stop after the write under way."""
        self._over.set()
        self.join()
