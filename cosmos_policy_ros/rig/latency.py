"""How long an answer takes: what the trigger of the next query, its deadline and people go by."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

REMEMBERED = 100  # queries
SURE = 0.95


class LatencyTracker:
    """Latencies of the queries so far, the first after every start of the engine left out.

    ``total`` is counted on the rig's clock, from the observation's stamp to the moment when its
    chunk may be sent; phases are wall seconds of their own.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self._total: deque[float] = deque(maxlen=REMEMBERED)
        self._phases: dict[str, deque[float]] = {}
        self._warm_up: float | None = None
        self._warm = False

    @property
    def p95(self) -> float | None:
        """Seconds that hardly any query exceeds; the warm-up's until others are known; or None."""
        if not self._total:
            return self._warm_up
        return _quantile(self._total, SURE)

    @property
    def cautious(self) -> float | None:
        """The p95 with an allowance for how few it is of: twice it of one, hardly more of many."""
        p95 = self.p95
        return None if p95 is None else p95 * (1.0 + 1.0 / max(len(self._total), 1))

    def add(self, total: float, phases: Mapping[str, float]) -> None:
        """Note one query."""
        if not self._warm:
            self._warm, self._warm_up = True, total
            return
        self._total.append(total)
        for name, seconds in phases.items():
            self._phases.setdefault(name, deque(maxlen=REMEMBERED)).append(seconds)

    def restarted(self) -> None:
        """Leave the next query out: the engine that answers it has just started."""
        self._warm = False

    def phases_p95(self, *names: str) -> float:
        """Return the sum of some phases' p95 [s]; of what is not known, nothing."""
        return sum(_quantile(self._phases[name], SURE) for name in names if name in self._phases)

    def told(self) -> dict[str, str]:
        """Return p50 and p95 of the total and of each phase for people."""
        known = {"total": self._total, **self._phases}
        return {
            name: f"p50 {_quantile(found, 0.5):.4g} s, p95 {_quantile(found, SURE):.4g} s"
            for name, found in known.items()
            if found
        }


def _quantile(found: deque[float], share: float) -> float:
    # One that was measured: of few, the p95 is the largest.
    return float(np.quantile(found, share, method="higher"))
