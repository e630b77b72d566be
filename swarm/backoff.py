"""Waiting longer after each failure: with jitter, a cap, and a reset on success (habits §4.19)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class BackoffPolicy:
    """Bounds of the waiting, in seconds: after n failures the bound is min(cap, base + factor * previous bound)."""

    base: float
    factor: float
    cap: float


SESSION = BackoffPolicy(base=0.1, factor=2.0, cap=8.0)
"""An agent's session (reference agent-and-dispatcher §2.3): 0.1, 0.3, 0.7 … 8 s, waits in [0, bound)."""


class Backoff:
    """Counts failures and says how long to wait: uniformly random in [0, bound)."""

    def __init__(self, policy: BackoffPolicy, *, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._policy = policy
        self._uniform = uniform
        self.bound = 0.0
        self.failures = 0

    def failed(self) -> float:
        """Count one failure; return the seconds to wait before the next try."""
        self.failures += 1
        self.bound = min(self._policy.cap, self._policy.base + self._policy.factor * self.bound)
        return self._uniform(0.0, self.bound)

    def reset(self) -> None:
        """Forget all failures."""
        self.bound = 0.0
        self.failures = 0
