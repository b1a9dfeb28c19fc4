"""One end of the pipe to a benchmark's environment, and the messages that both ends speak.

Run by the benchmark's interpreter, which has nothing of this package: standard library and NumPy
alone. ``python worker.py libero_environment.py`` loads that file and does what its ``make`` returns
is asked for, until the pipe closes.

A message is a head of twelve bytes, a JSON object and the bytes of arrays. Nothing is unpickled,
and what is read is bounded on both ends: a library that prints into the pipe, or breaks off within
a message, must become an error and no gigabytes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAGIC = b"env1"
HEAD = struct.Struct("<4sII")  # magic, bytes of the JSON, bytes of all arrays
MAX_JSON = 1 << 20
"""Bytes; a reply has some hundred."""
MAX_BYTES = 64 << 20
"""Of all arrays of a message; three cameras of 256 px take 0.6 MB."""
MAX_DEPTH = 8
"""Of objects and lists within each other; settings have three levels."""
MAX_ARRAYS = 16
MAX_DIMENSIONS = 4
TYPES = {name: np.dtype(f"<{name}") for name in ("u1", "i8", "f4", "f8")}
"""Of arrays, by NumPy's short names."""


class MessageError(ValueError):
    """What came is no message."""


class Message(NamedTuple):
    """Plain values, and arrays of numbers by name."""

    values: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def encode(values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> bytes:
    """Return a message's bytes. Raises MessageError: over a limit, or of another type."""
    described, parts = [], []
    for name, array in (arrays or {}).items():
        short = array.dtype.newbyteorder("<").str.lstrip("<|")
        if short not in TYPES or array.ndim > MAX_DIMENSIONS:
            raise MessageError(f"array '{name}' has type {array.dtype}, shape {array.shape}")
        described.append([name, short, list(array.shape)])
        parts.append(np.ascontiguousarray(array, TYPES[short]).tobytes())
    text = json.dumps({"values": dict(values), "arrays": described}).encode()
    _check(text, sum(map(len, parts)), len(described))
    return b"".join([HEAD.pack(MAGIC, len(text), sum(map(len, parts))), text, *parts])


def read_message(read: Callable[[int], bytes]) -> Message:
    """Return the next message.

    Args:
        read: returns exactly so many bytes, or raises EOFError.

    Raises:
        MessageError: there is none.
        EOFError: from ``read``.
    """
    magic, json_bytes, array_bytes = HEAD.unpack(read(HEAD.size))
    if magic != MAGIC:
        raise MessageError(f"begins with {magic!r}, expected {MAGIC!r}")
    if json_bytes > MAX_JSON or array_bytes > MAX_BYTES:
        raise MessageError(f"announces {json_bytes} and {array_bytes} bytes")
    text, data = read(json_bytes), read(array_bytes)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise MessageError("cannot be read as JSON") from None
    _check_depth(content)
    if not isinstance(content, dict) or content.keys() != {"values", "arrays"}:
        raise MessageError("has other parts than values and arrays")
    values, described = content["values"], content["arrays"]
    if not isinstance(values, dict) or not isinstance(described, list):
        raise MessageError("has values that are no object, or arrays that are no list")
    _check(text, array_bytes, len(described))
    return Message(values, _read_arrays(described, data))


def _read_arrays(described: list[Any], data: bytes) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    at = 0
    for each in described:
        if not isinstance(each, list) or len(each) != 3:
            raise MessageError("has an array without name, type and shape")
        name, short, shape = each
        if not isinstance(name, str) or not isinstance(short, str) or short not in TYPES:
            raise MessageError("has an array of another type than " + ", ".join(TYPES))
        if name in arrays:
            raise MessageError("has two arrays of one name")
        if not (
            isinstance(shape, list)
            and len(shape) <= MAX_DIMENSIONS
            and all(type(n) is int and 0 < n <= MAX_BYTES for n in shape)
        ):
            raise MessageError("has an array whose shape is none")
        size = math.prod(shape) * TYPES[short].itemsize
        if size > len(data) - at:
            raise MessageError("has less data than its arrays")
        arrays[name] = np.frombuffer(data, TYPES[short], math.prod(shape), at).reshape(shape)
        at += size
    if at < len(data):
        raise MessageError("has more data than its arrays")
    return arrays


def _check(text: bytes, array_bytes: int, arrays: int) -> None:
    if len(text) > MAX_JSON or array_bytes > MAX_BYTES or arrays > MAX_ARRAYS:
        raise MessageError(
            f"has {len(text)} bytes of JSON and {arrays} arrays of {array_bytes} bytes; the limits "
            f"are {MAX_JSON}, {MAX_ARRAYS} and {MAX_BYTES}"
        )


def _check_depth(value: object, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise MessageError(f"nests more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_depth(each, depth + 1)


# ---- what environments share ---------------------------------------------------------------


def release_context(env: Any) -> None:
    """Free what a robosuite environment holds in OpenGL, before its simulation is replaced.

    robosuite leaves that to Python, which finds it some time later. The names of buffers and
    textures that are freed then are those of the context that is current by then, the next
    simulation's: its cameras return whatever lay in memory, without an error. The thread has no
    current context after that either.
    """
    context = getattr(env.sim, "_render_context_offscreen", None)
    if context is not None:
        context.gl_ctx.make_current()
        context.con.free()


class LazyCameras:
    """Switches an environment's cameras off, but for the steps that are told otherwise.

    Drawing takes ten times as long as a step. A camera that is switched on takes the phase of a
    sensor that was never off, so that it is due at the same physics step as if it had been on all
    the time: without that it shows another moment.
    """

    def __init__(self, env: Any, cameras: list[str], clock: str) -> None:
        """Take a robosuite environment that was just reset, with all its sensors on."""
        self._context = env.sim._render_context_offscreen.gl_ctx
        self._observables = env._observables
        self._cameras, self._clock = [f"{name}_image" for name in cameras], clock

    def show(self, on: bool) -> None:
        """Let the cameras be drawn in the next step, or not."""
        if on:  # see release_context
            self._context.make_current()
        clock = self._observables[self._clock]
        for name in self._cameras:
            camera = self._observables[name]
            camera.set_enabled(on)  # which also begins its phase anew
            camera._sampled = clock._sampled
            camera._time_since_last_sample = clock._time_since_last_sample


def observation(seen: Mapping[str, Any], cameras: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Return the state (9,) of robosuite's arm, and a picture per camera's role.

    Args:
        seen: what a robosuite environment returns.
        cameras: its names by role.
    """
    state = [seen[f"robot0_{name}"] for name in ("gripper_qpos", "eef_pos", "eef_quat")]
    pictures = {role: np.asarray(seen[f"{name}_image"], np.uint8) for role, name in cameras.items()}
    return {"state": np.concatenate(state).astype(np.float64), **pictures}


# ---- the worker -----------------------------------------------------------------------------


def serve(make: Callable[[dict[str, Any]], Any], requests: int, replies: int) -> None:
    """Answer requests until the pipe closes.

    Args:
        make: returns the environment of some settings, which has

            - ``about()``: versions by name;
            - ``reset(suite, task, trial, seed)``: (prompt, observation);
            - ``execute(rows, draw)``: (steps, success, observation), the last None without
              ``draw`` and after success;
            - ``prompt(suite, task, trial, seed)``: what ``reset`` would return, without pictures;
            - ``close()``.

            An observation is a mapping of arrays: ``state``, and a picture per camera.
        requests: file descriptor.
        replies: file descriptor.
    """

    def read(count: int) -> bytes:
        parts = []
        while count:
            part = os.read(requests, min(count, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def send(data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(replies, left) :]

    environment: Any = None
    while True:
        try:
            request = read_message(read)
        except EOFError:
            break
        asked, arrays = request.values, {}
        what = asked.get("do")
        try:
            if what == "open":
                environment = make(asked["settings"])
                values = {"about": environment.about()}
            elif what == "prompt":
                values = {"prompt": environment.prompt(*_scene(asked))}
            elif what == "reset":
                prompt, arrays = environment.reset(*_scene(asked))
                values = {"prompt": prompt}
            elif what == "execute":
                rows, draw = request.arrays["rows"], asked["draw"]
                steps, success, seen = environment.execute(rows, draw)
                values, arrays = {"steps": int(steps), "success": bool(success)}, seen or {}
            else:
                raise ValueError(f"asked to do {what!r}")
        # Whatever a simulator raises: its state is unknown, and the other end starts anew.
        except Exception as error:
            traceback.print_exc()
            values, arrays = {"error": f"{type(error).__name__}: {error}"[:1000]}, {}
        send(encode(values | {"cpu": time.process_time()}, arrays))
    if environment is not None:
        environment.close()


def _scene(asked: Mapping[str, Any]) -> tuple[str, str, int, int]:
    return asked["suite"], asked["task"], asked["trial"], asked["seed"]


def main() -> None:
    """Serve the environment of the file that is named, over standard input and output."""
    # Ctrl-C goes to the whole process group; who started this decides when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The kernel kills this process when its parent dies, even within a step.
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    # Simulators print; what they print must not get between the messages.
    replies = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    spec = importlib.util.spec_from_file_location("environment", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["environment"] = module
    spec.loader.exec_module(module)
    serve(module.make, 0, replies)


if __name__ == "__main__":
    main()
