"""What a HorizontalPodAutoscaler wants, by the formula of Kubernetes' documentation.

    wanted = ceil(replicas * value per pod / target)      nothing, within a tenth of the target

Scaling down waits: of all numbers wanted within the stabilization window the largest counts; and
each direction has policies that bound its pace (the most generous one counts with `Max`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.manifests.rendering import Object

TOLERANCE = 0.1


def quantity(text: str) -> float:
    """`500m` or `10` as a number."""
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


@dataclass
class Autoscaler:
    """One object's behaviour over time; `now` is in seconds and only ever grows."""

    spec: Mapping[str, Any]
    replicas: int
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)

    @classmethod
    def of(cls, one: Object, replicas: int) -> Autoscaler:
        """Of a rendered HorizontalPodAutoscaler with one Pods metric."""
        return cls(one["spec"], replicas)

    @property
    def target(self) -> float:
        """The metric's value per pod that it aims at."""
        (metric,) = self.spec["metrics"]
        return quantity(str(metric["pods"]["target"]["averageValue"]))

    def wanted(self, values: Mapping[str, float]) -> int:
        """By the formula alone, within the bounds, before behaviour. `values`: by pod."""
        ratio = sum(values.values()) / len(values) / self.target
        wanted = self.replicas
        if abs(ratio - 1) > TOLERANCE:
            wanted = math.ceil(len(values) * ratio - 1e-9)
        least, most = self.spec["minReplicas"], self.spec["maxReplicas"]
        return int(max(least, min(most, wanted)))

    def look(self, now: float, values: Mapping[str, float]) -> int:
        """One round of the controller; returns the replicas from now on."""
        self._wanted.append((now, self.wanted(values)))
        up, down = self.spec["behavior"]["scaleUp"], self.spec["behavior"]["scaleDown"]
        lowest = min(n for at, n in self._wanted if now - at <= up["stabilizationWindowSeconds"])
        highest = max(n for at, n in self._wanted if now - at <= down["stabilizationWindowSeconds"])
        if lowest > self.replicas:
            self._change(now, min(lowest, self._bound(now, up, +1)))
        elif highest < self.replicas:
            self._change(now, max(highest, self._bound(now, down, -1)))
        return self.replicas

    def _bound(self, now: float, direction: Mapping[str, Any], sign: int) -> int:
        bounds = []
        for policy in direction["policies"]:
            changed = sum(by for at, by in self._changes if now - at < policy["periodSeconds"])
            start = self.replicas - changed
            by = policy["value"]
            if policy["type"] == "Percent":
                by = math.ceil(start * policy["value"] / 100)
            bounds.append(start + sign * by)
        return max(bounds) if sign > 0 else min(bounds)

    def _change(self, now: float, replicas: int) -> None:
        self._changes.append((now, replicas - self.replicas))
        self.replicas = replicas
