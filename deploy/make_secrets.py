"""Writes the secrets of docker-compose.yml into ./secrets: random ones, where there is none."""

from __future__ import annotations

import secrets
from pathlib import Path


def write(folder: Path) -> list[str]:
    """Returns the names of the files that were written now."""
    postgres, redis = _known(folder, "postgres-password"), _known(folder, "redis-password")
    wanted = {
        "postgres-password": postgres,
        "redis-password": redis,
        "database-url": f"postgresql://dashboard:{postgres}@postgres:5432/dashboard",
        "redis-url": f"redis://:{redis}@redis:6379/0",
        "flower-auth": f"operator:{secrets.token_urlsafe(24)}",
        "console-password": secrets.token_urlsafe(24),
        "grafana-password": secrets.token_urlsafe(24),
    }
    # Nobody else enters the folder; in it, the containers' users read what is mounted for them.
    folder.mkdir(mode=0o700, exist_ok=True)
    missing = [name for name in wanted if not (folder / name).exists()]
    for name in missing:
        (folder / name).write_text(wanted[name])
        (folder / name).chmod(0o444)
    return missing


def _known(folder: Path, name: str) -> str:
    path = folder / name
    return path.read_text() if path.exists() else secrets.token_urlsafe(24)


if __name__ == "__main__":
    for name in write(Path("secrets")):
        print(f"wrote secrets/{name}")
