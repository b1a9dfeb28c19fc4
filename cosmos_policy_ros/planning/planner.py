"""Best-of-N over a pool of workers, by a deadline.

One thread deals the tasks of a search out to whichever worker is idle. A task whose worker died is
dealt again at once; one that takes much longer than its like is given to an idle worker as well,
and the first answer counts, since both say the same. At the deadline the best of the candidates
that have finished is the answer; if none has, there is none, and the arms hold.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cosmos_policy_ros.errors import CosmosPolicyError, WorkerError
from cosmos_policy_ros.planning.deadline import Durations, fit
from cosmos_policy_ros.planning.search import STAGES, Search, SearchConfig, Unit
from cosmos_policy_ros.planning.tasks import Decide, Depict, SearchInfo, Task
from cosmos_policy_ros.planning.worker import Worker, WorkerLimits
from cosmos_policy_ros.rig.decision import Decision, EngineInfo, Query

MakeWorkers = Callable[[Callable[[], None]], Sequence[Worker]]  # given what to call on a change
# A task is overdue, and dealt a second time, after so many times what 95 % of its like have taken,
# and not before a busy machine's hiccup.
OVERDUE_FACTOR, OVERDUE_LEAST = 2.0, 0.25
# Its worker counts as hung, and is ended, after so many times that, and not before these seconds.
HUNG_FACTOR, HUNG_LEAST = 10.0, 3.0


@dataclass
class _Round:
    """One query; monotonic seconds. Its search begins when the workers are ready."""

    query: Query
    future: Future[Decision]
    deadline: float
    search: Search | None = None
    dealt: dict[Unit, list[float]] = field(default_factory=dict)  # when, once per worker at it
    spent: dict[str, float] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


class _Job(NamedTuple):
    """What a worker is doing."""

    worker: int
    since: float
    round: _Round | None
    unit: Unit | None
    depicted: Future[Any] | None = None


class Planner:
    """Answers queries by searching; speaks as one :class:`Worker` does.

    Attributes:
        workers: the pool.
        last: how the last search went, for people.
        durations: of the tasks so far.
    """

    def __init__(
        self,
        make_workers: MakeWorkers,
        config: SearchConfig,
        limits: WorkerLimits,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the workers and the thread that deals; ``on_change`` is called from threads."""
        self.durations = Durations()
        self._config, self._limits, self._on_change = config, limits, on_change
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._round: _Round | None = None
        self._busy: dict[int, _Job] = {}
        self._pictures: deque[tuple[Depict, Future[Any]]] = deque()
        self._closed = self._was_ready = False
        self._refusal = self.last = ""
        self.workers = tuple(make_workers(self._changed))
        self._thread = threading.Thread(target=self._serve, name="planner", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------- what is said of it

    @property
    def status(self) -> str:
        """As a worker's: it is ready when all have been once and one is now."""
        if self._closed:
            return "closed"
        states = [worker.status for worker in self.workers]
        if self._refusal or all(state == "failed" for state in states):
            return "failed"
        if not self._was_ready:
            return "starting"
        return "ready" if "ready" in states else "restarting"

    @property
    def message(self) -> str:
        """The last thing that happened, for people."""
        ready = sum(worker.status == "ready" for worker in self.workers)
        troubled = [w.message for w in self.workers if w.status not in ("ready", "starting")]
        text = f"{ready} of {len(self.workers)} workers are ready"
        if self._closed:
            text = "the workers have ended"
        elif self._refusal:
            text = self._refusal
        elif self.status == "starting":
            text = f"loading: {text}"
        warning = self.info.warning
        extra = [*dict.fromkeys(troubled)] if not self._refusal and not self._closed else []
        return "; ".join([text, *extra, *([warning] if warning and not extra else [])])

    @property
    def restarts(self) -> int:
        """Of all workers."""
        return sum(worker.restarts for worker in self.workers)

    @property
    def info(self) -> EngineInfo:
        """What the engines say of themselves; all the same."""
        return next((w.info for w in self.workers if w.info.digest), EngineInfo())

    # ---------------------------------------------------------------- what is asked of it

    def submit(self, task: Task, seconds: float | None = None) -> Future[Any]:
        """Ask; a new query takes the place of one under way.

        The future raises WorkerError when no candidate finished by the query's deadline or no
        worker is left, or the engines' own CosmosPolicyError when they refused. A search has its
        query's deadline and no use for ``seconds``.
        """
        future: Future[Any] = Future()
        self._events.put(("asked", task, future))
        if not self._thread.is_alive():
            self._fail_waiting()
        return future

    def close(self) -> None:
        """End the workers and the thread; a search under way fails."""
        self._closed = True
        self._events.put(("close",))
        self._thread.join(timeout=10.0)
        # All at once: each may take a moment.
        threads = [threading.Thread(target=worker.close) for worker in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # ---------------------------------------------------------------- the thread

    def _serve(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=self._patience())
            except queue.Empty:
                event = ("looked",)
            if event[0] == "close":
                break
            if event[0] == "asked":
                self._on_asked(event[1], event[2])
            elif event[0] == "answered":
                self._on_answer(event[1], event[2])
            self._look()
            self._finish()
            self._deal()
        self._fail(WorkerError("the workers are being closed"))
        self._fail_waiting()

    def _patience(self) -> float:
        """Return the seconds until something is due without anything happening."""
        if self._round is None:
            return 3600.0
        now = time.monotonic()
        due = [self._round.deadline]
        due += [
            since + self._overdue(u) for u, dealt in self._round.dealt.items() for since in dealt
        ]
        # An overdue task for which nobody is idle must not keep it awake.
        due = [at for at in due if at > now] or [now + 0.05]
        return max(min(*due, now + 1.0) - now, 0.0)

    def _look(self) -> None:
        """See how the workers are; before the first decision all must have loaded the same."""
        if self._was_ready or self._refusal:
            return
        for worker in self.workers:
            if worker.status == "failed":
                self._refusal = worker.message
        if not self._refusal and all(worker.info.digest for worker in self.workers):
            self._refusal = _difference([worker.info for worker in self.workers])
            self._was_ready = not self._refusal
        if self._was_ready or self._refusal:
            self._on_change()

    def _on_asked(self, task: Task, future: Future[Any]) -> None:
        if isinstance(task, Depict):
            self._pictures.append((task, future))
            return
        assert isinstance(task, Decide)
        self._fail(WorkerError("a newer query took its place"))
        patience = task.query.deadline or math.inf
        self._round = _Round(task.query, future, time.monotonic() + patience)

    def _begin(self, current: _Round) -> Search:
        """Begin the search with as much of it as fits into the time."""
        info, workers = self.info, sum(worker.status == "ready" for worker in self.workers)
        assert isinstance(info, SearchInfo)
        config = fit(current.query, self._config, info, self.durations, max(workers, 1))
        return Search(current.query, config, info, self._config.candidates)

    def _on_answer(self, job: _Job, answer: Future[Any]) -> None:
        self._busy.pop(job.worker, None)
        error = answer.exception()
        if job.depicted is not None:
            _hand_over(answer, job.depicted)
            return
        assert job.unit is not None
        assert job.round is not None
        assert job.round.search is not None
        seconds = time.monotonic() - job.since
        if error is None:
            steps = job.round.search.config.steps(job.unit.stage, self._steps())
            self.durations.add(job.unit.stage, steps, seconds)
        if job.round is not self._round:
            return
        job.round.dealt[job.unit].remove(job.since)
        if error is None:
            spent = job.round.spent
            spent[job.unit.stage] = spent.get(job.unit.stage, 0.0) + seconds
            job.round.search.take(job.unit, answer.result())
        elif isinstance(error, WorkerError):
            job.round.lost.append(str(error))
        else:
            self._fail(error)

    def _deal(self) -> None:
        if self._round is not None and self._round.search is None and self.status == "ready":
            self._round.search = self._begin(self._round)
        for index, worker in enumerate(self.workers):
            if self._round is None and not self._pictures:
                return
            if not self._was_ready or worker.status != "ready" or index in self._busy:
                continue
            now = time.monotonic()
            unit = self._next_unit(now)
            if unit is not None:
                assert self._round is not None
                assert self._round.search is not None
                self._round.dealt.setdefault(unit, []).append(now)
                task = self._round.search.task(unit)
                self._give(_Job(index, now, self._round, unit), task, self._hung(unit))
            elif self._pictures:
                depict, future = self._pictures.popleft()
                self._give(_Job(index, now, None, None, future), depict, self._limits.query_timeout)

    def _next_unit(self, now: float) -> Unit | None:
        """Return what nobody is at, or else what somebody should have done by now."""
        if self._round is None or self._round.search is None:
            return None
        overdue = None
        for unit in self._round.search.units:
            dealt = self._round.dealt.get(unit)
            if not dealt:
                return unit
            if overdue is None and all(now - since >= self._overdue(unit) for since in dealt):
                overdue = unit
        return overdue

    def _give(self, job: _Job, task: Task, seconds: float) -> None:
        self._busy[job.worker] = job
        future = self.workers[job.worker].submit(task, seconds)
        future.add_done_callback(lambda answer: self._events.put(("answered", job, answer)))

    def _finish(self) -> None:
        """Answer when everything is done or the deadline has come, or say why not."""
        current = self._round
        if current is None:
            return
        search = current.search
        complete = search is not None and search.complete
        if not complete and time.monotonic() < current.deadline:
            if self.status == "failed":
                self._fail(WorkerError(self.message))
            return
        late = "; ".join([f"the deadline of {current.query.deadline:g} s", *current.lost])
        if search is None or not search.finished:
            self._fail(
                WorkerError(
                    f"no candidate finished within {late}; give a longer deadline, a smaller "
                    "search or more devices"
                )
            )
            return
        phases = {str(s): current.spent.get(s, 0.0) / len(self.workers) for s in STAGES}
        self._round = None
        decision = search.decide(phases, late)
        self.last = f"{len(search.finished)} of {len(decision.candidates)} candidates finished"
        current.future.set_result(decision)

    def _fail(self, error: BaseException) -> None:
        if self._round is not None:
            current, self._round = self._round, None
            current.future.set_exception(error)

    def _fail_waiting(self) -> None:
        while not self._events.empty():
            event = self._events.get()
            if event[0] == "asked":
                event[2].set_exception(WorkerError(self.message))
        while self._pictures:
            self._pictures.popleft()[1].set_exception(WorkerError(self.message))

    def _changed(self) -> None:
        self._events.put(("changed",))
        self._on_change()

    def _steps(self) -> int:
        info = self.info
        return info.denoising_steps if isinstance(info, SearchInfo) else 1

    def _expected(self, unit: Unit) -> float:
        """Return the seconds that such a task takes at most, but for one in twenty."""
        info = self.info
        assert self._round is not None
        assert self._round.search is not None
        steps = self._round.search.config.steps(unit.stage, self._steps())
        rehearsed = info.pace if isinstance(info, SearchInfo) else {}
        return self.durations.seconds(unit.stage, steps, 0.95, rehearsed)

    def _overdue(self, unit: Unit) -> float:
        return max(OVERDUE_FACTOR * self._expected(unit), OVERDUE_LEAST)

    def _hung(self, unit: Unit) -> float:
        patience = max(HUNG_FACTOR * self._expected(unit), HUNG_LEAST)
        return min(patience, self._limits.query_timeout)


def _difference(infos: Sequence[EngineInfo]) -> str:
    """Say whether workers have loaded different files, as those of other machines may."""
    for index, info in enumerate(infos):
        for name in ("digest", "planner_digest"):
            mine, first = getattr(info, name, ""), getattr(infos[0], name, "")
            if mine != first:
                return (
                    f"worker {index} has another checkpoint than worker 0 ({name} {mine[:12]}… "
                    f"and {first[:12]}…); copy the same folders to every machine"
                )
    return ""


def _hand_over(answer: Future[Any], to: Future[Any]) -> None:
    error = answer.exception()
    if isinstance(error, CosmosPolicyError):
        to.set_exception(error)
    elif error is not None:
        raise error
    else:
        to.set_result(answer.result())
