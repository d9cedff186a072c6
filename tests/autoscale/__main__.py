"""A rehearsal of the autoscaling without a cluster: `make autoscale-demo`.

The very commands, queries and numbers of `deploy/kubernetes.yaml`, with real workers on the
embedded servers: started and stopped as KEDA and Kubernetes would, and one lost in the middle.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, text

from tests.autoscale import manifest, pods
from tests.autoscale.keda import Autoscaler
from tests.soak.site import Site, load, open_site, rows, verdict

LOOK_SECONDS = 0.25
OVER = ("completed", "completed_with_quarantine", "failed", "cancelled")


@click.command()
@click.option("--users", type=click.IntRange(100), default=60_000, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=250, show_default=True)
@click.option("--hurry", type=click.FloatRange(1), default=1.0, help="All times so much shorter.")
def main(users: int, batch_size: int, hurry: float) -> None:
    """Scale a run's workers from nothing and back; JSON on stdout, status 1 if anything is lost."""
    with open_site() as site:
        engine = site.fresh("autoscale")
        click.echo(f"Generating a school of {users:,} users", err=True)
        before = load(engine, users)
        found = _rehearse(site, engine, str(batch_size), hurry)
        lost = verdict(engine, before)
        engine.dispose()
    click.echo(json.dumps({"users": users, **found, "lost": lost}, indent=2))
    sys.exit(bool(lost or found["state"] not in OVER[:2] or found["pods_at_the_end"]))


def _rehearse(site: Site, engine: Engine, batch_size: str, hurry: float) -> dict[str, Any]:
    environment = site.environment | {"MIGRATION_BATCH_SIZE": batch_size}
    every = manifest.scaled()
    scalers = {of.name: Autoscaler(of) for of in every}
    with pods.deployments(every, environment, site.home / "pods") as deployments:
        history = _History(list(deployments))
        _open_run(environment)
        users = next(
            d for d in deployments.values() if d.of.command.count("--queues=migration.users")
        )
        while not (_state(engine) in OVER and all(d.is_empty for d in deployments.values())):
            now = (time.monotonic() - history.began) * hurry
            for name, scaler in scalers.items():
                if scaler.is_due(now):
                    scaler.look(_ask(engine, scaler.of.query), now)
                deployments[name].reach(scaler.replicas, now)
            is_full = len(users.running) == users.of.most
            if is_full and not history.lost and users.lose_one(lambda: _working(engine)):
                history.lost += 1
            history.note({name: len(d.running) for name, d in deployments.items()})
            time.sleep(LOOK_SECONDS)
        history.note({name: len(d.running) for name, d in deployments.items()})
        killed = sum(deployment.killed for deployment in deployments.values())
        started = sum(deployment.started for deployment in deployments.values())
    (claims,) = rows(
        engine, "SELECT sum(attempt) AS all, sum(expiries) AS expired FROM migration.batches"
    )
    return {
        "state": _state(engine),
        "seconds": round(history.seconds[-1], 1),
        "most_pods": {name: max(counts) for name, counts in history.pods.items()},
        "pods_at_the_end": sum(counts[-1] for counts in history.pods.values()),
        "pods_started": started,
        "pods_lost": history.lost,
        "pods_killed_after_their_grace": killed,
        "claims": int(claims.all),
        "leases_expired": int(claims.expired),
    }


class _History:
    """Pods at each look, and how many were lost."""

    def __init__(self, names: list[str]) -> None:
        self.began = time.monotonic()
        self.seconds: list[float] = []
        self.pods: dict[str, list[int]] = {name: [] for name in names}
        self.lost = 0

    def note(self, running: dict[str, int]) -> None:
        self.seconds.append(time.monotonic() - self.began)
        said = {name: f"{counts[-1] if counts else 0}" for name, counts in self.pods.items()}
        for name, count in running.items():
            self.pods[name].append(count)
            if said[name] != str(count):
                click.echo(f"{self.seconds[-1]:6.1f} s  {name}: {said[name]} -> {count}", err=True)


def _open_run(environment: dict[str, str]) -> None:
    command = manifest.producer()
    program = Path(sys.executable).parent / command[0]
    subprocess.run([program, *command[1:]], env=environment, check=True, stdout=subprocess.DEVNULL)


def _ask(engine: Engine, query: str) -> float:
    with engine.connect() as connection:
        return float(connection.scalar(text(query)) or 0)


def _working(engine: Engine) -> list[int]:
    """The processes that hold a claim, as the ledger has it."""
    query = "SELECT worker FROM migration.batches WHERE state = 'running' AND stage = 'users'"
    return [int(row.worker.rpartition("/")[2]) for row in rows(engine, query)]


def _state(engine: Engine) -> str:
    (run,) = rows(engine, "SELECT state FROM migration.runs")
    return str(run.state)


if __name__ == "__main__":
    main()
