"""One engine behind one thread: started, asked, and started again when it dies.

The engine lives elsewhere (:class:`Host`). A crash or a kill costs one task, a hang ends at a
deadline, and the thread is the only one that talks to it.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import signal
import socket
import struct
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from cosmos_policy_ros.core.errors import CheckpointError, CosmosPolicyError, WorkerError
from cosmos_policy_ros.core.processes import end_with_parent, yield_to_control
from cosmos_policy_ros.inference.spec import EngineLoader, EngineSpec, Footprint, Task
from cosmos_policy_ros.rig.decision import EngineInfo

LONGEST_PAUSE = 30.0  # s before a restart, however many there have been
GB = 1e9


class Host(ABC):
    """Where an engine lives: a process here, or an actor of a Ray cluster. Used by one thread."""

    title: str  # the engine and its place, for people
    name: str  # what runs there now, for people
    pid: int | None = None  # of a process on this machine

    def __init__(self) -> None:
        self.closing = threading.Event()  # set by another thread: ends every wait

    @abstractmethod
    def start(self, seconds: float) -> EngineInfo:
        """Load the engine. Raises WorkerError: it died, hung; CosmosPolicyError: it refused."""

    @abstractmethod
    def ask(self, task: Task, seconds: float) -> object:
        """Have a task done. Raises as :meth:`start`."""

    @abstractmethod
    def stop(self) -> None:
        """End it, whatever it does."""

    def wait_until(self, happened: Callable[[float], object], seconds: float, during: str) -> None:
        """Return when ``happened``, which waits for the seconds it is given, says so.

        Raises WorkerError when that takes longer than ``seconds``, or the worker is being closed.
        """
        deadline = time.monotonic() + seconds
        while not self.closing.is_set():
            # Short waits, so that closing is noticed.
            left = min(0.2, deadline - time.monotonic())
            if left <= 0:
                raise WorkerError(self.overdue(seconds, during))
            if happened(left):
                return
        raise WorkerError(f"{self.name} is being closed")

    def overdue(self, seconds: float, during: str) -> str:
        """Say that there was no answer in time."""
        return f"{self.name} gave no answer for {seconds:g} s during {during} and was ended"


@dataclass(frozen=True)
class WorkerLimits:
    """Patience with an inference process; times in seconds."""

    start_timeout: float = 600.0  # from spawn to a loaded model
    query_timeout: float = 60.0  # for one task, after which the process counts as hung
    restarts: int = 3  # of a dead process before giving up, within ``memory``
    backoff: float = 0.5  # before the first restart; doubles with each within ``memory``
    memory: float = 900.0  # after which a restart is forgotten: three in a day are no crash loop


class Worker:
    """Does tasks one after the other.

    Attributes:
        status: "starting", "ready", "restarting", "failed" or "closed".
        message: the last thing that happened, for people.
        info: the engine's; empty before it is loaded.
        restarts: how often it was started again, in all.
        title: the engine and its place, for people.
    """

    def __init__(
        self, host: Host, limits: WorkerLimits, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """Start loading in the background; ``on_change`` is called from the thread."""
        self.status, self.message = "starting", f"loading {host.title}"
        self.info, self.title, self.restarts = EngineInfo(), host.title, 0
        self._host, self._limits, self._on_change = host, limits, on_change
        self._restarted: list[float] = []  # monotonic seconds of those not forgotten
        self._tasks: queue.SimpleQueue[tuple[Task, float, Future[Any]] | None]
        self._tasks = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Process id of the inference process, None while there is none."""
        return self._host.pid

    def submit(self, task: Task, seconds: float | None = None) -> Future[Any]:
        """Ask; the future's callbacks run in the worker thread.

        The future raises WorkerError when the process died or hung (after ``seconds``, by default
        the limits' own), or the engine's own CosmosPolicyError when it refused.
        """
        future: Future[Any] = Future()
        if self.status in ("failed", "closed"):
            future.set_exception(WorkerError(self.message))
        else:
            patience = self._limits.query_timeout if seconds is None else seconds
            self._tasks.put((task, patience, future))
            if not self._thread.is_alive():  # it gave up between the two lines above
                self._fail_waiting()
        return future

    def close(self) -> None:
        """End the process and the thread; a task under way fails."""
        self._host.closing.set()
        self._tasks.put(None)
        self._thread.join(timeout=10.0)
        self._set("closed", "inference process ended")

    def _serve(self) -> None:
        """Start the engine, answer until it dies, start it again while the budget lasts."""
        while not self._host.closing.is_set():
            try:
                self.info = self._host.start(self._limits.start_timeout)
                text = f"{self._host.title} is ready ({self._host.name})"
                self._set("ready", f"{text}; {self.info.warning}" if self.info.warning else text)
                self._answer()
            except WorkerError as error:
                self._host.stop()
                if not self._may_restart(error):
                    break
            except CosmosPolicyError as error:
                # The engine itself refused to load: starting it again would say the same.
                self._set("failed", str(error))
                break
        self._host.stop()
        self._fail_waiting()

    def _answer(self) -> None:
        while (item := self._tasks.get()) is not None:
            task, seconds, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._host.ask(task, seconds))
            except WorkerError as error:
                # Before the failure is told: who then asks must not find it "ready".
                self.status = "restarting"
                future.set_exception(error)
                raise
            except CosmosPolicyError as error:
                future.set_exception(error)
            except Exception as error:  # no future may wait for a thread that is gone
                traceback.print_exc()
                text = f"a bug in the worker, see the log: {type(error).__name__}: {error}"
                future.set_exception(WorkerError(text))
                raise WorkerError(text) from error

    def _may_restart(self, error: WorkerError) -> bool:
        limits, now = self._limits, time.monotonic()
        self._restarted = [at for at in self._restarted if now - at < limits.memory]
        recent = len(self._restarted)
        if recent >= limits.restarts:
            self._set("failed", f"{error}; gave up after {recent} restarts")
            return False
        pause = min(limits.backoff * 2**recent, LONGEST_PAUSE)
        self._restarted.append(now)
        self.restarts += 1
        count = f"{recent + 1} of {limits.restarts}"
        self._set("restarting", f"{error}; restarting in {pause:g} s ({count})")
        return not self._host.closing.wait(pause)

    def _fail_waiting(self) -> None:
        while not self._tasks.empty():
            if item := self._tasks.get():
                item[2].set_exception(WorkerError(self.message))

    def _set(self, status: str, message: str) -> None:
        self.status, self.message = status, message
        self._on_change()


class MemoryBudget:
    """Grants memory to engines that load at the same time, and see it free until they have."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first_seen: dict[str, int] = {}
        self._granted: dict[object, Footprint] = {}

    def admit(self, who: object, footprint: Footprint) -> None:
        """Grant it. Raises CheckpointError, with the sums, when there is no room."""
        with self._lock:
            device = footprint.device
            others = [f for f in self._granted.values() if f.device == device]
            if not others:
                self._first_seen[device] = footprint.free
            free, taken = self._first_seen[device], sum(f.total for f in others)
            if taken + footprint.total > free:
                parts = ", ".join(f"{what} {n / GB:.1f}" for what, n in footprint.needs.items())
                beside = f" beside {taken / GB:.1f} GB for {len(others)} more" if others else ""
                raise CheckpointError(
                    f"{device}: an inference process needs {footprint.total / GB:.1f} GB ({parts})"
                    f"{beside}, but {free / GB:.1f} GB are free; name fewer or other devices, use "
                    "one checkpoint for both roles, or end what else uses the device"
                )
            self._granted[who] = footprint

    def release(self, who: object) -> None:
        """Take back what an engine had, if it had any."""
        with self._lock:
            self._granted.pop(who, None)


class ProcessHost(Host):
    """A process of the engine's own.

    Its Python never holds the node's interpreter lock, and a crash or a kill costs one task instead
    of the node.
    """

    def __init__(
        self, spec: EngineSpec, load: EngineLoader, budget: MemoryBudget | None = None
    ) -> None:
        """Start nothing yet; without a budget memory is granted if the device has it."""
        super().__init__()
        self.title, self.name = f"engine {spec.engine} on {spec.place}", "inference process"
        self._spec, self._load, self._budget = spec, load, budget or MemoryBudget()
        self._context = mp.get_context("spawn")
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def start(self, seconds: float) -> EngineInfo:
        """Start the process and wait until its engine is loaded."""
        deadline, again = time.monotonic() + seconds, self._process is not None
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_process_main,
            args=(self._spec, self._load, theirs, again),
            name="cosmos_policy_worker",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        self.pid, self.name = self._process.pid, f"inference process {self._process.pid}"
        answer = self._receive(seconds, "start-up")
        while isinstance(answer, Footprint):
            self._budget.admit(self, answer)
            self._send(True, seconds, "start-up")
            answer = self._receive(deadline - time.monotonic(), "start-up")
        assert isinstance(answer, EngineInfo)
        return answer

    def ask(self, task: Task, seconds: float) -> object:
        """Send a task and wait for the answer."""
        self._send(task, seconds, task.what)
        return self._receive(seconds, task.what)

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._budget.release(self)

    def _send(self, message: object, seconds: float, during: str) -> None:
        assert self._connection is not None
        # A query is larger than what a pipe holds: a process that has stopped reading would block
        # this thread for ever.
        timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        with socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        try:
            self._connection.send(message)
        except BlockingIOError as error:
            raise WorkerError(self.overdue(seconds, during)) from error
        except OSError as error:
            raise WorkerError(self._obituary(during)) from error

    def _receive(self, seconds: float, during: str) -> object:
        """Wait for an answer, the process's death, the deadline, or our own closing."""
        assert self._process is not None
        assert self._connection is not None
        ends = self._connection, self._process.sentinel
        self.wait_until(lambda left: wait(ends, timeout=left), seconds, during)
        if not self._connection.poll():
            raise WorkerError(self._obituary(during))
        try:
            answer: object = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(self._obituary(during)) from error
        if isinstance(answer, CosmosPolicyError):
            raise answer
        return answer

    def _obituary(self, during: str) -> str:
        assert self._process is not None
        self._process.join(timeout=1.0)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"{self.name} was killed by {signal.Signals(-code).name} during {during}"
        return f"{self.name} died with exit code {code} during {during}"


def _process_main(
    spec: EngineSpec, load: EngineLoader, connection: Connection, again: bool
) -> None:
    """Load the engine, then answer until the pipe closes (which it does when the node ends).

    The first time, no arm moves before it is loaded; ``again`` it may be in the middle of a run.
    """
    # Ctrl-C goes to the whole process group; the node decides when its worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if again:
        yield_to_control(spec.niceness)

    def admit(footprint: Footprint) -> None:
        connection.send(footprint)
        connection.recv()

    try:
        engine = load(spec, admit)
        yield_to_control(spec.niceness, all_threads=True)
        connection.send(engine.info)
    except Exception as error:
        connection.send(as_answer(error))
        return
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(engine.answer(task))
        except Exception as error:
            connection.send(as_answer(error))


def as_answer(error: Exception) -> CosmosPolicyError:
    """Return an engine's refusal as it is, and what broke it as a WorkerError with its words.

    After a WorkerError a new process is started: the state of the old one is unknown.
    """
    if isinstance(error, CosmosPolicyError):
        return error
    traceback.print_exc()
    return WorkerError(
        f"inference process {os.getpid()} broke off with {type(error).__name__}: {error} (the "
        "traceback is in the log)"
    )
