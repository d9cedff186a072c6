"""The legacy tables as they resolve, not as words: a run keeps them, each process compares.

The same words lead elsewhere where an address or a role has another search_path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql as pg

from models.engine import current
from models.engine.source import NONE
from models.errors import Misconfigured, OtherTables
from models.ledger.tables import quarantine, runs
from models.postgres.catalog import quote_name
from models.settings import Settings

# What a run keeps besides its tables.
_NO_TABLES = {"target", "ledger", "mapping", "ids"}
# The relation that replaces a source that is `none`.
_NOTHING = {"schema": "", "name": NONE, "oid": 0}
_HERE = """
SELECT migration.ledger_id() AS ledger_id, 'migration.runs'::regclass::oid::bigint AS ledger_oid,
  (SELECT jsonb_object_agg(w.role, jsonb_build_object(
     'schema', n.nspname, 'name', c.relname, 'oid', c.oid::bigint))
   FROM unnest(CAST(:roles AS text[]), CAST(:names AS text[])) AS w(role, name)
   JOIN pg_class c ON c.oid = to_regclass(w.name)
   JOIN pg_namespace n ON n.oid = c.relnamespace) AS resolved
"""


@dataclass(frozen=True)
class Here:
    """What this session sees: the ledger's id and oid, and each legacy table by its role."""

    ledger_id: str | None
    ledger_oid: int
    resolved: dict[str, Any]
    # What the mapping says, if there is one.
    mapping: dict[str, Any]

    @property
    def kept(self) -> dict[str, Any]:
        """What a run keeps of it. The target tables lie in the schema of the first."""
        schema = self.resolved.get(_roles()[0], {}).get("schema")
        kept = {"target": {"schema": schema}, "ledger": {"oid": self.ledger_oid}}
        return self.resolved | kept | ({"mapping": self.mapping} if self.mapping else {})

    def is_same(
        self, kept: dict[str, Any], *, by_name: bool = False, is_over: bool = False
    ) -> bool:
        """Whether a run's tables are these: by oid, so that a renamed table is the same one.

        Oids mean nothing where the ledger itself has another one: it was restored from a dump.
        With `by_name` a table of the same name is the same too: somebody made it anew. Where the
        run `is_over`, the mapping may give other defaults: they decide no row of it.
        """
        roles = set(_roles())
        if set(self.resolved) != roles or roles != set(kept) - _NO_TABLES:
            return False
        here, there = self.mapping, kept.get("mapping", {})
        if is_over:
            here, there = _without_defaults(here), _without_defaults(there)
        if self.kept["target"] != kept["target"] or here != there:
            return False
        is_own_oid = self.kept["ledger"] == kept["ledger"]
        return all(
            (is_own_oid and self.resolved[role]["oid"] == kept[role]["oid"])
            or ((by_name or not is_own_oid) and _label(self.resolved, role) == _label(kept, role))
            for role in _roles()
        )


def _without_defaults(mapping: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != "defaults"}


def _roles() -> list[str]:
    return [source.plural for source in current.migration().sources]


def _names(settings: Settings) -> dict[str, str]:
    return dict(zip(_roles(), current.table_names(settings), strict=True))


def _settings() -> str:
    """The variables that name the tables, for a hint."""
    names = [source.setting for source in current.migration().sources if source.setting]
    return f"{', '.join(names)}, and " if names else ""


def labels(kept: dict[str, Any]) -> str:
    """The tables' names with their schemas; those that are not there are left out."""
    # Of another migration's run: its own, behind those that this one has too.
    roles = dict.fromkeys((*_roles(), *kept))
    return ", ".join(_label(kept, r) for r in roles if r in kept and r not in _NO_TABLES)


def _label(kept: dict[str, Any], role: str) -> str:
    return NONE if kept[role] == _NOTHING else f"{kept[role]['schema']}.{kept[role]['name']}"


def _here(settings: Settings) -> sa.Subquery:
    names = {role: name for role, name in _names(settings).items() if name != NONE}
    quoted = [quote_name(name) for name in names.values()]
    clause = sa.text(_HERE).bindparams(
        sa.bindparam("roles", list(names), pg.ARRAY(sa.Text)),
        sa.bindparam("names", quoted, pg.ARRAY(sa.Text)),
    )
    columns = (
        sa.column("ledger_id", sa.Text),
        sa.column("ledger_oid", sa.BigInteger),
        sa.column("resolved", pg.JSONB),
    )
    return clause.columns(*columns).subquery("here")


def read(connection: Connection, settings: Settings) -> Here:
    """What this session resolves."""
    return _reader(settings)(connection.execute(sa.select(_here(settings))).one())


def read_run(
    connection: Connection, settings: Settings, run_id: str, *, is_locked: bool = False
) -> tuple[Any, Here] | None:
    """A run and what this session resolves, in one statement; None for no such run."""
    here = _here(settings)
    query = sa.select(runs, here).join_from(runs, here, sa.true()).where(runs.c.id == run_id)
    if is_locked:
        query = query.with_for_update(of=runs)
    row = connection.execute(query).one_or_none()
    return None if row is None else (row, _reader(settings)(row))


def beside_run(
    settings: Settings,
) -> tuple[list[sa.ColumnElement[Any]], Callable[[Any], tuple[Any, Here]]]:
    """Columns for a statement about a run: the run, and what this session resolves.

    And what makes the two of a row with them. Raises OtherTables for a mapping that is not there.
    """
    here, found = _here(settings), _reader(settings)
    pairs = [part for column in here.c for part in (sa.literal(column.name, sa.Text), column)]
    seen = sa.select(sa.func.jsonb_build_object(*pairs, type_=pg.JSONB)).scalar_subquery()

    def read(row: Any) -> tuple[Any, Here]:
        run = SimpleNamespace(**{c.name: row._mapping[f"runs_{c.name}"] for c in runs.c})
        return run, found(SimpleNamespace(**row.here))

    return [*(column.label(f"runs_{column.name}") for column in runs.c), seen.label("here")], read


def _reader(settings: Settings) -> Callable[[Any], Here]:
    """What makes a Here of a row; the mapping is read before."""
    mapping = dict(current.migration().shape(settings).kept)
    none = {role: _NOTHING for role, name in _names(settings).items() if name == NONE}

    def found(row: Any) -> Here:
        return Here(row.ledger_id, row.ledger_oid, (row.resolved or {}) | none, mapping)

    return found


def fits(
    run: Any, settings: Settings, here: Here, *, by_name: bool = False, is_over: bool = False
) -> bool:
    """Whether this process sees the run's tables; by the words alone for a run of version 0.1."""
    if run.relations is None:
        return bool(run.tables == current.table_names(settings))
    return here.is_same(run.relations, by_name=by_name, is_over=is_over)


def require(run: Any, settings: Settings, here: Here, *, by_name: bool = False) -> None:
    """Raise OtherTables where this process sees other tables than the run migrates.

    And Misconfigured where the ledger is a copy that has no id of its own yet.
    """
    if here.ledger_id is None:
        raise Misconfigured(
            "The ledger is the copy of another database's and has no identity of its own yet",
            hint="Run: producer schema upgrade",
        )
    if not fits(run, settings, here, by_name=by_name):
        kept = (run.relations or {}).get("mapping", {})
        if here.mapping != kept:
            raise OtherTables(
                f"The mapping here says {_said(here.mapping)}, but that of run {run.id} said"
                f" {_said(kept)}",
                hint="Set MIGRATION_MAPPING to the file as it was when the run was opened.",
            )
        raise OtherTables(
            f"The tables are set to {', '.join(current.table_names(settings))} and resolve to"
            f" {labels(here.resolved) or 'none that exists'}, but run {run.id} migrates"
            f" {_migrated(run)}",
            hint=f"Set MIGRATION, {_settings()}the search_path of the address and the role as they"
            " were when the run was opened.",
        )


def _said(mapping: dict[str, Any]) -> str:
    """What a mapping says, in one line."""
    return json.dumps(mapping, sort_keys=True) if mapping else "nothing"


def _migrated(run: Any) -> str:
    """The tables that a run migrates, in words; those of version 0.1 kept the settings' words."""
    return labels(run.relations) if run.relations else ", ".join(run.tables)


def adopt(connection: Connection, run: Any, settings: Settings) -> None:
    """The same for an operator's command, which takes a table of the same name for the same.

    What the names resolve to now is kept from here on.
    """
    here = read(connection, settings)
    require(run, settings, here, by_name=True)
    kept = here.kept | {n: v for n, v in (run.relations or {}).items() if n == "ids"}
    if run.relations != kept:
        values = {"relations": kept, "tables": current.table_names(settings)}
        connection.execute(sa.update(runs).where(runs.c.id == run.id).values(values))


def keep_types(connection: Connection, run_id: str, types: Mapping[str, str]) -> None:
    """Keep with a run the types from which the first integer ids follow."""
    if types:
        connection.execute(
            sa.update(runs)
            .where(runs.c.id == run_id)
            .values(relations=runs.c.relations.concat({"ids": dict(types)}))
        )


def require_mapping(connection: Connection, settings: Settings) -> None:
    """Raise OtherTables where the mapping is not that of the newest run."""
    run = connection.execute(sa.select(runs).order_by(runs.c.id.desc()).limit(1)).one_or_none()
    here = read(connection, settings)
    if run is not None and run.relations and here.mapping != run.relations.get("mapping", {}):
        require(run, settings, here)


def require_own_ledger(connection: Connection, settings: Settings) -> None:
    """Raise Misconfigured where the ledger belongs to other tables than these.

    Quarantine and before-images are kept by entity and key: one ledger holds one set of tables.
    """
    here = read(connection, settings)
    in_quarantine = sa.select(quarantine.c.run_id).where(
        quarantine.c.state.in_(("open", "accepted"))
    )
    standing = connection.execute(
        sa.select(runs)
        .where(sa.or_(runs.c.state != "rolled_back", runs.c.id.in_(in_quarantine)))
        .order_by(runs.c.id.desc())
    ).all()
    for run in standing:
        if not fits(run, settings, here, by_name=True, is_over=True):
            kept = (run.relations or {}).get("mapping", {})
            if labels(run.relations or {}) == labels(here.resolved) and kept != here.mapping:
                raise Misconfigured(
                    f"The mapping here says {_said(here.mapping)}, but that of run {run.id}, whose"
                    f" rows are there, said {_said(kept)}",
                    hint="Only [defaults] may change after a run: set MIGRATION_MAPPING as it was,"
                    " or end with that run first: producer rollback --wait.",
                )
            raise Misconfigured(
                f"The ledger in this database belongs to the tables {_migrated(run)}"
                f" (run {run.id}), not to {labels(here.resolved)}",
                hint="Give each set of tables a database of its own, or end with the other first:"
                " producer rollback --wait, then producer schema downgrade, with its settings.",
            )
