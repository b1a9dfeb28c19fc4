"""One search under way: which task nobody is at, and which has been somebody's for too long."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

from cosmos_policy_ros.errors import WorkerError
from cosmos_policy_ros.planning.deadline import SURE, Durations, fit
from cosmos_policy_ros.planning.search import STAGES, Search, SearchConfig, Unit
from cosmos_policy_ros.planning.tasks import SearchInfo, Task
from cosmos_policy_ros.rig.decision import Decision, Query

# A task is overdue, and dealt a second time, after so many times what 95 % of its like have taken,
# and not before a busy machine's hiccup.
OVERDUE_FACTOR, OVERDUE_LEAST = 2.0, 0.25
# Its worker counts as hung, and is ended, after so many times that, and not before these seconds.
HUNG_FACTOR, HUNG_LEAST = 10.0, 3.0


class Round:
    """Deals the tasks of one search. Times are monotonic seconds."""

    def __init__(
        self,
        query: Query,
        config: SearchConfig,
        info: SearchInfo,
        durations: Durations,
        workers: int,
    ) -> None:
        """Begin with as much of a search as fits into the query's deadline.

        Args:
            query: what is seen.
            config: the search that was asked for.
            info: of the engines.
            durations: of tasks so far; those of this search are added.
            workers: how many there are.
        """
        fitting = fit(query, config, info, durations, workers)
        self._search = Search(query, fitting, info, config.candidates)
        self._info, self._durations, self._workers = info, durations, workers
        self._within = f"the deadline of {query.deadline:g} s"
        self._dealt: dict[Unit, list[float]] = {}  # when, once per worker that is at it
        self._spent = dict.fromkeys(map(str, STAGES), 0.0)
        self._lost: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self._search.complete

    def next_unit(self, now: float) -> Unit | None:
        """Return what nobody is at, or else what somebody should have done by now."""
        overdue = None
        for unit in self._search.units:
            dealt = self._dealt.get(unit)
            if not dealt:
                return unit
            if overdue is None and now >= max(dealt) + self._overdue(unit):
                overdue = unit
        return overdue

    def deal(self, unit: Unit, now: float) -> tuple[Task, float]:
        """Return a task that somebody begins, and the seconds after which he counts as hung."""
        self._dealt.setdefault(unit, []).append(now)
        return self._search.task(unit), hung_after(self._expected(unit))

    def answered(self, unit: Unit, since: float, answer: Future[Any], *, late: bool) -> None:
        """Take what became of a task dealt at ``since``; ``late`` if its search is over.

        Raises:
            CosmosPolicyError: the engine refused it, as it always would.
        """
        error = answer.exception()
        self._dealt[unit].remove(since)
        if isinstance(error, WorkerError):
            self._lost.append(str(error))
        elif error is not None:
            if not late:
                raise error
        else:
            seconds = time.monotonic() - since
            self._durations.add(unit.stage, self._steps(unit), seconds)
            self._spent[unit.stage] += seconds / self._workers
            if not late:
                self._search.take(unit, answer.result())

    def next_overdue(self, now: float) -> float:
        """Return when the next task will be overdue; at the latest in a second."""
        due = (max(dealt) + self._overdue(unit) for unit, dealt in self._dealt.items() if dealt)
        return min((at for at in due if at > now), default=now + 1.0)

    def decide(self) -> Decision:
        """Return the best of what has finished.

        Raises:
            WorkerError: nothing has.
        """
        within = "; ".join([self._within, *self._lost])
        if not self._search.finished:
            raise nothing_finished(within)
        return self._search.decide(self._spent, within)

    def _steps(self, unit: Unit) -> int:
        return self._search.config.steps(unit.stage, self._info.denoising_steps)

    def _expected(self, unit: Unit) -> float:
        """Return the seconds that such a task takes at most, but for one in twenty."""
        return self._durations.seconds(unit.stage, self._steps(unit), SURE, self._info.pace)

    def _overdue(self, unit: Unit) -> float:
        return max(OVERDUE_FACTOR * self._expected(unit), OVERDUE_LEAST)


def hung_after(expected: float) -> float:
    """Return the seconds after which whoever is at a task counts as hung."""
    return max(HUNG_FACTOR * expected, HUNG_LEAST)


def nothing_finished(within: str) -> WorkerError:
    """Return the error of a search without an answer."""
    return WorkerError(
        f"no candidate finished within {within}; give a longer deadline, a smaller search or more "
        "devices"
    )
