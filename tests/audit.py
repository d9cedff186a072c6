"""`make audit`: the pinned dependencies, looked up among the vulnerabilities that are known.

pip-audit ends well also where it was told of no package at all, so what it says is counted here.
Fails for what is found; where no service answers, that is said, and nothing else is claimed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SERVICES = ("pypi", "osv")
_NO_ANSWER = (
    "ConnectionError",
    "Timeout",
    "ServiceError",
    "ConnectError",
    "Max retries",
    "HTTPError",
)


def ask(service: str) -> dict[str, Any] | None:
    """What one service says of each package; None where it does not answer."""
    ended = subprocess.run(
        [
            str(Path(sys.executable).parent / "pip-audit"), "--format=json", "--disable-pip",
            "--require-hashes", "--requirement=requirements.lock", "--progress-spinner=off",
            f"--vulnerability-service={service}", "--timeout=20",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    try:
        found: dict[str, Any] = json.loads(ended.stdout)
        return found
    except ValueError:
        if any(word in ended.stderr for word in _NO_ANSWER):
            return None
        sys.exit(f"pip-audit failed:\n{ended.stderr[-2000:]}")


def judge(service: str, found: dict[str, Any] | None) -> tuple[str, bool | None]:
    """What is said of an answer, and whether it passes; None: nothing was looked up."""
    packages = found["dependencies"] if found else []
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return f"{service} does not answer", None
    flaws = [
        f"{package['name']} {package['version']}: {flaw['id']},"
        f" fixed in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for package in known
        for flaw in package["vulns"]
    ]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    said = [
        f"{len(known)} packages audited by {service}, {len(flaws)} known vulnerabilities",
        *flaws,
    ]
    if skipped:
        said.append(f"Not known there: {', '.join(skipped)}")
    return "\n".join(said), not flaws


def main() -> None:
    """Ask one service after the other, until one answers."""
    for service in SERVICES:
        said, passes = judge(service, ask(service))
        print(said)
        if passes is not None:
            sys.exit(0 if passes else 1)
    print("NOT AUDITED: no vulnerability service can be reached from here")


if __name__ == "__main__":
    main()
