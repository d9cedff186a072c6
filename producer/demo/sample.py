"""A believable legacy database, generated: the demo migrates it, the benchmark measures with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from random import Random
from zlib import crc32

from sqlalchemy import Connection, text

from models.errors import Incompatible
from producer.demo.sample_words import (
    AT,
    GPTS,
    NULL,
    ROLES,
    STATUSES,
    field,
    person,
    preferences,
    project,
    usage,
)

TABLES = ("users", "gpt_subscriptions", "projects")
LINES_A_CHUNK = 500

_CREATE = f"""
CREATE TABLE users (
    id character varying NOT NULL,
    email character varying,
    hashed_password character varying NOT NULL,
    full_name character varying NOT NULL,
    role character varying DEFAULT 'user',
    api_key character varying,
    last_api_key_rotation timestamp without time zone,
    created_at timestamp without time zone DEFAULT '{AT}',
    updated_at timestamp without time zone DEFAULT '{AT}'
);
CREATE TABLE gpt_subscriptions (
    id character varying NOT NULL,
    user_id character varying NOT NULL,
    gpt_id character varying NOT NULL,
    status character varying NOT NULL,
    preferences json,
    version character varying,
    rate_limit integer DEFAULT 100,
    usage_count integer DEFAULT 0,
    last_used timestamp without time zone,
    subscription_date timestamp without time zone DEFAULT '{AT}',
    is_active boolean DEFAULT true,
    created_at timestamp without time zone DEFAULT '{AT}',
    updated_at timestamp without time zone DEFAULT '{AT}'
);
CREATE TABLE projects (
    id character varying NOT NULL,
    user_id character varying NOT NULL,
    name character varying NOT NULL,
    description character varying,
    active_gpt_id character varying,
    configuration json DEFAULT '{{}}',
    status character varying NOT NULL,
    team_id character varying,
    is_template boolean,
    created_at timestamp without time zone DEFAULT '{AT}',
    updated_at timestamp without time zone DEFAULT '{AT}'
);
"""
_CONSTRAIN = """
ALTER TABLE users ADD CONSTRAINT users_pkey PRIMARY KEY (id);
ALTER TABLE users ADD CONSTRAINT users_api_key_key UNIQUE (api_key);
ALTER TABLE users ADD CONSTRAINT users_email_key UNIQUE (email);
ALTER TABLE gpt_subscriptions ADD CONSTRAINT gpt_subscriptions_pkey PRIMARY KEY (id);
CREATE INDEX gpt_subscriptions_user_id_idx ON gpt_subscriptions (user_id);
ALTER TABLE projects ADD CONSTRAINT projects_pkey PRIMARY KEY (id);
CREATE INDEX projects_user_id_idx ON projects (user_id);
ANALYZE users, gpt_subscriptions, projects;
"""

# What is wrong with the rows of user number n, by n % 1000: every kind is among the first 100.
_NULL_EMAIL, _BLANK_EMAIL, _SHOUTED_ROLE, _DELETED = 17, 43, 71, 39
_ODD_SUBSCRIPTIONS: dict[int, tuple[str, str | None]] = {
    3: ("", "{}"),
    5: (" \t", "{}"),
    8: ("math_tutor", '["video", "quiz"]'),
    9: ("math_tutor", '"beginner"'),
    12: ("math_tutor", "7"),
    14: ("math_tutor", "true"),
    _NULL_EMAIL: ("math_tutor", '{"owner": "without an email"}'),
    21: ("math_tutor", '{"note": "zero \\u0000 byte"}'),
    24: ("math_tutor", '{"note": "half an emoji \\ud83d"}'),
    26: ("math_tutor", '{"limit": 1e200000}'),
    29: ("math_tutor", "null"),
    33: ("math_tutor", None),
    37: ("math_tutor", ' { "twice" : 1 , "twice" : 2 } '),
    _DELETED: ("math_tutor", '{"owner": "deleted"}'),
    _BLANK_EMAIL: ("math_tutor", '{"owner": "with a blank email"}'),
}
_ODD_PROJECTS: dict[int, str | None] = {
    _NULL_EMAIL: "math_tutor",
    _DELETED: "math_tutor",
    _BLANK_EMAIL: None,
    51: "",
    53: " \t",
}


def load(
    connection: Connection,
    users: int,
    *,
    seed: int = 1,
    dirty: bool = True,
    subscriptions_per_user: float = 3.0,
    projects_per_user: float = 1.0,
) -> None:
    """Create the three legacy tables and fill them, in the caller's transaction.

    The same arguments give the same rows. `dirty` adds rows that a migration must quarantine,
    a few in a thousand, each kind at least once from 100 users on. Memory does not grow with
    `users`. Raises Incompatible when one of the tables is there already.
    """
    for table in TABLES:
        if connection.scalar(text("SELECT to_regclass(:name)"), {"name": table}) is not None:
            raise Incompatible(
                f"The table {table} is there already: sample data goes into an empty database",
                hint="Name another database, or drop the table if nobody needs it.",
            )
    connection.exec_driver_sql(_CREATE)
    _copy(connection, "users", _users(users, seed, dirty))
    _copy(
        connection,
        "gpt_subscriptions",
        _subscriptions(users, seed, dirty, subscriptions_per_user),
    )
    _copy(connection, "projects", _projects(users, seed, dirty, projects_per_user))
    connection.exec_driver_sql(_CONSTRAIN)


class _Stream:
    """Lines as the file that COPY reads; psycopg2 takes chunks of any length."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def read(self, _size: int = -1) -> bytes:
        return "".join(islice(self._lines, LINES_A_CHUNK)).encode()


def _copy(connection: Connection, table: str, lines: Iterator[str]) -> None:
    cursor = connection.connection.cursor()
    cursor.copy_expert(f"COPY {table} FROM STDIN WITH (ENCODING 'UTF8')", _Stream(lines))
    cursor.close()


def _users(users: int, seed: int, dirty: bool) -> Iterator[str]:
    draw = Random(f"{seed} users")
    people = [person(draw) for _ in range(4096)]
    roles = [field(role) for role in ROLES]
    for number in range(users):
        bits = draw.getrandbits(96)
        name, mailbox = people[bits & 4095]
        email = f"{mailbox}.{number}@district{number % 97}.example"
        role = roles[(bits >> 12 & 0xFFFF) % len(roles)]
        secret = f"{bits >> 32:016x}"
        has_api_key = not bits >> 28 & 15
        if dirty:
            slot = number % 1000
            if slot == _NULL_EMAIL:
                email = NULL
            elif slot == _BLANK_EMAIL:
                email = field(_blank(number // 1000))
            elif slot == _SHOUTED_ROLE:
                role = "TEACHER"
        yield (
            f"{_key('usr', number, seed)}\t{email}\tpbkdf2${secret}\t{name}\t{role}\t"
            f"{f'key_{number:x}_{secret}' if has_api_key else NULL}\t"
            f"{AT if has_api_key else NULL}\t{AT}\t{AT}\n"
        )


def _subscriptions(users: int, seed: int, dirty: bool, mean: float) -> Iterator[str]:
    draw = Random(f"{seed} subscriptions")
    counts = _counts(mean)
    plans = [f"{draw.choice(GPTS)}\t{draw.choice(STATUSES)}" for _ in range(1024)]
    stored = [field(preferences(draw)) for _ in range(4096)]
    usages = [usage(draw) for _ in range(1024)]
    number = 0
    for owner in range(users):
        user = _key("usr", owner, seed)
        body = ""
        for _ in range(counts[draw.getrandbits(10)]):
            bits = draw.getrandbits(40)
            if not body or bits >> 34:
                body = (
                    f"{plans[bits & 1023]}\t{stored[bits >> 10 & 4095]}\t"
                    f"{usages[bits >> 22 & 1023]}"
                )
            yield f"{_key('sub', number, seed)}\t{user}\t{body}\n"
            number += 1
        if dirty and (odd := _ODD_SUBSCRIPTIONS.get(owner % 1000)):
            gpt, value = odd
            yield (
                f"{_key('sub', number, seed)}\t{_owner(user, owner)}\t{field(gpt)}\tactive\t"
                f"{field(value)}\t{usages[owner & 1023]}\n"
            )
            number += 1


def _projects(users: int, seed: int, dirty: bool, mean: float) -> Iterator[str]:
    draw = Random(f"{seed} projects")
    counts = _counts(mean)
    bodies = [project(draw, draw.choice((*GPTS, *[None] * 5))) for _ in range(4096)]
    number = 0
    for owner in range(users):
        user = _key("usr", owner, seed)
        for _ in range(counts[draw.getrandbits(10)]):
            yield f"{_key('prj', number, seed)}\t{user}\t{bodies[draw.getrandbits(12)]}\n"
            number += 1
        if dirty and (slot := owner % 1000) in _ODD_PROJECTS:
            body = project(draw, _ODD_PROJECTS[slot])
            yield f"{_key('prj', number, seed)}\t{_owner(user, owner)}\t{body}\n"
            number += 1


def _key(prefix: str, number: int, seed: int) -> str:
    """An id that sorts with the number up to 1e9 rows, and cannot be guessed from it."""
    return f"{prefix}_{number:09d}_{crc32(b'%d%s%d' % (seed, prefix.encode(), number)):08x}"


def _owner(user: str, number: int) -> str:
    """The user itself or, for an orphan, a deleted one that would sort right beside it."""
    return f"usr_{number:09d}_deleted" if number % 1000 == _DELETED else user


def _counts(mean: float) -> list[int]:
    """1024 equally likely numbers of children: geometric, so most have few and some have many."""
    if mean <= 0:
        return [0] * 1024
    base = math.log(mean / (1 + mean))
    return [math.floor(math.log(1 - (part + 0.5) / 1024) / base) for part in range(1024)]


def _blank(number: int) -> str:
    """Whitespace only, and different for every number, since emails are unique."""
    return f"{number:b}".translate({ord("0"): " ", ord("1"): "\t"}) if number else ""
