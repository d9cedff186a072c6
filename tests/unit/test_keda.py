"""The rehearsal's autoscaler does what KEDA's and Kubernetes's documents say."""

from __future__ import annotations

from dataclasses import replace

from tests.autoscale.keda import Autoscaler
from tests.autoscale.manifest import scaled

(OF,) = (
    replace(of, most=4, target=2, polling_seconds=5, cooldown_seconds=60, stabilization_seconds=30)
    for of in scaled()
    if of.name.endswith("users")
)


def over_time(values: dict[int, float], until: int) -> dict[int, int]:
    """Pods at each change, given the backlog from each moment on."""
    scaler, value, seen = Autoscaler(OF), 0.0, {}
    for now in range(until):
        value = values.get(now, value)
        if scaler.is_due(now):
            before = scaler.replicas
            if scaler.look(value, now) != before:
                seen[now] = scaler.replicas
    return seen


def test_one_pod_comes_at_once_more_with_the_next_sync_and_all_go_after_the_cooldown() -> None:
    assert over_time({10: 100, 50: 0}, 200) == {10: 1, 25: 4, 85: 1, 105: 0}


def test_a_pod_for_as_many_batches_as_it_has_processes() -> None:
    assert over_time({0: 5}, 60) == {0: 1, 15: 3}


def test_a_short_pause_takes_no_pod_away() -> None:
    assert over_time({0: 100, 30: 0, 50: 100}, 100) == {0: 1, 15: 4}


def test_what_is_within_a_tenth_is_left_alone() -> None:
    assert over_time({0: 6, 30: 6.5}, 100) == {0: 1, 15: 3}
