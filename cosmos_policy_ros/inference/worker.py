"""One engine behind one thread: started, asked, and started again when it dies.

The engine lives elsewhere (:class:`Host`). A crash or a kill costs one task, a hang ends at a
deadline, and the thread is the only one that talks to it.
"""

from __future__ import annotations

import ctypes
import multiprocessing as mp
import os
import queue
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from cosmos_policy_ros.core.errors import CosmosPolicyError, WorkerError
from cosmos_policy_ros.inference.spec import EngineLoader, EngineSpec, Footprint, MemoryBudget
from cosmos_policy_ros.inference.tasks import Task
from cosmos_policy_ros.rig.decision import EngineInfo

LONGEST_PAUSE = 30.0  # s before a restart, however many there have been


class Host(Protocol):
    """Where an engine lives: a process here, or an actor of a Ray cluster. Used by one thread."""

    title: str

    @property
    def pid(self) -> int | None:
        """Process id, None while there is none."""
        ...

    @property
    def name(self) -> str:
        """How messages call what runs now."""
        ...

    def start(self, seconds: float, closing: threading.Event) -> EngineInfo:
        """Load the engine. Raises WorkerError: it died, hung; CosmosPolicyError: it refused."""
        ...

    def ask(self, task: Task, seconds: float, closing: threading.Event) -> object:
        """Have a task done. Raises as :meth:`start`."""
        ...

    def stop(self) -> None:
        """End it, whatever it does."""
        ...


@dataclass(frozen=True)
class WorkerLimits:
    """Patience with an inference process.

    Attributes:
        start_timeout: seconds from spawn to a loaded model.
        query_timeout: seconds for one task, after which the process counts as hung.
        restarts: how often a dead process is started again before giving up, within ``memory``.
        backoff: seconds before the first restart; doubles with each within ``memory``.
        memory: seconds after which a restart is forgotten: three in a day are no crash loop.
    """

    start_timeout: float = 600.0
    query_timeout: float = 60.0
    restarts: int = 3
    backoff: float = 0.5
    memory: float = 900.0


class Worker:
    """Does tasks one after the other.

    Attributes:
        status: "starting", "ready", "restarting", "failed" or "closed".
        message: the last thing that happened, for people.
        info: what the engine says of itself; empty before it is loaded.
        restarts: how often it was started again, in all.
    """

    def __init__(
        self, host: Host, limits: WorkerLimits, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """Start loading in the background; ``on_change`` is called from the thread."""
        self.status = "starting"
        self.message = f"loading {host.title}"
        self.restarts = 0
        self._restarted: list[float] = []  # monotonic seconds of those not forgotten
        self.info = EngineInfo()
        self.title = host.title
        self._host, self._limits, self._on_change = host, limits, on_change
        self._tasks: queue.SimpleQueue[tuple[Task, float, Future[Any]] | None]
        self._tasks = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Itself: one worker is the smallest pool."""
        return (self,)

    @property
    def pid(self) -> int | None:
        """Process id of the inference process, None while there is none."""
        return self._host.pid

    def submit(self, task: Task, seconds: float | None = None) -> Future[Any]:
        """Ask; the future's callbacks run in the worker thread.

        The future raises WorkerError when the process died or hung, or the engine's own
        CosmosPolicyError when it refused.

        Args:
            task: what to do.
            seconds: instead of the limits' own, after which the process counts as hung.
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
        self._closing.set()
        self._tasks.put(None)
        self._thread.join(timeout=10.0)
        self._set("closed", "inference process ended")

    def _serve(self) -> None:
        """Start the engine, answer until it dies, start it again while the budget lasts."""
        while not self._closing.is_set():
            try:
                self.info = self._host.start(self._limits.start_timeout, self._closing)
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
        self._set(
            "restarting",
            f"{error}; restarting in {pause:g} s ({recent + 1} of {limits.restarts})",
        )
        return not self._closing.wait(pause)

    def _answer(self) -> None:
        while (item := self._tasks.get()) is not None:
            task, seconds, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._host.ask(task, seconds, self._closing))
            except WorkerError as error:
                # Before anybody hears of the failure: who then asks must not find it "ready".
                self.status = "restarting"
                future.set_exception(error)
                raise
            except CosmosPolicyError as error:
                future.set_exception(error)
            except Exception as error:  # nobody may be left waiting for a thread that is gone
                traceback.print_exc()
                text = f"a bug in the worker, see the log: {type(error).__name__}: {error}"
                future.set_exception(WorkerError(text))
                raise WorkerError(text) from error

    def _fail_waiting(self) -> None:
        while not self._tasks.empty():
            if item := self._tasks.get():
                item[2].set_exception(WorkerError(self.message))

    def _set(self, status: str, message: str) -> None:
        self.status, self.message = status, message
        self._on_change()


# An engine in a process of its own, seen from the thread that talks to it.
#
# Its Python never holds the node's interpreter lock, and a crash or a kill costs one task instead
# of the node.


class ProcessHost:
    """Starts the process, asks it, ends it. Used by one thread."""

    def __init__(
        self, spec: EngineSpec, load: EngineLoader, budget: MemoryBudget | None = None
    ) -> None:
        """Start nothing yet.

        Args:
            spec: the engine.
            load: builds it, over there.
            budget: grants the memory; without one it is granted if the device has it.
        """
        self.title = f"engine {spec.engine} on {spec.device}"
        self._spec, self._load, self._ledger = spec, load, budget or MemoryBudget()
        self._context = mp.get_context("spawn")
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None while there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"process {self.pid}"

    def start(self, seconds: float, closing: threading.Event) -> EngineInfo:
        """Start the process and wait until its engine is loaded.

        Raises:
            WorkerError: it died, hung or is being closed.
            CosmosPolicyError: the engine refused to load, or there is no room for it.
        """
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_process_main,
            args=(self._spec, self._load, theirs),
            name="cosmos_policy_worker",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        deadline = time.monotonic() + seconds
        answer = self._receive(seconds, "start-up", closing)
        while isinstance(answer, Footprint):
            self._ledger.admit(self, answer)
            self._send(True, seconds, "start-up")
            answer = self._receive(deadline - time.monotonic(), "start-up", closing)
        assert isinstance(answer, EngineInfo)
        return answer

    def ask(self, task: Task, seconds: float, closing: threading.Event) -> object:
        """Ask and wait for the answer.

        Raises:
            WorkerError: it died, hung or is being closed.
            CosmosPolicyError: the engine refused the task.
        """
        self._send(task, seconds, task.what)
        return self._receive(seconds, task.what, closing)

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._ledger.release(self)

    def _send(self, message: object, seconds: float, during: str) -> None:
        assert self._connection is not None
        _limit_sending(self._connection, seconds)
        try:
            self._connection.send(message)
        except BlockingIOError as error:
            raise WorkerError(self._overdue(seconds, during)) from error
        except OSError as error:
            raise WorkerError(f"inference {self._obituary()} during {during}") from error

    def _receive(self, seconds: float, during: str, closing: threading.Event) -> object:
        """Wait for an answer, the process's death, the deadline, or our own closing."""
        assert self._process is not None
        assert self._connection is not None
        deadline = time.monotonic() + seconds
        while not closing.is_set():
            # Short waits, so that closing is noticed; death and answers wake it at once.
            left = min(0.2, deadline - time.monotonic())
            if left <= 0:
                raise WorkerError(self._overdue(seconds, during))
            ready = wait([self._connection, self._process.sentinel], timeout=left)
            if self._connection in ready:
                try:
                    answer: object = self._connection.recv()
                except (EOFError, OSError) as error:
                    raise WorkerError(f"inference {self._obituary()} during {during}") from error
                if isinstance(answer, CosmosPolicyError):
                    raise answer
                return answer
            if ready:
                raise WorkerError(f"inference {self._obituary()} during {during}")
        raise WorkerError("inference process is being closed")

    def _overdue(self, seconds: float, during: str) -> str:
        return (
            f"inference {self.name} gave no answer for {seconds:g} s during {during} and was ended"
        )

    def _obituary(self) -> str:
        assert self._process is not None
        self._process.join(timeout=1.0)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"{self.name} was killed by {signal.Signals(-code).name}"
        return f"{self.name} died with exit code {code}"


def _limit_sending(connection: Connection, seconds: float) -> None:
    """Have a send fail after ``seconds``: a query is larger than what a pipe holds.

    Without it a process that has stopped reading would block its thread for ever.
    """
    timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def _process_main(spec: EngineSpec, load: EngineLoader, connection: Connection) -> None:
    """Load the engine, then answer until the pipe closes (which it does when the node ends)."""
    # Ctrl-C goes to the whole process group; the node decides when its worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()

    def admit(footprint: Footprint) -> None:
        connection.send(footprint)
        connection.recv()

    try:
        engine = load(spec, admit)
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

    A new process is started after a WorkerError: nobody knows what state this one is in.
    """
    if isinstance(error, CosmosPolicyError):
        return error
    traceback.print_exc()
    return WorkerError(
        f"inference process {os.getpid()} broke off with {type(error).__name__}: {error} (the "
        "traceback is in the log)"
    )


def _end_with_parent() -> None:
    """Have the kernel kill this process when the node dies, even in the middle of a task."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
