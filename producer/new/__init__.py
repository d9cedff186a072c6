"""`producer new`: a package with a migration that runs as it stands, for its author to change."""

from __future__ import annotations

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

from models.errors import Misconfigured

# The template's name for a file, and where the file goes.
_FILES = {
    "migration.py.txt": "{package}/__init__.py",
    "test.py.txt": "tests/test_{name}.py",
    "tables.sql.txt": "tables.sql",
    "pyproject.toml.txt": "pyproject.toml",
    "readme.md.txt": "README.md",
}


def write(name: str, folder: Path) -> list[Path]:
    """Write the package for the table `name` into a new folder; returns its files.

    Raises Misconfigured for a name that is none, and for a folder that is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise Misconfigured(
            f"{name!r} cannot be the name of a package",
            hint="Take the name of a table, in small letters, digits and underscores: producer new"
            " badges",
        )
    if folder.exists():
        raise Misconfigured(
            f"{folder} is there already", hint="Name another folder: --folder. Nothing was written."
        )
    package = f"{name}_migration"
    entity = name[:-1] if name.endswith("s") and len(name) > 1 else name
    names = {"name": name, "package": package, "entity": entity}
    names["klass"] = "".join(part.capitalize() for part in name.split("_"))
    written = []
    for template, place in _FILES.items():
        path = folder / place.format(**names)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (resources.files("producer.new") / "template" / template).read_text("utf-8")
        path.write_text(Template(text).substitute(names), encoding="utf-8")
        written.append(path)
    return written
