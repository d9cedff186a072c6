"""The rows of a trial: a few users of each kind that there is, and one that is made up.

All looks are bounded: whole kinds are looked for in a sample of at most SAMPLE rows a table.
"""

from __future__ import annotations

import secrets
import uuid

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from models.dashboard import ids
from models.engine.sample import Sample, children
from models.engine.source import Sources, SourceTable
from models.postgres import refusals
from models.postgres.catalog import INTEGER_TYPES, TEXT_TYPES, Column, Table, quote
from models.postgres.keys import key_cast, list_cast
from models.postgres.rows import estimate as estimate_rows
from models.postgres.sessions import blanks

USERS, ROWS_A_USER, SAMPLE = 50, 100, 20_000
_LARGEST = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**62}
_KINDS = {"status", "is_active", "is_template"}
_READ = {
    *("id", "user_id", "gpt_id", "active_gpt_id", "preferences", "email", "role", "user_type"),
    *("billing_tier", "credits_balance", *_KINDS),
}


def pick(connection: Connection, sources: Sources) -> Sample:
    """Real users, a few of each kind, with what they own, and some rows that nobody owns."""
    wanted: dict[str, None] = {}
    queries = [*_user_kinds(sources.users)]
    for table in sources.children("user"):
        queries += _owner_kinds(connection, table, table.source.requires[0])
    sample = _sample(connection, sources.users)
    parameters = {"blanks": blanks(connection)}
    found = [
        list(connection.scalars(text(query.replace("{sample}", sample)), parameters))
        for query in queries
    ]
    # One of each kind first, then the second of each.
    for turn in range(max(map(len, found), default=0)):
        wanted |= {keys[turn]: None for keys in found if turn < len(keys) and keys[turn]}
    users = list(wanted)[: 2 * USERS]
    there = connection.scalars(
        text(
            f"SELECT t.id::text FROM {sources.users.sql} t"
            f" WHERE t.id = ANY(CAST(:keys AS {list_cast(sources.users.columns['id'].base)}[]))"
        ),
        {"keys": users},
    )
    exists = set(there)
    strangers = [key for key in users if key not in exists][:3]
    picked = [key for key in users if key in exists]
    for table in sources.children("user"):
        picked = _without_many(connection, table, sources.users, picked)
    rows = Sample({"user": dict.fromkeys(sorted(picked[:USERS]))})
    owners = rows.of("user") + strangers
    for table in sources.children("user"):
        rows.keys[table.source.entity] = children(connection, sources, table, owners)
    return rows


def make_up(connection: Connection, sources: Sources, rows: Sample) -> None:
    """Insert a user with two subscriptions to one GPT and two projects; adds their keys to `rows`.

    Each is a copy of a real row with other keys. Where the tables refuse them, `rows.note` says so.
    """
    tag, most = secrets.token_hex(4), ids.largest_key(sources)
    users, owned = sources.users, sources.children("user")
    owner_columns = [users.columns["id"], *(table.columns["user_id"] for table in owned)]
    try:
        with connection.begin_nested():
            user = _key(connection, users, owner_columns, tag, most)
            changes = {"id": user, "email": f"{tag}@example.invalid"}
            if "credits_balance" in users.columns:
                changes["credits_balance"] = "1"
            template = next(iter(_templates(connection, users, rows.of("user"), "email")), None)
            _insert(connection, users, template, changes, tag)
    except DBAPIError as failure:
        rows.note = f"without a made-up user ({_refused(users, failure)})"
        return
    rows.keys["user"][user] = None
    rows.made_up.add(user)
    gpt = f"gpt-{tag}"
    for table in owned:
        (column,) = table.source.requires
        gpts = (gpt, gpt if column == "gpt_id" else f"other-{tag}")
        real = rows.keys[table.source.entity]
        template = next(iter(_templates(connection, table, list(real), column)), None)
        made: dict[str, str | None] = {}
        for number, value in enumerate(gpts):
            try:
                with connection.begin_nested():
                    own_tag = f"{tag[:-1]}{number}"
                    key = _key(connection, table, [table.columns["id"]], own_tag, most)
                    _insert(
                        connection, table, template,
                        {"id": key, "user_id": user, column: value}, own_tag,
                    )  # fmt: skip
            except DBAPIError as failure:
                rows.note = f"with fewer made-up {table.source.plural} ({_refused(table, failure)})"
                continue
            made[key] = user
        real |= made
        rows.made_up |= made.keys()


def _user_kinds(users: Table) -> list[str]:
    """Queries for keys of users, a kind each, odd ones first; {sample} stands for the table."""
    blank = "btrim(coalesce(t.email::text, ''), :blanks) = ''"
    queries = [
        "SELECT t.id::text FROM {sample} ORDER BY length(t.email::text) DESC NULLS LAST LIMIT 2",
        f"SELECT t.id::text FROM {{sample}} WHERE {blank} LIMIT 2",
    ]
    for column in ("role", "user_type", "billing_tier", "is_active"):
        if column in users.columns:
            queries.append(
                f"SELECT min(t.id::text) FROM {{sample}} GROUP BY t.{column}::text"
                " ORDER BY count(*) DESC LIMIT 8"
            )
    if "credits_balance" in users.columns:
        for order in ("DESC NULLS LAST", "ASC NULLS LAST"):
            queries.append(
                f"SELECT t.id::text FROM {{sample}} ORDER BY t.credits_balance {order} LIMIT 2"
            )
    for order in ("ASC", "DESC"):
        queries.append(f"SELECT t.id::text FROM {users.sql} t ORDER BY t.id {order} LIMIT 5")
    queries.append("SELECT t.id::text FROM {sample} ORDER BY random() LIMIT 20")
    return queries


def _owner_kinds(connection: Connection, table: SourceTable, column: str) -> list[str]:
    """Queries for keys of the users who own a row of some kind."""
    sample = _sample(connection, table)
    value = f"t.{quote(column)}::text"
    kinds = [f"({value} IS NULL)::text"]
    kinds += [f"t.{name}::text" for name in _readable(table) if name in _KINDS]
    if table.columns.get("preferences"):
        kinds.append("left(t.preferences::text, 1)")
    return [
        f"SELECT t.user_id::text FROM {sample} ORDER BY length({value}) DESC NULLS LAST LIMIT 2",
        *(
            f"SELECT min(t.user_id::text) FROM {sample} GROUP BY {kind} ORDER BY count(*) DESC"
            " LIMIT 8"
            for kind in kinds
        ),
    ]  # fmt: skip


def _sample(connection: Connection, table: SourceTable) -> str:
    """SQL for at most SAMPLE rows `t`, from all over a large table."""
    estimate = estimate_rows(connection, table)
    share = 100.0 if not estimate else min(100.0, 100.0 * SAMPLE / estimate)
    columns = ", ".join(f"{table.value(name, 'r')} AS {quote(name)}" for name in _readable(table))
    pages = f"TABLESAMPLE SYSTEM ({share:.6f})"
    return f"(SELECT {columns} FROM {table.sql} r {pages} LIMIT {SAMPLE}) AS t"


def _readable(table: Table) -> list[str]:
    """Columns that the rules read, which is what a role of the workers may read."""
    unread = {"status"} if "active_gpt_id" in table.columns else set()
    return sorted((_READ & table.columns.keys()) - unread)


def _without_many(connection: Connection, table: Table, users: Table, keys: list[str]) -> list[str]:
    """Those of the users who own no more than ROWS_A_USER rows, so that a trial stays short."""
    many = set(
        connection.scalars(
            text(
                f"SELECT t.user_id::text FROM {table.sql} t WHERE {_of(users, 't.user_id')}"
                " GROUP BY t.user_id HAVING count(*) > :most"
            ),
            {"keys": keys, "most": ROWS_A_USER},
        )
    )
    return [key for key in keys if key not in many]


def _of(users: Table, column: str) -> str:
    return f"{column} = ANY(CAST(:keys AS {list_cast(users.columns['id'].base)}[]))"


def _templates(
    connection: Connection, table: SourceTable, keys: list[str], column: str
) -> list[str]:
    """Keys of rows to copy: those with a value that the migration takes."""
    preferences = ""
    if "preferences" in table.columns and column == "gpt_id":
        document = table.value("preferences", "t")
        preferences = f" AND left(btrim(coalesce({document}::text, '{{}}')), 1) = '{{'"
    query = (
        f"SELECT t.id::text FROM {table.sql} t"
        f" WHERE t.id = ANY(CAST(:keys AS {list_cast(table.columns['id'].base)}[]))"
    )
    value = table.value(column, "t")
    good = f" AND btrim(coalesce({value}::text, ''), :blanks) <> ''{preferences}"
    parameters = {"keys": keys, "blanks": blanks(connection)}
    found = list(connection.scalars(text(f"{query}{good} LIMIT 1"), parameters))
    return found or list(connection.scalars(text(f"{query} LIMIT 1"), parameters))


def _key(
    connection: Connection, table: Table, columns: list[Column], tag: str, most: int | None
) -> str:
    """A key that nobody has: of the form that the table's keys have, for columns of these types."""
    base = columns[0].base
    if base in INTEGER_TYPES:
        largest = min(_LARGEST[column.base] for column in columns if column.base in _LARGEST)
        largest = min(largest, most or largest)
        return str(largest - int(tag, 16) % min(largest // 2, 2**31))
    if base == "uuid":
        return str(uuid.uuid4())
    # Of the form of the last one, whose length its columns hold.
    last = connection.scalar(
        text(f"SELECT t.id::text FROM {table.sql} t ORDER BY t.id DESC LIMIT 1")
    )
    return f"{(last or '').rstrip()[:-8]}{tag}"


def _insert(
    connection: Connection,
    table: SourceTable,
    template: str | None,
    changes: dict[str, str],
    tag: str,
) -> None:
    """Insert a copy of the template's row with these values, or a row of these values only."""
    # A mapped column that holds no text of its own keeps what the template has.
    changes = {
        table.own(name): value
        for name, value in changes.items()
        if name in table.columns
        and not (
            name in table.mapped
            and (table.points(name) or table.columns[name].base not in TEXT_TYPES)
        )
    }
    written: dict[str, str] = {}
    for name, column in table.own_columns.items():
        if column.generated and name not in changes:
            continue
        if name in changes:
            written[name] = f"CAST(:v_{name} AS {key_cast(column.base)})"
        elif _is_in_unique_index(table, name):
            # Another one has this value already.
            if column.not_null and column.base in TEXT_TYPES:
                written[name] = f"'{tag}'"
            elif column.not_null:
                continue
        elif template is not None:
            written[name] = f"t.{_quote(name)}"
    names = ", ".join(map(_quote, written))
    origin = (
        f"FROM {table.sql} t WHERE t.id = CAST(:template AS {key_cast(table.columns['id'].base)})"
    )
    connection.execute(
        text(
            f"INSERT INTO {table.sql} ({names}) OVERRIDING SYSTEM VALUE"
            f" SELECT {', '.join(written.values())} {origin if template is not None else ''}"
        ),
        {f"v_{name}": value for name, value in changes.items()}
        | ({"template": template} if template is not None else {}),
    )


def _quote(name: str) -> str:
    # A lone colon would begin a bound parameter.
    return quote(name).replace(":", "\\:")


def _is_in_unique_index(table: Table, column: str) -> bool:
    return any(index.unique and index.columns == (column,) for index in table.indexes)


def _refused(table: Table, failure: DBAPIError) -> str:
    return f"{table.label}: {refusals.of(failure.orig).words}"
