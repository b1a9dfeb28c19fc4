"""One inference process behind one thread.

The model lives in a process of its own: its Python never holds the node's interpreter lock, a
crash or a kill costs one query instead of the node, and a hang ends at a deadline. The thread is
the only one that talks to the process.
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

from cosmos_policy_ros.errors import CosmosPolicyError, WorkerError
from cosmos_policy_ros.planning.engines import EngineLoader, EngineSpec, load_engine
from cosmos_policy_ros.rig.decision import Decision, EngineInfo, Query


@dataclass(frozen=True)
class WorkerLimits:
    """Patience with the inference process.

    Attributes:
        start_timeout: seconds from spawn to a loaded model.
        query_timeout: seconds for one decision, after which the process counts as hung.
        restarts: how often a dead process is started again before giving up.
        backoff: seconds before the first restart; doubles with each.
    """

    start_timeout: float = 600.0
    query_timeout: float = 60.0
    restarts: int = 3
    backoff: float = 0.5


class Worker:
    """Answers queries in another process.

    Attributes:
        status: "starting", "ready", "restarting", "failed" or "closed".
        message: the last thing that happened, for people.
        info: what the engine says of itself; empty before it is loaded.
    """

    def __init__(
        self,
        spec: EngineSpec,
        limits: WorkerLimits,
        on_change: Callable[[], None] = lambda: None,
        load: EngineLoader = load_engine,
    ) -> None:
        """Start loading in the background; ``on_change`` is called from the thread."""
        self.status = "starting"
        self.message = f"loading engine {spec.engine}"
        self.restarts = 0
        self.info = EngineInfo()
        self._spec, self._limits, self._on_change, self._load = spec, limits, on_change, load
        self._context = mp.get_context("spawn")
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._queries: queue.SimpleQueue[tuple[Query, Future[Decision]] | None]
        self._queries = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Process id of the inference process, None while there is none."""
        return self._process.pid if self._process is not None else None

    def submit(self, query: Query) -> Future[Decision]:
        """Ask; the future's callbacks run in the worker thread.

        The future raises WorkerError when the process died or hung, or the engine's own
        CosmosPolicyError when it refused.
        """
        future: Future[Decision] = Future()
        if self.status in ("failed", "closed"):
            future.set_exception(WorkerError(self.message))
        else:
            self._queries.put((query, future))
            if not self._thread.is_alive():  # it gave up between the two lines above
                self._fail_waiting()
        return future

    def close(self) -> None:
        """End the process and the thread; a query under way fails."""
        self._closing.set()
        self._queries.put(None)
        self._thread.join(timeout=10.0)
        self._set("closed", "inference process ended")

    def _serve(self) -> None:
        """Start the process, answer until it dies, start it again while the budget lasts."""
        while not self._closing.is_set():
            try:
                self._start_process()
                text = f"engine {self._spec.engine} is ready (process {self.pid})"
                self._set("ready", f"{text}; {self.info.warning}" if self.info.warning else text)
                self._answer_queries()
            except WorkerError as error:
                self._stop_process()
                if not self._may_restart(error):
                    break
            except CosmosPolicyError as error:
                # The engine itself refused to load: starting it again would say the same.
                self._set("failed", str(error))
                break
        self._stop_process()
        self._fail_waiting()

    def _may_restart(self, error: WorkerError) -> bool:
        if self.restarts >= self._limits.restarts:
            self._set("failed", f"{error}; gave up after {self.restarts} restarts")
            return False
        pause = self._limits.backoff * 2**self.restarts
        self.restarts += 1
        self._set(
            "restarting",
            f"{error}; restarting in {pause:g} s ({self.restarts} of {self._limits.restarts})",
        )
        return not self._closing.wait(pause)

    def _answer_queries(self) -> None:
        while (item := self._queries.get()) is not None:
            query, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                self._send(query)
                answer = self._receive(self._limits.query_timeout, "a query")
                assert isinstance(answer, Decision)
                future.set_result(answer)
            except WorkerError as error:
                future.set_exception(error)
                raise
            except CosmosPolicyError as error:
                future.set_exception(error)

    def _start_process(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_worker_main,
            args=(self._spec, self._load, theirs),
            name="cosmos_policy_worker",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        _limit_sending(self._connection, self._limits.query_timeout)
        info = self._receive(self._limits.start_timeout, "start-up")
        assert isinstance(info, EngineInfo)
        self.info = info

    def _send(self, query: Query) -> None:
        assert self._connection is not None
        try:
            self._connection.send(query)
        except BlockingIOError as error:
            raise WorkerError(self._overdue(self._limits.query_timeout, "a query")) from error
        except OSError as error:
            raise WorkerError(f"inference {self._obituary()}") from error

    def _receive(self, timeout: float, during: str) -> Decision | EngineInfo:
        """Wait for an answer, the process's death, the deadline, or our own closing."""
        assert self._process is not None
        assert self._connection is not None
        deadline = time.monotonic() + timeout
        while not self._closing.is_set():
            # Short waits, so that closing is noticed; death and answers wake it at once.
            left = min(0.2, deadline - time.monotonic())
            if left <= 0:
                raise WorkerError(self._overdue(timeout, during))
            ready = wait([self._connection, self._process.sentinel], timeout=left)
            if self._connection in ready:
                try:
                    answer: Decision | EngineInfo | CosmosPolicyError = self._connection.recv()
                except (EOFError, OSError) as error:
                    raise WorkerError(f"inference {self._obituary()} during {during}") from error
                if isinstance(answer, CosmosPolicyError):
                    raise answer
                return answer
            if ready:
                raise WorkerError(f"inference {self._obituary()} during {during}")
        raise WorkerError("inference process is being closed")

    def _overdue(self, timeout: float, during: str) -> str:
        return (
            f"inference process {self.pid} gave no answer for {timeout:g} s during {during} and "
            "was ended"
        )

    def _obituary(self) -> str:
        assert self._process is not None
        self._process.join(timeout=1.0)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"process {self.pid} was killed by {signal.Signals(-code).name}"
        return f"process {self.pid} died with exit code {code}"

    def _stop_process(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _fail_waiting(self) -> None:
        while not self._queries.empty():
            if item := self._queries.get():
                item[1].set_exception(WorkerError(self.message))

    def _set(self, status: str, message: str) -> None:
        self.status, self.message = status, message
        self._on_change()


def _limit_sending(connection: Connection, seconds: float) -> None:
    """Have a send fail after ``seconds``: a query is larger than what a pipe holds.

    Without it a process that has stopped reading would block its thread for ever.
    """
    timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def _worker_main(spec: EngineSpec, load: EngineLoader, connection: Connection) -> None:
    """Load the engine, then answer until the pipe closes (which it does when the node ends)."""
    # Ctrl-C goes to the whole process group; the node decides when its worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    try:
        engine = load(spec)
        connection.send(engine.info)
    except Exception as error:
        connection.send(_as_answer(error))
        return
    while True:
        try:
            query: Query = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(engine.decide(query))
        except Exception as error:
            connection.send(_as_answer(error))


def _as_answer(error: Exception) -> CosmosPolicyError:
    """Return an engine's refusal as it is, and what broke it as a WorkerError with its words.

    The node starts a new process after a WorkerError: nobody knows what state this one is in.
    """
    if isinstance(error, CosmosPolicyError):
        return error
    traceback.print_exc()
    return WorkerError(
        f"inference process {os.getpid()} broke off with {type(error).__name__}: {error} (the "
        "traceback is in the log)"
    )


def _end_with_parent() -> None:
    """Have the kernel kill this process when the node dies, even in the middle of a query."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
