"""What waits for a policy: an environment that stands still between two chunks, and its process.

A simulated benchmark needs versions of MuJoCo and NumPy of its own, so that it runs under an
interpreter of its own and is spoken to over a pipe.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import BenchmarkError, WorkerError
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.environments import worker
from cosmos_policy_ros.environments.worker import Message, MessageError
from cosmos_policy_ros.rig.observation import Observation

STATE = "state"
LAST_LINES = 40  # of the process's standard error that are kept
TOLD = 300  # characters of them in a message
LONGEST = 3600.0  # s, of a deadline
MOVED = 0.02  # of the state: a picture that is the same to the last bit after it shows nothing
SAME = 1.0  # of 255: two cameras whose pictures differ by less on average show the same


class Scene(NamedTuple):
    """Where a trial begins.

    Attributes:
        suite: of the benchmark.
        task: of the suite.
        trial: the number of the initial state, or of the trial, from 0 on.
    """

    suite: str
    task: str
    trial: int


class Progress(NamedTuple):
    """What became of rows: how many were executed, and whether the task was then done."""

    steps: int
    success: bool


class Environment(Protocol):
    """A robot and its task that wait for the policy; nothing moves between two calls.

    Attributes:
        limit: steps that a policy has from the last reset on.
    """

    limit: int

    def reset(self, scene: Scene, seed: int) -> str:
        """Begin a trial; return its prompt, which may be known only now."""

    def observe(self) -> Observation:
        """Return what is seen now, cameras by role as they render."""

    def execute(self, rows: Array) -> Progress:
        """Execute rows (n, action_dims) as the policy gives them, up to success or the limit."""

    def close(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Deadlines:
    """How long a process may take for one request [s].

    Attributes:
        open: to import its simulator.
        reset: to build a scene, which compiles it.
        execute: to execute one chunk.
    """

    open: float = 300.0
    reset: float = 300.0
    execute: float = 120.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value <= LONGEST:
                raise ValueError(f"{name}: {value} s must be above 0 and {LONGEST:g} at most")


class EnvironmentProcess:
    """An environment in a process of another interpreter; an :class:`Environment`.

    A process that dies, hangs or sends what is no answer is killed and raises WorkerError; the next
    reset starts another one. Pictures that no camera makes raise BenchmarkError, for no trial of
    this machine can be counted then.

    Attributes:
        about: versions by name, as the process told them; empty before it was started.
        cpu: seconds of processor time that its processes have used.
    """

    def __init__(
        self,
        python: Path,
        adapter: Path,
        settings: Mapping[str, Any],
        limits: Mapping[tuple[str, str], int],
        deadlines: Deadlines | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            python: the benchmark's interpreter.
            adapter: the file that :mod:`~cosmos_policy_ros.environments.worker` loads there.
            settings: what its ``make`` is given.
            limits: steps of each (suite, task).
            deadlines: the defaults where None.
        """
        self.limit, self.cpu = 0, 0.0
        self.about: Mapping[str, str] = {}
        self._python, self._adapter, self._settings = python, adapter, dict(settings)
        self._limits, self._deadlines = limits, deadlines or Deadlines()
        self._process: subprocess.Popen[bytes] | None = None
        self._words: deque[str] = deque(maxlen=LAST_LINES)
        self._cpu_before = 0.0  # of the processes that have ended
        self._steps, self._reset_count = 0, 0
        self._seen: Observation | None = None

    def start(self) -> None:
        """Start the process, unless it runs.

        Raises:
            BenchmarkError: the benchmark is not installed there, or cannot be opened.
        """
        if self._process is not None:
            return
        command = [str(self._python), str(Path(worker.__file__)), str(self._adapter)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_foreign_environment(),
                bufsize=0,
            )
        except OSError as error:
            raise BenchmarkError(
                f"{self._python}: the benchmark's interpreter cannot be started "
                f"({error.strerror}); run scripts/setup_benchmark"
            ) from error
        self._words.clear()
        self._listener = threading.Thread(
            target=_listen, args=(self._process.stderr, self._words), daemon=True
        )
        self._listener.start()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        try:
            answer = self._ask("open", {"settings": self._settings}, self._deadlines.open)
            about = answer.values.get("about")
            if not isinstance(about, dict):
                raise self._garbage("open", "does not say what it is")
        except WorkerError as error:
            raise BenchmarkError(
                f"the benchmark cannot be opened: {error}; run scripts/setup_benchmark again, "
                "whose self-test tells more"
            ) from error
        self.about = {shown(name): shown(each) for name, each in about.items()}

    def reset(self, scene: Scene, seed: int) -> str:
        """Begin a trial and return its prompt. Raises WorkerError, BenchmarkError."""
        self.start()
        limit = self._limits[scene.suite, scene.task]
        answer = self._ask("reset", {**scene._asdict(), "seed": seed}, self._deadlines.reset)
        self.limit, self._steps, self._seen = limit, 0, None
        self._look("reset", answer.arrays)
        return self._prompt("reset", answer)

    def prompt(self, scene: Scene, seed: int) -> str:
        """Return the prompt that a reset would return, without drawing. Raises as ``reset``."""
        self.start()
        self._seen = None
        answer = self._ask("prompt", {**scene._asdict(), "seed": seed}, self._deadlines.reset)
        return self._prompt("prompt", answer)

    def observe(self) -> Observation:
        """Return what was seen after the reset or the last chunk."""
        assert self._seen is not None, "nothing was reset, or the trial is over"
        return self._seen

    def execute(self, rows: Array) -> Progress:
        """Execute rows; pictures are drawn at the last of them, if the trial goes on after it.

        Raises:
            WorkerError: the process has died or hung: the trial is lost.
            BenchmarkError: cameras show the same, or nothing new.
        """
        rows = rows[: self.limit - self._steps]
        draw = self._steps + len(rows) < self.limit
        answer = self._ask("execute", {"draw": draw}, self._deadlines.execute, {"rows": rows})
        steps, success = answer.values.get("steps"), answer.values.get("success")
        if (
            not (isinstance(steps, int) and isinstance(success, bool))
            or not 0 < steps <= len(rows)
            or (steps < len(rows) and not success)
        ):
            raise self._garbage("execute", f"says {shown(steps)} steps of {len(rows)}")
        self._steps += steps
        if success or not draw:
            self._seen = None
        else:
            self._look("execute", answer.arrays)
        return Progress(steps, success)

    def close(self) -> None:
        """End the process: let it close its renderer, and kill it if it does not."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5.0)
        self._kill()

    def _ask(
        self,
        what: str,
        values: Mapping[str, Any],
        seconds: float,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> Message:
        """Send a request and return the reply. Raises WorkerError, after which no process is."""
        if self._process is None:
            raise WorkerError("the benchmark's process has ended, and the trial with it")
        pipe = _Pipe(self._process, time.monotonic() + seconds)
        try:
            pipe.write(worker.encode({"do": what, **values}, arrays))
            answer = worker.read_message(pipe.read)
        except TimeoutError:
            raise self._ended(f"gave no answer for {seconds:g} s during {what}") from None
        except (EOFError, OSError):
            raise self._ended(f"{self._death()} during {what}") from None
        except MessageError as error:
            raise self._garbage(what, str(error)) from None
        cpu = answer.values.get("cpu")
        if isinstance(cpu, float) and cpu >= 0:
            self.cpu = self._cpu_before + cpu
        if "error" in answer.values:
            text = shown(answer.values["error"], TOLD)
            raise self._ended(f"broke off during {what} with {text}")
        return answer

    def _death(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"died with exit code {code}"

    def _garbage(self, what: str, why: str) -> WorkerError:
        return self._ended(f"sent what is no answer to {what} ({why})")

    def _ended(self, how: str) -> WorkerError:
        """Kill what is left of the process, and return the error that says so."""
        assert self._process is not None
        pid = self._process.pid
        self._kill()
        said = " / ".join(filter(None, map(str.strip, list(self._words)[-4:])))
        last = f"; its last words: {shown(said[-TOLD:], TOLD)}" if said else ""
        return WorkerError(f"the benchmark's process {pid} {how}{last}")

    def _kill(self) -> None:
        process, self._process, self._seen = self._process, None, None
        assert process is not None
        process.kill()
        process.wait()
        self._listener.join(2.0)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        self._cpu_before = self.cpu

    def _prompt(self, what: str, answer: Message) -> str:
        prompt = answer.values.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise self._garbage(what, "has no prompt")
        return prompt

    def _look(self, what: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the pictures and the state of a reply."""
        state = arrays.get(STATE)
        images = {name: each for name, each in arrays.items() if name != STATE}
        if state is None or state.ndim != 1 or state.dtype != np.float64 or not images:
            raise self._garbage(what, "has no state, or no picture")
        if not np.isfinite(state).all():
            raise self._ended(f"has a state that is not finite after {what}")
        for image in images.values():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise self._garbage(what, f"has a picture of shape {image.shape}, {image.dtype}")
        self._reset_count += 1
        seen = Observation(self._reset_count, images, np.array(state), {})
        check_cameras(seen, self._seen)
        self._seen = seen


def check_cameras(seen: Observation, before: Observation | None) -> None:
    """Refuse pictures that no working renderer makes.

    A camera that shows another one's picture, or an old one, makes a policy fail without a word.

    Args:
        seen: newest.
        before: of the same trial; None after a reset.

    Raises:
        BenchmarkError: two cameras show the same, or one shows nothing new though the robot moved.
    """
    advice = "no trial can be counted: look at the renderer (MUJOCO_GL, the graphics driver)"
    roles = list(seen.images)
    for index, role in enumerate(roles):
        image = seen.images[role].astype(np.int16)
        for other in roles[index + 1 :]:
            shapes_agree = seen.images[other].shape == image.shape
            if shapes_agree and np.abs(image - seen.images[other]).mean() < SAME:
                raise BenchmarkError(f"cameras {role} and {other} show the same picture; {advice}")
        if before is None:
            continue
        moved = float(np.linalg.norm(seen.state - before.state))
        if moved > MOVED and np.array_equal(seen.images[role], before.images[role]):
            raise BenchmarkError(
                f"camera {role} shows the same picture to the last bit after the robot's state has "
                f"changed by {moved:.3f} (limit {MOVED}); {advice}"
            )


class _Pipe:
    """Both directions of a process's pipe, until a deadline."""

    def __init__(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        self._deadline = deadline

    def read(self, count: int) -> bytes:
        """Return exactly so many bytes. Raises EOFError, TimeoutError."""
        parts = []
        while count:
            self._wait(self._out, selectors.EVENT_READ)
            with contextlib.suppress(BlockingIOError):
                part = os.read(self._out, min(count, 1 << 20))
                if not part:
                    raise EOFError
                parts.append(part)
                count -= len(part)
        return b"".join(parts)

    def write(self, data: bytes) -> None:
        """Write all. Raises BrokenPipeError, TimeoutError."""
        left = memoryview(data)
        while left:
            self._wait(self._in, selectors.EVENT_WRITE)
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(self._in, left) :]

    def _wait(self, end: int, event: int) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(end, event)
            if not selector.select(max(self._deadline - time.monotonic(), 0.0)):
                raise TimeoutError


def _listen(pipe: Any, words: deque[str]) -> None:
    """Keep the last lines of what a process says, so that it never waits to say more."""
    with contextlib.suppress(ValueError, OSError), pipe:
        while line := pipe.readline(4096):
            words.append(line.decode("utf-8", "replace"))


def _foreign_environment() -> dict[str, str]:
    """Return the environment variables without what leads to this interpreter's packages."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    libraries = variables.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
    kept = [each for each in libraries if each and not each.startswith(sys.prefix)]
    if kept:
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
    if "MUJOCO_GL" not in variables:
        variables |= {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}
    return {"OMP_NUM_THREADS": "1"} | variables  # several trials at once share the cores already
