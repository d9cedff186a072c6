"""`make docs`: docs/settings.md, docs/commands.md and the states in docs/architecture.md.

They are written from the code; tests/unit/test_documentation.py fails when they lag behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
from pydantic.fields import FieldInfo

from models.ledger.tables import BATCH_TRANSITIONS, RUN_TRANSITIONS
from models.postgres.load import SIGNALS
from models.settings import SECRETS, Settings
from producer.cli import cli

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 88

_SETTINGS = """# Settings

All settings are environment variables, read and checked when a command or a worker starts; a wrong
one is refused by its name, and the command ends with 2. A variable that is set to nothing counts as
not set, except `MIGRATION_USERS_TABLE`, `MIGRATION_SUBSCRIPTIONS_TABLE` and
`MIGRATION_PROJECTS_TABLE`, which are refused then. What is marked * may hold a password: it can be
in a file instead, named by the variable with `_FILE`
(`DATABASE_URL_FILE=/run/secrets/database-url`); see [security.md](security.md).

Workers and commands must have the same addresses and table names: a worker that is set to other
tables does not touch the run. `make docs` writes this page from
[models/settings.py](../models/settings.py).

| variable | meaning | default |
|---|---|---|
"""
# What others define and the product reads or sets, by name: meaning, and what holds if not set.
OTHERS = {
    "FLOWER_READ_ONLY": ("`false` lets who is logged in stop workers and tasks", "`true`"),
    "FLOWER_AUTH": (
        "Flower's login by OAuth (with Flower's other `FLOWER_OAUTH2_*`), instead of"
        " `FLOWER_BASIC_AUTH`",
        "none",
    ),
    "FLOWER_ADDRESS": (
        "where Flower listens",
        "`127.0.0.1` without a login; everywhere with one, as Flower has it",
    ),
    "FLOWER_TASKS_COLUMNS": (
        "the columns of Flower's page of tasks",
        "`name,args,state,result,received,runtime,worker`",
    ),
    "OTEL_EXPORTER_OTLP_*": (
        "headers, certificate and such: OpenTelemetry's exporter reads them itself",
        "its own",
    ),
    "SUDO_USER": ("who is behind `sudo`, for the audit log; `sudo` sets it", "the login's name"),
}
_OTHERS = """
## Variables of others

What Flower, OpenTelemetry and the system define, as far as the product reads or sets it. Flower's
command line and `flowerconfig.py` go before its variables.

| variable | meaning | if not set |
|---|---|---|
"""
_COMMANDS = """# Commands

Every command, as `--help` has it. `RUN` is a run's id, or the beginning of one that no other run
has. Without it, a command takes the newest run. `rollback` takes all runs that have rows, newest
first; without `--wait` it starts only the newest. `make docs` writes this page from
[producer/cli](../producer/cli).

With `--json` a command prints one JSON object on stdout and everything else on stderr, with the
same keys whether it succeeds or fails; `error` is null, or holds `kind`, `message` and `hint`.
What destroys something asks first; `--yes` answers, and where no terminal is there to ask, it is
needed.

Completion in bash: `eval "$(_PRODUCER_COMPLETE=bash_source producer)"`; zsh and fish alike.

| exit status | when |
|---:|---|
"""
EXIT_STATUS = {
    0: "done; `status`: also while the run is open; `demo`: also with quarantined rows",
    1: "it could not do its work. `status`, and commands that wait: the run failed without"
    " differences, was cancelled, or was paused by its error budget",
    2: "wrong usage or settings; no such run; a ledger of an older version (`schema upgrade`)",
    3: "done, but rows are quarantined; a rollback: a run with rows is left, or conflicts were"
    " kept; `repair credits`: users were left alone",
    4: "verification or reconciliation found differences: the run is `failed`; 4 goes before 3",
    5: "a check did not pass: `check`, `health`, `performance`",
    130: "Ctrl-C: the command stopped; an open run continues",
}


def settings() -> str:
    """docs/settings.md."""
    lines = [_setting(field) for field in Settings.model_fields.values()]
    others = [f"| `{name}` | {what} | {default} |" for name, (what, default) in OTHERS.items()]
    return _SETTINGS + "\n".join(lines) + "\n" + _OTHERS + "\n".join(others) + "\n"


def _setting(field: FieldInfo) -> str:
    name = str(field.alias)
    mark = " *" if name in SECRETS else ""
    return f"| `{name}`{mark} | {field.description} | {_default(field)} |"


def _default(field: FieldInfo) -> str:
    if field.alias == "MIGRATION_THROTTLE":
        limits = Settings().throttle
        said = [f"{name}={getattr(limits, name):g}" for name in SIGNALS]
        return f"`{','.join(said)},unreadable={'stop' if limits.stops_unread else 'go'}`"
    return f"`{field.default}`" if field.default else "none"


def commands() -> str:
    """docs/commands.md."""
    statuses = "".join(f"| {status} | {when} |\n" for status, when in EXIT_STATUS.items())
    helps = [f"\n## {name}\n\n```\n{text}\n```\n" for name, text in _help(cli, "producer", None)]
    return _COMMANDS + statuses + "".join(helps)


def _help(
    command: click.Command, name: str, parent: click.Context | None
) -> Iterator[tuple[str, str]]:
    context = click.Context(
        command, parent=parent, info_name=name, terminal_width=WIDTH, **command.context_settings
    )
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            yield from _help(command.commands[each], each, context)


def states(transitions: Mapping[tuple[str, str], str]) -> str:
    """A diagram of the transitions, and a table that says when each happens."""
    first = next(iter(transitions))[0]
    ends = [end for _, end in transitions if end not in {start for start, _ in transitions}]
    arrows = [
        f"    [*] --> {first}",
        *(f"    {start} --> {end}" for start, end in transitions),
        *(f"    {end} --> [*]" for end in dict.fromkeys(ends)),
    ]
    rows = [f"| {start} | {end} | {when} |" for (start, end), when in transitions.items()]
    diagram = ["```mermaid", "stateDiagram-v2", *arrows, "```", ""]
    return "\n".join([*diagram, "| from | to | when |", "|---|---|---|", *rows])


def architecture() -> str:
    """docs/architecture.md with the states between its marks written anew."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for name, transitions in (("run", RUN_TRANSITIONS), ("batch", BATCH_TRANSITIONS)):
        begin, end = f"<!-- states of a {name}: make docs -->", f"<!-- end of {name} -->"
        text, count = re.subn(
            f"{begin}.*?{end}", f"{begin}\n{states(transitions)}\n{end}", text, flags=re.DOTALL
        )
        assert count == 1, f"docs/architecture.md lacks its mark {begin}"
    return text


def documents() -> dict[Path, str]:
    """What each generated page must be, by its file."""
    return {
        DOCS / "settings.md": settings(),
        DOCS / "commands.md": commands(),
        DOCS / "architecture.md": architecture(),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
        print(f"docs/{path.name}")
