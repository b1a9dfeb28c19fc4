"""Best-of-N over a pool of workers, by a deadline.

One thread dispatches the tasks of a search to whichever worker is idle. A task whose worker died is
dispatched again at once; one that takes much longer than its like is given to an idle worker as
well, and the first answer counts, since both say the same. At the deadline the best of the
candidates that have finished is the answer; if none has, there is none, and the arms hold.
"""

from __future__ import annotations

import math
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError, WorkerError
from cosmos_policy_ros.inference.engines import load_engine
from cosmos_policy_ros.inference.ray_host import RayHost, connect
from cosmos_policy_ros.inference.spec import (
    STAGES,
    Decide,
    DecodeImages,
    EngineLoader,
    EngineSpec,
    SearchConfig,
    SearchInfo,
    Task,
)
from cosmos_policy_ros.inference.worker import (
    Host,
    MemoryBudget,
    ProcessHost,
    Worker,
    WorkerLimits,
)
from cosmos_policy_ros.planning.deadline import DECODE_IMAGES, SURE, Durations, fit
from cosmos_policy_ros.planning.search import Foresee, Search, TaskKey
from cosmos_policy_ros.rig.decision import Decision, EngineInfo, Query

# A task is overdue, and dispatched a second time, after so many times what 95 % of its like have
# taken, and not before a busy machine's hiccup.
OVERDUE_FACTOR, OVERDUE_LEAST = 2.0, 0.25
# Its worker counts as hung, and is ended, after so many times that, and not before these seconds.
HUNG_FACTOR, HUNG_LEAST = 10.0, 3.0


@dataclass(eq=False)
class _Run:
    """A query under way; times are monotonic seconds."""

    query: Query
    future: Future[Decision]
    deadline: float
    search: Search | None = None  # once the workers are ready
    workers: int = 0  # that were ready then
    dispatched: dict[TaskKey, list[float]] = field(default_factory=dict)  # when, once per worker
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(map(str, STAGES), 0.0))
    lost: list[str] = field(default_factory=list)  # what became of workers


class SearchScheduler:
    """Answers queries by searching; speaks as one :class:`Worker` does.

    Attributes:
        workers: the pool.
        last: how the last search went, for people.
        durations: of the tasks so far.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        config: SearchConfig,
        limits: WorkerLimits,
        on_change: Callable[[], None],
        foresee: Foresee | None = None,
    ) -> None:
        """Start a worker per host, and the thread; what is called is called from threads.

        ``foresee`` is :func:`start_inference`'s.
        """
        self.durations, self._foresee = Durations(), foresee
        self.last = ""
        self._config, self._limits, self._on_change = config, limits, on_change
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._run: _Run | None = None
        self._images: deque[tuple[DecodeImages, Future[Any]]] = deque()
        self._busy: set[int] = set()  # workers, by index
        self._closed = self._was_ready = False
        self._refusal = ""

        def changed() -> None:
            self._events.put(("changed",))
            on_change()

        self.workers = tuple(Worker(host, limits, changed) for host in hosts)
        self._thread = threading.Thread(target=self._serve, name="search", daemon=True)
        self._thread.start()

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
        """The engines'; all the same."""
        return next((w.info for w in self.workers if w.info.digest), EngineInfo())

    def submit(self, task: Task) -> Future[Any]:
        """Ask; a new query takes the place of one under way.

        The future raises WorkerError when no candidate finished by the query's deadline or no
        worker is left, or the engines' own CosmosPolicyError when they refused.
        """
        future: Future[Any] = Future()
        self._events.put(("asked", task, future))
        if not self._thread.is_alive():
            self._fail_waiting()
        return future

    def close(self) -> None:
        """End the workers and the thread; a search under way fails."""
        self._closed = True
        self._events.put(("closed",))
        self._thread.join(timeout=10.0)
        # All at once: each may take a moment.
        threads = [threading.Thread(target=worker.close) for worker in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _serve(self) -> None:
        """Take what happens, finish what is complete or due, dispatch to who is idle."""
        try:
            while not self._closed:
                try:
                    event = self._events.get(timeout=self._patience())
                except queue.Empty:
                    event = ("due",)
                match event:
                    case ("asked", Decide(query), future):
                        self._fail(WorkerError("a newer query took its place"))
                        deadline = time.monotonic() + (query.deadline or math.inf)
                        self._run = _Run(query, future, deadline)
                    case ("asked", task, future):
                        self._images.append((task, future))
                    case ("computed", index, since, run, key, answer):
                        self._busy.remove(index)
                        self._take(run, key, since, answer)
                    case ("decoded", index, since, future, answer):
                        self._busy.remove(index)
                        try:
                            images = answer.result()
                        except CosmosPolicyError as error:
                            future.set_exception(error)
                        else:
                            self.durations.add(DECODE_IMAGES, 1, time.monotonic() - since)
                            future.set_result(images)
                self._compare_workers()
                self._finish()
                self._dispatch()
            self._fail(WorkerError("the workers are being closed"))
        except Exception as error:  # no future may wait for a thread that is gone
            traceback.print_exc()
            self._refusal = f"a bug in the planner, see the log: {type(error).__name__}: {error}"
            self._fail(WorkerError(self._refusal))
            self._on_change()
        self._fail_waiting()

    def _patience(self) -> float:
        """Return the seconds until something is due without anything happening."""
        run, now = self._run, time.monotonic()
        if run is None:
            return 3600.0
        under_way = [key for key, since in run.dispatched.items() if since]
        overdue = [at for key in under_way if (at := self._overdue(run, key)) > now]
        return max(min(*overdue, run.deadline, now + 1.0) - now, 0.0)

    def _take(self, run: _Run, key: TaskKey, since: float, answer: Future[Any]) -> None:
        """Take what became of a task; that of an earlier run counts for its duration only."""
        assert run.search is not None
        run.dispatched[key].remove(since)
        try:
            found = answer.result()
        except WorkerError as error:
            run.lost.append(str(error))
        except CosmosPolicyError as error:
            if run is self._run:
                self._fail(error)
        else:
            seconds = time.monotonic() - since
            self.durations.add(key.stage, run.search.steps(key), seconds)
            run.spent[key.stage] += seconds / run.workers
            if run is self._run:
                run.search.take(key, found)

    def _compare_workers(self) -> None:
        """Before the first decision all must have loaded, and the same files on every machine."""
        if self._was_ready or self._refusal:
            return
        infos = [worker.info for worker in self.workers]
        for worker in self.workers:
            if worker.status == "failed":
                self._refusal = worker.message
        if not self._refusal and all(info.digest for info in infos):
            self._refusal = _difference(infos)
            self._was_ready = not self._refusal
        if self._was_ready or self._refusal:
            self._on_change()

    def _finish(self) -> None:
        """Answer when everything is done or the deadline has come, or say why not."""
        run = self._run
        if run is None:
            return
        complete = run.search is not None and run.search.complete
        if not complete and time.monotonic() < run.deadline:
            if self.status == "failed":
                self._fail(WorkerError(self.message))
            return
        within = "; ".join([f"the deadline of {run.query.deadline:g} s", *run.lost])
        if run.search is None or not run.search.finished:
            text = f"no candidate finished within {within}; give a longer deadline, a smaller "
            self._fail(WorkerError(f"{text}search or more devices"))
            return
        decision = run.search.decide(run.spent, within)
        finished = sum(candidate.finished for candidate in decision.candidates)
        self.last = f"{finished} of {len(decision.candidates)} candidates finished"
        self._run = None
        run.future.set_result(decision)

    def _dispatch(self) -> None:
        """Give idle workers something to do: tasks first, then overdue ones again, then images."""
        ready = [i for i, worker in enumerate(self.workers) if worker.status == "ready"]
        if not self._was_ready or not ready:
            return
        run = self._run
        if run is not None and run.search is None:
            assert isinstance(self.info, SearchInfo)
            fitting = fit(run.query, self._config, self.info, self.durations, len(ready))
            requested = self._config.considered
            run.search = Search(run.query, fitting, self.info, requested, self._foresee)
            run.workers = len(ready)
        for index in ready:
            if index in self._busy:
                continue
            now = time.monotonic()
            key = self._next_key(run, now) if run is not None else None
            task: Task
            event: tuple[Any, ...]
            if run is not None and run.search is not None and key is not None:
                task, expected = run.search.task(key), self._expected(run.search, key)
                run.dispatched.setdefault(key, []).append(now)
                event = "computed", index, now, run, key
            elif self._images:
                task, future = self._images.popleft()
                expected = self.durations.seconds(DECODE_IMAGES, 1, SURE, {})
                event = "decoded", index, now, future
            else:
                return
            self._busy.add(index)
            patience = min(max(HUNG_FACTOR * expected, HUNG_LEAST), self._limits.query_timeout)

            def done(answer: Future[Any], event: tuple[Any, ...] = event) -> None:
                self._events.put((*event, answer))

            self.workers[index].submit(task, patience).add_done_callback(done)

    def _next_key(self, run: _Run, now: float) -> TaskKey | None:
        """Return the first task that no worker is at, or else the first overdue one."""
        keys = run.search.open if run.search is not None else []
        for key in keys:
            if not run.dispatched.get(key):
                return key
        return next((key for key in keys if now >= self._overdue(run, key)), None)

    def _expected(self, search: Search, key: TaskKey) -> float:
        """Return the seconds that such a task takes at most, but for one in twenty."""
        return self.durations.seconds(key.stage, search.steps(key), SURE, search.info.pace)

    def _overdue(self, run: _Run, key: TaskKey) -> float:
        """Return when a task that was dispatched is to be dispatched once more."""
        assert run.search is not None
        expected = self._expected(run.search, key)
        return max(run.dispatched[key]) + max(OVERDUE_FACTOR * expected, OVERDUE_LEAST)

    def _fail(self, error: Exception) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            run.future.set_exception(error)

    def _fail_waiting(self) -> None:
        while not self._events.empty():
            event = self._events.get()
            if event[0] == "asked":
                event[2].set_exception(WorkerError(self.message))
        while self._images:
            self._images.popleft()[1].set_exception(WorkerError(self.message))


def _difference(infos: Sequence[EngineInfo]) -> str:
    """Name the first worker that has loaded other files than worker 0, or return ""."""
    for index, info in enumerate(infos):
        for name in ("digest", "world_model_digest"):
            mine, first = getattr(info, name, ""), getattr(infos[0], name, "")
            if mine != first:
                return (
                    f"worker {index} has another checkpoint than worker 0 ({name} {mine[:12]}… "
                    f"and {first[:12]}…); copy the same folders to every machine"
                )
    return ""


# What the policy node talks to; both are asked, closed and described alike.
Inference: TypeAlias = Worker | SearchScheduler


def start_inference(
    spec: EngineSpec,
    devices: Sequence[str],
    limits: WorkerLimits,
    on_change: Callable[[], None] = lambda: None,
    load: EngineLoader = load_engine,
    ray: str = "",
    foresee: Foresee | None = None,
) -> Inference:
    """Start loading in the background.

    Args:
        spec: the engine; with a search it runs on every device.
        devices: torch devices, a worker each; "auto" alone means every GPU, or one CPU worker.
        limits: patience with each of them.
        on_change: called from threads when something is to be told.
        load: builds the engine.
        ray: address of a Ray cluster to search on, "local" to start one; "" for processes here.
        foresee: which chunks would be refused, so that a search leaves them out.

    Raises:
        ConfigError: no such Ray cluster, or devices that it does not know.
    """
    if spec.search is None:
        return Worker(ProcessHost(replace(spec, device=devices[0]), load), limits, on_change)
    cluster, budget = connect(ray) if ray else None, MemoryBudget()
    if list(devices) == ["auto"]:
        if cluster is not None:
            gpus = ["cuda"] * int(cluster.cluster_resources().get("GPU", 0))
        else:
            # Counted in a process of its own: this one does without torch.
            code = "import torch; print(torch.cuda.device_count())"
            found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            gpus = [f"cuda:{i}" for i in range(int(found.stdout) if not found.returncode else 0)]
        devices = gpus or ["cpu"]
    hosts: list[Host] = []
    for device in devices:
        own = replace(spec, device=device)
        hosts.append(RayHost(cluster, own, load) if ray else ProcessHost(own, load, budget))
    return SearchScheduler(hosts, spec.search, limits, on_change, foresee)


def parse_devices(text: str) -> tuple[str, ...]:
    """Return the devices of a list like "cuda:0,cuda:1" or "cpu,cpu": one worker each.

    Raises:
        ConfigError: an empty entry.
    """
    devices = tuple(part.strip() for part in text.split(","))
    if not all(devices):
        raise ConfigError(
            f"devices '{text}' has an empty entry; give auto, or a list like cuda:0,cuda:1"
        )
    return devices
