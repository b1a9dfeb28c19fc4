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
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from cosmos_policy_ros.core.errors import CosmosPolicyError, WorkerError
from cosmos_policy_ros.inference.spec import STAGES, SearchConfig
from cosmos_policy_ros.inference.tasks import Decide, DecodeImages, SearchInfo, Task
from cosmos_policy_ros.inference.worker import Worker, WorkerLimits
from cosmos_policy_ros.planning.search import DEPICT, SURE, Durations, Search, TaskKey, fit
from cosmos_policy_ros.rig.decision import Decision, EngineInfo, Query

# One search under way: which task nobody is at, and which has been somebody's for too long.


# A task is overdue, and dealt a second time, after so many times what 95 % of its like have taken,
# and not before a busy machine's hiccup.
OVERDUE_FACTOR, OVERDUE_LEAST = 2.0, 0.25
# Its worker counts as hung, and is ended, after so many times that, and not before these seconds.
HUNG_FACTOR, HUNG_LEAST = 10.0, 3.0


class SearchRun:
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
        self._dealt: dict[TaskKey, list[float]] = {}  # when, once per worker that is at it
        self._spent = dict.fromkeys(map(str, STAGES), 0.0)
        self._lost: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self._search.complete

    def next_unit(self, now: float) -> TaskKey | None:
        """Return what nobody is at, or else what somebody should have done by now."""
        overdue = None
        for unit in self._search.units:
            dealt = self._dealt.get(unit)
            if not dealt:
                return unit
            if overdue is None and now >= max(dealt) + self._overdue(unit):
                overdue = unit
        return overdue

    def dispatch(self, unit: TaskKey, now: float) -> tuple[Task, float]:
        """Return a task that somebody begins, and the seconds after which he counts as hung."""
        self._dealt.setdefault(unit, []).append(now)
        return self._search.task(unit), hung_after(self._expected(unit))

    def answered(self, unit: TaskKey, since: float, answer: Future[Any], *, late: bool) -> None:
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

    def _steps(self, unit: TaskKey) -> int:
        return self._search.config.steps(unit.stage, self._info.denoising_steps)

    def _expected(self, unit: TaskKey) -> float:
        """Return the seconds that such a task takes at most, but for one in twenty."""
        return self._durations.seconds(unit.stage, self._steps(unit), SURE, self._info.pace)

    def _overdue(self, unit: TaskKey) -> float:
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


MakeWorkers = Callable[[Callable[[], None]], Sequence[Worker]]  # given what to call on a change


class _Asked(NamedTuple):
    """The query under way; monotonic seconds."""

    query: Query
    future: Future[Decision]
    deadline: float


class _Job(NamedTuple):
    """What a worker is at since when: a task of a search, or an image."""

    worker: int
    since: float
    work: tuple[SearchRun, TaskKey] | Future[Any]


class SearchScheduler:
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
        self._asked: _Asked | None = None
        self._run: SearchRun | None = None  # of what was asked, once the workers are ready
        self._busy: dict[int, _Job] = {}
        self._images: deque[tuple[DecodeImages, Future[Any]]] = deque()
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
        if self._closed:
            return "the workers have ended"
        if self._refusal:
            return self._refusal
        ready = sum(worker.status == "ready" for worker in self.workers)
        text = f"{ready} of {len(self.workers)} workers are ready"
        if self.status == "starting":
            text = f"loading: {text}"
        troubled = [w.message for w in self.workers if w.status not in ("ready", "starting")]
        return "; ".join(dict.fromkeys([text, *(troubled or filter(None, [self.info.warning]))]))

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
        try:
            self._deal_until_closed()
            self._fail(WorkerError("the workers are being closed"))
        except Exception as error:  # nobody may be left waiting for a thread that is gone
            traceback.print_exc()
            self._refusal = f"a bug in the planner, see the log: {type(error).__name__}: {error}"
            self._fail(WorkerError(self._refusal))
            self._on_change()
        self._fail_waiting()

    def _deal_until_closed(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=self._patience())
            except queue.Empty:
                event = ("nothing",)
            if event[0] == "close":
                return
            if event[0] == "asked":
                self._take(event[1], event[2])
            elif event[0] == "answered":
                self._take_answer(event[1], event[2])
            self._look()
            self._finish()
            self._deal()

    def _patience(self) -> float:
        """Return the seconds until something is due without anything happening."""
        if self._asked is None:
            return 3600.0
        now = time.monotonic()
        due = self._run.next_overdue(now) if self._run is not None else now + 1.0
        return max(min(due, self._asked.deadline) - now, 0.0)

    def _take(self, task: Task, future: Future[Any]) -> None:
        if isinstance(task, DecodeImages):
            self._images.append((task, future))
            return
        assert isinstance(task, Decide)
        self._fail(WorkerError("a newer query took its place"))
        patience = task.query.deadline or math.inf
        self._asked = _Asked(task.query, future, time.monotonic() + patience)

    def _take_answer(self, job: _Job, answer: Future[Any]) -> None:
        del self._busy[job.worker]
        if isinstance(job.work, Future):
            if answer.exception() is None:
                self.durations.add(DEPICT, 1, time.monotonic() - job.since)
            _hand_over(answer, job.work)
            return
        of, unit = job.work
        try:
            of.answered(unit, job.since, answer, late=of is not self._run)
        except CosmosPolicyError as error:
            self._fail(error)

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

    def _finish(self) -> None:
        """Answer when everything is done or the deadline has come, or say why not."""
        if self._asked is None:
            return
        complete = self._run is not None and self._run.complete
        if not complete and time.monotonic() < self._asked.deadline:
            if self.status == "failed":
                self._fail(WorkerError(self.message))
            return
        if self._run is None:
            self._fail(nothing_finished(f"the deadline of {self._asked.query.deadline:g} s"))
            return
        try:
            decision = self._run.decide()
        except WorkerError as error:
            self._fail(error)
            return
        finished = sum(candidate.finished for candidate in decision.candidates)
        self.last = f"{finished} of {len(decision.candidates)} candidates finished"
        asked, self._asked, self._run = self._asked, None, None
        asked.future.set_result(decision)

    def _deal(self) -> None:
        ready = [i for i, worker in enumerate(self.workers) if worker.status == "ready"]
        if not self._was_ready or not ready:
            return
        if self._asked is not None and self._run is None:
            assert isinstance(self.info, SearchInfo)
            self._run = SearchRun(
                self._asked.query, self._config, self.info, self.durations, len(ready)
            )
        for index in ready:
            if index not in self._busy:
                self._deal_to(index, time.monotonic())

    def _deal_to(self, index: int, now: float) -> None:
        """Give an idle worker something to do, if there is anything."""
        unit = self._run.next_unit(now) if self._run is not None else None
        if self._run is not None and unit is not None:
            task, seconds = self._run.dispatch(unit, now)
            job = _Job(index, now, (self._run, unit))
        elif self._images:
            task, future = self._images.popleft()
            seconds = hung_after(self.durations.seconds(DEPICT, 1, SURE, {}))
            job = _Job(index, now, future)
        else:
            return
        self._busy[index] = job
        answer = self.workers[index].submit(task, min(seconds, self._limits.query_timeout))
        answer.add_done_callback(lambda answer: self._events.put(("answered", job, answer)))

    def _fail(self, error: BaseException) -> None:
        if self._asked is not None:
            asked, self._asked, self._run = self._asked, None, None
            asked.future.set_exception(error)

    def _fail_waiting(self) -> None:
        while not self._events.empty():
            event = self._events.get()
            if event[0] == "asked":
                event[2].set_exception(WorkerError(self.message))
        while self._images:
            self._images.popleft()[1].set_exception(WorkerError(self.message))

    def _changed(self) -> None:
        self._events.put(("changed",))
        self._on_change()


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
