"""When the next chunk is asked for: at rest, as in the paper, or while the arms still move.

A query in motion must be answered before its path ends, so it starts early enough for the p95 of
the measured latency; but the earlier it starts the less is left of its answer by then. With one
inference at a time no pause is left if two latencies fit into a chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.chunk import KEPT, Blend, Blender, TimedChunk
from cosmos_policy_ros.rig.decision import ActionPrefix
from cosmos_policy_ros.rig.spec import Rates

REMEMBERED = 100  # queries
SURE = 0.95


class LatencyTracker:
    """Latencies of the queries so far, the first after every start of the engine left out.

    ``total`` is counted on the rig's clock, from the observation's stamp to the moment when its
    chunk may be sent; phases are wall seconds of their own.

    Attributes:
        p95: seconds that hardly any query exceeds; the warm-up's until others are known, None
            before that.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.p95: float | None = None
        self._seconds: dict[str, deque[float]] = {}  # the total and every phase
        self._warm = False

    @property
    def cautious(self) -> float | None:
        """The p95 with an allowance for a small sample: twice it of one, hardly more of many."""
        known = len(self._seconds.get("total", ()))
        return None if self.p95 is None else self.p95 * (1.0 + 1.0 / max(known, 1))

    def add(self, total: float, phases: Mapping[str, float]) -> None:
        """Note one query."""
        if not self._warm:
            self._warm = True
            self.p95 = self.p95 if self._seconds else total
            return
        for name, seconds in {"total": total, **phases}.items():
            self._seconds.setdefault(name, deque(maxlen=REMEMBERED)).append(seconds)
        self.p95 = _quantile(self._seconds["total"], SURE)

    def restarted(self) -> None:
        """Leave the next query out: the engine that answers it has just started."""
        self._warm = False

    def phases_p95(self, *names: str) -> float:
        """Return the sum of some phases' p95 [s]; an unknown one counts 0."""
        return sum(_quantile(self._seconds[name], SURE) for name in names if name in self._seconds)

    def summary(self) -> dict[str, str]:
        """Return p50 and p95 of the total and of each phase for people."""
        return {
            name: f"p50 {_quantile(found, 0.5):.4g} s, p95 {_quantile(found, SURE):.4g} s"
            for name, found in self._seconds.items()
        }


def _quantile(found: deque[float], share: float) -> float:
    # One that was measured: of few, the p95 is the largest.
    return float(np.quantile(found, share, method="higher"))


Mode = Literal["synchronous", "asynchronous", "auto"]
TransitionMode = Literal["condition", "blend"]
LOOK = 1  # rows between two looks at whether it is time, at most


@dataclass(frozen=True)
class Execution:
    """How chunks follow each other.

    Attributes:
        mode: "synchronous" asks at rest; "asynchronous" in motion if the answer can come in time;
            "auto" in motion if no pause is left then, else at rest.
        transition: "condition" has the policy begin with what the arms are committed to; "blend"
            only goes over from the old path to the new one.
        blend_rows: rows of going over, with both.
        searches: whether the policy searches: it then uses all the time that it is given.
        blender: makes the blended path.
    """

    mode: Mode = "synchronous"
    transition: TransitionMode = "condition"
    blend_rows: int = 5
    searches: bool = False
    blender: Blender = Blend.blended


SYNCHRONOUS = Execution()


class InferenceScheduler:
    """Decides when to ask in motion, for an answer by when, and with what action prefix.

    Attributes:
        execution: how chunks follow each other.
        asks_in_motion: whether it ever does.
    """

    def __init__(self, execution: Execution, rates: Rates, latency: LatencyTracker) -> None:
        """Decide by the latencies measured so far."""
        self.execution, self._rates, self._latency = execution, rates, latency
        self._margin = (KEPT + LOOK) * rates.dt
        self.asks_in_motion = execution.mode != "synchronous"
        self._missed = False

    def missed(self) -> None:
        """Note that an answer did not come in time."""
        self._missed = True

    def due(self, left: float) -> bool:
        """Return whether to ask now, with ``left`` seconds of the path to go."""
        mode, p95, cautious = self.execution.mode, self._latency.p95, self._latency.cautious
        if mode == "synchronous" or p95 is None or cautious is None:
            return False
        chunk = self._rates.chunk_steps * self._rates.dt
        if self.execution.searches:
            # It takes what it is given. Half a chunk leaves the other half for its answer.
            return self._margin < left <= chunk / 2 and not (mode == "auto" and self._missed)
        if mode == "auto" and 2 * p95 + self._margin > chunk:
            return False
        # Too early costs a query now and then, too late a pause.
        going_over = self.execution.blend_rows * self._rates.dt
        return p95 + self._margin <= left <= cautious + self._margin + going_over

    def deadline(self, left: float, usual: float) -> float:
        """Return the wall seconds that a search may take; 0 for as long as it takes.

        ``left`` are the seconds of the path to go, 0 at rest; ``usual`` is the limit at rest.
        """
        if not left:
            return usual
        around = self._latency.phases_p95("observe", "transfer", "publish")
        possible = max(left - self._margin - around, self._rates.dt)
        return min(possible, usual) if usual else possible

    def action_prefix(self, path: TimedChunk, seen_ns: int) -> ActionPrefix:
        """Return what the arms do after an observation, and how firmly the answer is held to it.

        What they will have done when the answer comes is held exactly. The hold fades towards the
        path's end, over no fewer rows than two paths are blended: without fading, the answer might
        leave the path with a jump behind the rows that are watched for one.
        """
        step_ns, left_ns = path.step_ns, path.end_ns - seen_ns
        rows = max(left_ns // step_ns, 0)
        positions = [path.sample(seen_ns + (row + 1) * step_ns) for row in range(rows)]
        weights = np.zeros(rows)
        if self.execution.transition == "condition":
            p95 = self._latency.p95 or 0.0
            if self.execution.searches:
                p95 = max(left_ns / NS_PER_S - self._margin, 0.0)
            held = round(p95 / self._rates.dt) + KEPT
            held = max(min(held, rows - self.execution.blend_rows), 0)
            fading = np.arange(1, rows - held + 1) / (rows - held + 1)
            weights = np.concatenate([np.ones(held), (1 + np.cos(np.pi * fading)) / 2])
        poses: Array = np.array(positions).reshape(rows, len(path.start))
        return ActionPrefix(poses, weights, left_ns / NS_PER_S)
