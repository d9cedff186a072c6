"""What KEDA and the autoscaler behind it make of a query's value: a number of pods.

https://keda.sh/docs/latest/concepts/scaling-deployments/ and, for what stands between one pod and
the most, https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from tests.autoscale.manifest import Scaled

# Kubernetes's own defaults.
SYNC_SECONDS = 15.0
TOLERANCE = 0.1
MOST_MORE = 4


@dataclass
class Autoscaler:
    """One ScaledObject over time; the clock is the caller's, in seconds."""

    of: Scaled
    replicas: int = 0
    _polled_at: float = -math.inf
    _synced_at: float = -math.inf
    _active_at: float = -math.inf
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)

    def is_due(self, now: float) -> bool:
        """Whether the query is to be asked now."""
        return now - self._polled_at >= self.of.polling_seconds

    def look(self, value: float, now: float) -> int:
        """The pods that there are to be, after the query gave `value`."""
        self._polled_at = now
        if value > self.of.activation:
            self._active_at = now
            # From nothing to one it is KEDA, at once; the rest is the autoscaler's, in its time.
            if self.replicas == 0:
                self.replicas, self._synced_at = 1, now
                self._wanted.clear()
        elif self.replicas and now - self._active_at >= self.of.cooldown_seconds:
            self.replicas = 0
        if self.replicas and now - self._synced_at >= SYNC_SECONDS:
            self._synced_at = now
            self.replicas = self._synced(value, now)
        return self.replicas

    def _synced(self, value: float, now: float) -> int:
        share = value / (self.of.target * self.replicas)
        wanted = self.replicas
        if abs(share - 1) > TOLERANCE:
            wanted = math.ceil(value / self.of.target)
        wanted = max(1, min(wanted, self.of.most))
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - self.of.stabilization_seconds:
            self._wanted.popleft()
        if wanted < self.replicas:
            return min(self.replicas, max(number for _, number in self._wanted))
        return min(wanted, max(self.replicas * 2, self.replicas + MOST_MORE))
