"""The crash matrix: `python -m tests.faults [--repetitions 3] [--only NAME …]`.

Goes on where an interrupted one was, unless the code has changed since; writes docs/faults.md
after each row. The exit status is 1 when a repetition did not end right.
"""

from __future__ import annotations

import argparse
import fcntl
import queue
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from rich.console import Console

from tests.faults import document
from tests.faults.matrix import ROWS, Row
from tests.faults.progress import Progress, version_of
from tests.faults.repetition import repeat
from tests.faults.world import Lane, NotInjected
from tests.nursery import Nursery

ROOT = Path(__file__).parents[2]
console = Console(highlight=False)


def main() -> None:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser(prog="make faults ARGS=…", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose name has one of these")
    parser.add_argument("--lanes", type=int, default=6, help="repetitions at the same time")
    parser.add_argument("--again", action="store_true", help="forget what is known")
    parser.add_argument("--short", action="store_true", help="outages of seconds, as in the tests")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "faults.md")
    given = parser.parse_args()
    rows = [row for row in ROWS if _is_chosen(row, given.only)]
    home = ROOT / ".migration" / "faults"
    home.mkdir(parents=True, exist_ok=True)
    lock = (home / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("The matrix is running already")
    file = home / "progress.json"
    if given.again:
        file.unlink(missing_ok=True)
    progress = Progress(file, version_of(ROOT))
    with ExitStack() as stack:
        nursery = Nursery(ROOT)
        stack.callback(nursery.close)
        with ThreadPoolExecutor(given.lanes) as pool:
            made = list(pool.map(lambda n: Lane(home / f"lane-{n}", nursery), range(given.lanes)))
        for lane in made:
            stack.callback(lane.close)
        matrix = Matrix(made, progress, given.short)
        about = document.machine(made[0], ROOT)
        for row in matrix.play(rows, given.repetitions):
            document.write(given.output, ROWS, progress, about)
            _say(row, progress, matrix.idle[row.name])
        is_right = all(
            verdict.is_right for row in rows for verdict in progress.verdicts(row.name).values()
        )
    sys.exit(not is_right or any(matrix.idle.values()))


def _is_chosen(row: Row, words: list[str]) -> bool:
    return not words or any(word in row.name for word in words)


class Matrix:
    """Repetitions on lanes, in the order of the rows; while leases run out, the next are played."""

    def __init__(self, lanes: list[Lane], progress: Progress, is_short: bool) -> None:
        self._lanes, self._progress, self._is_short = lanes, progress, is_short
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in lanes:
            self._free.put(lane)
        self.idle: Counter[str] = Counter()

    def play(self, rows: list[Row], repetitions: int) -> Iterator[Row]:
        """Play what is not known yet; yields each row once all its repetitions have ended."""
        with ThreadPoolExecutor(len(self._lanes)) as pool:
            futures = {
                row.name: [
                    pool.submit(self._play, row, number)
                    for number in range(repetitions)
                    if number not in self._progress.verdicts(row.name)
                ]
                for row in rows
            }
            try:
                for row in rows:
                    for future in futures[row.name]:
                        future.result()
                    yield row
            except BaseException:
                for lane in self._lanes:
                    lane.is_stopping.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _play(self, row: Row, number: int) -> None:
        lane = self._free.get()
        try:
            verdict = repeat(row, number, lane, is_short=self._is_short)
            self._progress.add(row.name, number, verdict)
        except NotInjected as failure:
            self.idle[row.name] += 1
            console.print(f"  {row.name}, repetition {number}: {failure}", markup=False)
        finally:
            self._free.put(lane)


def _say(row: Row, progress: Progress, idle: int) -> None:
    verdicts = list(progress.verdicts(row.name).values())
    wrong = [verdict for verdict in verdicts if not verdict.is_right]
    mark = "[red]NOT RIGHT" if wrong else "[yellow]not injected" if idle else "[green]right"
    figures = f"{len(verdicts):3} runs  {document.seconds(verdicts):>12} s"
    console.print(f"{datetime.now():%H:%M:%S}  {row.name:<38} {figures}  {mark}[/]", soft_wrap=True)
    for verdict in wrong:
        for finding in verdict.findings[:5]:
            console.print(f"    {finding}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    # As for Ctrl-C: the lanes' servers would outlive it otherwise.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted: the same command goes on from here")
