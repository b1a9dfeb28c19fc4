"""The engine that asks a foreign policy's server: openpi's WebSocket, or HTTP ``/act``.

The server is not trusted. Whatever it sends or leaves unsent ends in a chunk of the right shape or
in one :class:`RemoteError` by a deadline. A query that fails is not repeated, and a connection that
is lost comes back at the first query of a run alone: what else has changed at the other end
meanwhile is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tornado.httpclient import HTTPError, HTTPRequest, HTTPResponse
from tornado.simple_httpclient import HTTPTimeoutError, SimpleAsyncHTTPClient
from tornado.tcpclient import TCPClient
from tornado.websocket import WebSocketClientConnection, WebSocketError, websocket_connect

from cosmos_policy_ros.core.errors import RemoteError
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.core.untrusted import UnreadableError, reading, shown
from cosmos_policy_ros.inference import wire
from cosmos_policy_ros.inference.remote_config import (
    HandPart,
    Part,
    Remote,
    RemoteConfig,
    RemoteImage,
    exposure,
)
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, STATE_DIM
from cosmos_policy_ros.rig.decision import Candidate, Decision, EngineInfo, Query

ENGINE = "remote"
TOLD = 200  # characters that are shown of what a server says
LAST_LINES = 1 << 16  # characters of a server's text that its last line is looked for in
MAX_HEADERS = 1 << 16  # bytes of an HTTP reply's head
GRACE = 5.0  # s beyond a deadline after which the event loop itself counts as stuck
PARTS: Mapping[Part, tuple[int, ...]] = {
    "left_arm": tuple(range(ARM_JOINTS)),
    "left_gripper": (ARM_JOINTS,),
    "right_arm": tuple(range(ARM_DIM, ARM_DIM + ARM_JOINTS)),
    "right_gripper": (ARM_DIM + ARM_JOINTS,),
}
T = TypeVar("T")


def build_request(config: RemoteConfig, query: Query) -> dict[str, Any]:
    """Return what a server is asked: nested mappings in the order in which they are sent."""
    request: dict[str, Any] = {}

    def put(key: str, value: object) -> None:
        *outer, last = key.split("/") if config.nested else (key,)
        place = request
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value

    seen = query.observation
    for image in config.images:
        put(image.key, fit_image(image, seen.images[image.camera]))
    state = seen.state
    hand = config.state.hand
    put(config.state.key, hand_state(state, hand) if hand else _to_layout(state, config.state))
    if config.prompt:
        put(config.prompt, config.prompts.get(query.prompt, query.prompt))
    if config.seed:
        put(config.seed, query.seed)
    for key, value in config.constants.items():
        put(key, value)
    return request


def fit_image(how: RemoteImage, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) uint8 RGB as a server takes it, colours last or first.

    An image that has a size already is not resized to it.
    """
    if how.turn != "no":
        image = image[::-1] if how.turn == "flip" else image[::-1, ::-1]
    resampling = Image.Resampling[how.filter.upper()]
    picture = Image.fromarray(np.ascontiguousarray(image))

    def resize(rows: int, columns: int) -> Image.Image:
        if picture.size == (columns, rows):
            return picture
        return picture.resize((columns, rows), resampling)

    if how.stored:
        picture = resize(*how.stored)
    rows, columns = how.size
    if how.fit == "stretch":
        picture = resize(rows, columns)
    else:
        ratio = max(picture.width / columns, picture.height / rows)
        inner = resize(max(int(picture.height / ratio), 1), max(int(picture.width / ratio), 1))
        picture = Image.new("RGB", (columns, rows))
        picture.paste(inner, ((columns - inner.width) // 2, (rows - inner.height) // 2))
    pixels = np.asarray(picture, np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if how.order == "chw" else pixels)


def read_actions(config: RemoteConfig, reply: object, state: Array) -> Array:
    """Return the (executed, 14) targets of a reply in policy units, or a benchmark's rows.

    Args:
        config: how the server is spoken to.
        reply: decoded.
        state: (14,) that was sent, policy units; of a benchmark's arm as it has it.

    Raises:
        UnreadableError: there are none, of another shape, or with values that are not finite.
    """
    actions = config.actions
    found = wire.find(reply, actions.key)
    rows = wire.as_rows(found, "actions")
    expected = actions.rows, actions.hand or STATE_DIM
    if rows.shape != expected:
        raise UnreadableError(
            f"has actions of shape {rows.shape}, expected {expected}: correct actions.rows in the "
            "remote config, or serve the policy of this rig"
        )
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = map(int, bad[0])
        raise UnreadableError(
            f"has actions that are not finite: {rows[row, column]} in row {row}, column {column}, "
            f"of {len(bad)} in all"
        )
    if actions.hand:
        return rows[: actions.executed]
    if actions.kind != "absolute":
        rows = np.cumsum(rows, axis=0) if actions.kind == "delta" else rows
        rows = rows + _to_layout(state, actions)
    return _from_layout(rows[: actions.executed], actions)


def hand_state(state: Array, parts: Sequence[HandPart]) -> Array:
    """Return the parts of a benchmark's state: gripper 2, position 3, quaternion (x, y, z, w) 4."""
    quaternion = state[5:9]
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = math.sqrt(1.0 - w * w)
    turned = quaternion[:3] * (2.0 * math.acos(w) / sine) if sine > 1e-8 else np.zeros(3)
    known = {"gripper": state[:2], "position": state[2:5], "quaternion": quaternion}
    known["axis_angle"] = turned
    return np.concatenate([known[part] for part in parts])


class _Layout(Protocol):
    """Order of a vector's parts, and what its grippers' numbers are closed and open."""

    @property
    def layout(self) -> tuple[Part, ...]: ...
    @property
    def closed(self) -> float: ...
    @property
    def open(self) -> float: ...


def _to_layout(state: Array, how: _Layout) -> Array:
    """Return a (14,) vector in policy units in another layout."""
    found = state.astype(np.float64)
    for side in ("left_gripper", "right_gripper"):
        (index,) = PARTS[side]
        found[index] = how.closed + state[index] * (how.open - how.closed)
    return found[_order(how)]


def _from_layout(rows: Array, how: _Layout) -> Array:
    """Return (n, 14) rows of another layout in policy units."""
    found = np.empty(rows.shape)
    found[:, _order(how)] = rows
    for side in ("left_gripper", "right_gripper"):
        (index,) = PARTS[side]
        found[:, index] = (found[:, index] - how.closed) / (how.open - how.closed)
    return found


def _order(how: _Layout) -> list[int]:
    return [index for part in how.layout for index in PARTS[part]]


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Return whether a record may be logged: tornado's, of our thread, are tracebacks."""
    return record.threadName != ENGINE


class _EventLoop:
    """An event loop in a thread of its own, which answers a server's pings between the queries."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # What a hostile server makes go wrong in a task is told by what was waited for.
        self._loop.set_exception_handler(lambda loop, context: None)
        for name in ("tornado.application", "tornado.general"):
            logging.getLogger(name).addFilter(_is_not_ours)
        self._thread = threading.Thread(target=self._loop.run_forever, name=ENGINE, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Return what ``work`` returns. Raises TimeoutError, or what it raises."""
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), self._loop)
        try:
            return future.result(seconds + GRACE)
        except TimeoutError:
            raise
        except Exception as error:
            # Python 3.10 has three classes of that name.
            if type(error).__name__ == "TimeoutError":
                raise TimeoutError from None
            raise
        finally:
            future.cancel()

    def close(self) -> None:
        """End it with the thread."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(GRACE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GRACE)
        if not self._loop.is_running():
            self._loop.close()


class _Client(Protocol):
    """One wire; its coroutines run in the event loop.

    Attributes:
        told: what the server says of itself, for people.
    """

    told: str

    async def connect(self, seconds: float) -> None:
        """Connect anew."""

    async def ask(self, request: Mapping[str, Any], seconds: float) -> Any:
        """Return the decoded reply."""

    async def drop(self) -> None:
        """Close the connection, if there is one."""


class _Inbox:
    """Receives what comes over one WebSocket: a message for each that is expected, and no other.

    A second reply would be taken for that of the next query, and one over an old connection for
    that over a new one.
    """

    def __init__(self) -> None:
        self.surplus = self.ended = False
        self._expected: asyncio.Future[str | bytes | None] | None = None

    def expect(self) -> asyncio.Future[str | bytes | None]:
        """Return what the next message will be the result of, None for the connection's end."""
        self._expected = asyncio.get_running_loop().create_future()
        return self._expected

    def on_message(self, message: str | bytes | None) -> None:
        """Take a message."""
        self.ended = self.ended or message is None
        if self._expected is not None and not self._expected.done():
            self._expected.set_result(message)
        elif message is not None:
            self.surplus = True


class _OpenPi:
    """Openpi's wire: msgpack over WebSocket, one connection for a run."""

    def __init__(self, remote: Remote) -> None:
        self.told = ""
        self._remote, self._inbox = remote, _Inbox()
        self._connection: WebSocketClientConnection | None = None

    async def connect(self, seconds: float) -> None:
        await self.drop()
        remote = self._remote
        request = HTTPRequest(
            f"ws://{remote.authority}{remote.path}",
            connect_timeout=seconds,
            request_timeout=seconds,
            follow_redirects=False,
        )
        self._inbox = _Inbox()
        greeting = self._inbox.expect()
        # Neither compression, whose bombs are small until they are unpacked, nor pings of ours: a
        # server that compiles for a minute answers none.
        self._connection = await websocket_connect(
            request,
            on_message_callback=self._inbox.on_message,
            compression_options=None,
            ping_interval=None,
            max_message_size=wire.MAX_BYTES,
        )
        metadata = self._read(await greeting)
        self.told = shown(metadata, TOLD) if metadata else ""

    async def ask(self, request: Mapping[str, Any], seconds: float) -> Any:
        if self._connection is None:
            raise RemoteError("there is no connection")
        message = wire.encode_msgpack(request)
        if self._inbox.surplus:
            raise RemoteError("it has sent a message that was not asked for")
        if self._inbox.ended:
            return self._read(None)
        reply = self._inbox.expect()
        await self._connection.write_message(message, binary=True)
        return self._read(await reply)

    async def drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _read(self, message: str | bytes | None) -> Any:
        if isinstance(message, str):
            raise RemoteError(f"it reports an error: {last_line(message)}")
        if message is None:
            connection = self._connection
            code = None if connection is None else connection.close_code
            reason = None if connection is None else connection.close_reason
            why = f" (code {code}{': ' + shown(reason, TOLD) if reason else ''})" if code else ""
            most = f"what is no message of at most {wire.MAX_BYTES >> 20} MiB"
            raise RemoteError(f"it closed the connection{why or f', or sent {most}'}")
        return wire.decode_msgpack(message)


class _Act:
    """HTTP ``/act``: JSON with json_numpy's arrays, one connection for each query."""

    def __init__(self, remote: Remote) -> None:
        self.told = ""
        self._remote = remote
        self._client: SimpleAsyncHTTPClient | None = None

    async def connect(self, seconds: float) -> None:
        # The wire has no greeting: whether anything listens is all that can be known.
        tcp = TCPClient()
        try:
            stream = await tcp.connect(self._remote.host, self._remote.port, timeout=seconds)
            stream.close()
        finally:
            tcp.close()

    async def ask(self, request: Mapping[str, Any], seconds: float) -> Any:
        if self._client is None:
            self._client = SimpleAsyncHTTPClient(
                force_instance=True,
                max_buffer_size=wire.MAX_BYTES + MAX_HEADERS,
                max_header_size=MAX_HEADERS,
                max_body_size=wire.MAX_BYTES,
            )
        response = await self._client.fetch(
            HTTPRequest(
                f"http://{self._remote.authority}{self._remote.path}",
                method="POST",
                headers={"Content-Type": "application/json"},
                body=wire.encode_json(request),
                connect_timeout=min(self._remote.config.deadlines.connect, seconds),
                request_timeout=seconds,
                follow_redirects=False,
                decompress_response=False,
            ),
            raise_error=False,
        )
        return self._read(response)

    async def drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _read(self, response: HTTPResponse) -> Any:
        body, self.told = response.body or b"", shown(response.headers.get("Server", ""), TOLD)
        if response.code != 200:
            text = last_line(body[-LAST_LINES:].decode("utf-8", "replace"))
            where = response.headers.get("Location")
            to = f", elsewhere ({shown(where, TOLD)}), which is not followed" if where else ""
            raise RemoteError(f"it answers HTTP {response.code}{to}{': ' + text if text else ''}")
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise RemoteError(f"it answers in encoding '{shown(encoding)}', not asked for")
        reply = wire.decode_json(body)
        if isinstance(reply, str):
            # Both servers say no more than "error" to a prompt or a shape that they do not know.
            raise RemoteError(f"it reports an error: {last_line(reply)} (its log says why)")
        return reply


class RemotePolicy:
    """A policy that a server at a URL has."""

    def __init__(self, remote: Remote) -> None:
        """Connect to nothing yet."""
        self._remote = remote
        self._loop = _EventLoop()
        self._client: _Client = _OpenPi(remote) if remote.config.wire == "openpi" else _Act(remote)
        self._unreachable = ""
        self._lost = "there is no connection"  # why no query but a run's first is sent; else ""

    @property
    def info(self) -> EngineInfo:
        """No digest; what the server says of itself, and what else is to be known, as a warning."""
        url = self._remote.url
        warnings = [f"checkpoint unknown, as told by the server: {self._client.told or 'nothing'}"]
        if self._unreachable:
            warnings = [f"not reached yet, each run tries anew ({self._unreachable})"]
        if warning := exposure(self._remote):
            warnings.append(warning)
        return EngineInfo(warning=f"{url}: {'; '.join(warnings)}")

    def reach(self) -> None:
        """Look whether the server is there and what it says, and leave it alone again.

        Raises:
            RemoteError: it cannot be reached.
        """
        try:
            self._connect()
        except RemoteError as error:
            self._unreachable = str(error).removeprefix(f"{self._remote.url}: ")
            raise
        finally:
            self._lost = "there is no connection"
            self._drop()

    def decide(self, query: Query) -> Decision:
        """Ask the server. Raises RemoteError: it did not answer in time, or with no chunk."""
        phases, began = {}, time.perf_counter()
        if query.index == 0:
            self._connect()
            phases["connect"] = time.perf_counter() - began
        elif self._lost:
            raise RemoteError(
                f"{self._remote.url}: {self._lost}; it is not asked again before the next run"
            )
        config, state = self._remote.config, query.observation.state
        deadlines = config.deadlines
        patience = deadlines.answer if query.index else deadlines.first_answer
        since = time.perf_counter()
        request = build_request(config, query)
        phases["prepare"], since = time.perf_counter() - since, time.perf_counter()
        with self._failing():
            reply = self._loop.do(self._client.ask(request, patience), patience)
            took = time.perf_counter() - since
            positions = read_actions(config, reply, state)
        value = math.nan
        if config.actions.value:
            with contextlib.suppress(UnreadableError):
                value = wire.as_number(wire.find(reply, config.actions.value))
        candidate = Candidate(query.seed)
        if 0.0 <= value <= 1.0:
            candidate = Candidate(query.seed, values=(value,), value=value)
        told = f", which says of itself: {self._client.told}" if self._client.told else ""
        return Decision(
            positions=positions,
            dt=config.actions.dt,
            candidates=(candidate,),
            chosen=0,
            reason=f"the answer of {self._remote.url} ({self._remote.name}){told}",
            engine=ENGINE,
            phases={**phases, **_split(took, reply)},
        )

    def close(self) -> None:
        """Leave the server, and end the event loop."""
        self._drop()
        self._loop.close()

    def _connect(self) -> None:
        seconds = self._remote.config.deadlines.connect
        with self._failing():
            self._loop.do(self._client.connect(seconds), seconds)
            self._lost = self._unreachable = ""

    def _drop(self) -> None:
        with contextlib.suppress(Exception):
            self._loop.do(self._client.drop(), GRACE)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn whatever goes wrong into one error, and the connection into a lost one."""
        try:
            with reading(self._remote.url, "a reply", RemoteError), self._timed():
                yield
        except RemoteError as error:
            text = str(error).removeprefix(f"{self._remote.url}: ")
            self._lost = f"it has failed before ({text})"
            self._drop()
            raise RemoteError(f"{self._remote.url}: {text}") from error

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        since = time.monotonic()
        try:
            yield
        except (TimeoutError, HTTPTimeoutError):
            self._overdue(time.monotonic() - since)
        except (HTTPError, WebSocketError) as error:
            why = shown(str(error), TOLD) or "it closed the connection"
            raise RemoteError(f"no whole answer: {why}") from None
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            raise RemoteError(
                f"no connection: {shown(why, TOLD)}; is the policy server running there?"
            ) from None

    def _overdue(self, seconds: float) -> NoReturn:
        raise RemoteError(
            f"no whole answer within {seconds:.1f} s; look at the server, or give it longer under "
            f"deadlines in the remote config '{self._remote.name}'"
        ) from None


def load_remote_policy(remote: Remote) -> RemotePolicy:
    """Return the policy of a server, which need not be there yet: each run connects anew."""
    policy = RemotePolicy(remote)
    with contextlib.suppress(RemoteError):
        policy.reach()
    return policy


def last_line(text: str) -> str:
    """Return the last line of a server's text that has anything in it, fit to be shown."""
    lines = [line.strip() for line in text[-LAST_LINES:].splitlines()]
    return shown(next((line for line in reversed(lines) if line), ""), TOLD)


def _split(took: float, reply: object) -> dict[str, float]:
    """Return an answer's seconds by phase: the server's own, where it tells them, and the rest."""
    timing = reply.get("server_timing") if isinstance(reply, dict) else None
    told = wire.as_number(timing.get("infer_ms")) if isinstance(timing, dict) else math.nan
    server = told / 1000.0
    if not 0.0 <= server <= took:
        return {"answer": took}
    return {"server": server, "network": took - server}
