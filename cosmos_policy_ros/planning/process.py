"""An engine in a process of its own, seen from the thread that talks to it.

Its Python never holds the node's interpreter lock, and a crash or a kill costs one task instead of
the node.
"""

from __future__ import annotations

import ctypes
import multiprocessing as mp
import os
import signal
import socket
import struct
import threading
import time
import traceback
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from cosmos_policy_ros.errors import CosmosPolicyError, WorkerError
from cosmos_policy_ros.planning.engine_spec import EngineLoader, EngineSpec
from cosmos_policy_ros.planning.memory import Footprint, Ledger
from cosmos_policy_ros.planning.tasks import Task
from cosmos_policy_ros.rig.decision import EngineInfo


class ProcessHost:
    """Starts the process, asks it, ends it. Used by one thread."""

    def __init__(self, spec: EngineSpec, load: EngineLoader, ledger: Ledger | None = None) -> None:
        """Start nothing yet.

        Args:
            spec: the engine.
            load: builds it, over there.
            ledger: grants the memory; without one it is granted if the device has it.
        """
        self.title = f"engine {spec.engine} on {spec.device}"
        self._spec, self._load, self._ledger = spec, load, ledger or Ledger()
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
