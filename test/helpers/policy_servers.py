"""Policy servers of the two wires, by hand over sockets: what others' servers send, and worse.

Written from the wires' descriptions and without a line of the package, so that a mistake of its own
is not made at both ends.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
Serve = Callable[["Connection"], None]


class GoneError(Exception):
    """The client has left."""


class Connection:
    """One client's, at the server's end."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._file = end.makefile("rb")
        self.pongs = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise GoneError
        return data

    def send(self, data: bytes) -> None:
        self.end.sendall(data)

    def request(self) -> tuple[str, dict[str, str]]:
        """Read the head of an HTTP request."""
        lines = []
        while line := self._file.readline().strip():
            lines.append(line.decode())
        if not lines:
            raise GoneError
        pairs = [line.split(": ", 1) for line in lines[1:]]
        return lines[0], {name.lower(): value for name, value in pairs}

    def upgrade(self, extra: str = "") -> None:
        """Read a request for a WebSocket, and grant it."""
        _, headers = self.request()
        assert "sec-websocket-extensions" not in headers, "no compression is offered"
        key = hashlib.sha1(headers["sec-websocket-key"].encode() + GUID).digest()  # noqa: S324
        self.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + f"Sec-WebSocket-Accept: {base64.b64encode(key).decode()}\r\n{extra}\r\n".encode()
        )

    def message(self) -> bytes:
        """Return the next binary message of a client, whose frames are masked and whole."""
        while True:
            first, second = self.read(2)
            size = second & 0x7F
            if size > 125:
                size = int.from_bytes(self.read(2 if size == 126 else 8), "big")
            mask = self.read(4)
            data = np.frombuffer(self.read(size), np.uint8)
            data = data ^ np.resize(np.frombuffer(mask, np.uint8), size)
            if first & 0xF == PONG:
                self.pongs += 1
            elif first & 0xF == CLOSE:
                raise GoneError
            elif first & 0xF == BINARY:
                return data.tobytes()


def frame(data: bytes, kind: int = BINARY, *, final: bool = True, reserved: int = 0) -> bytes:
    """Return a server's frame, unmasked."""
    size = len(data)
    head = bytes([final << 7 | reserved << 4 | kind])
    if size < 126:
        head += bytes([size])
    else:
        head += struct.pack(">BH", 126, size) if size < 2**16 else struct.pack(">BQ", 127, size)
    return head + data


def pack(value: object) -> bytes:
    """Return msgpack with arrays marked as openpi marks them."""

    def mark(array: Any) -> dict[bytes, object]:
        return marked(array.tobytes(), array.dtype.str, array.shape)

    return bytes(msgpack.packb(value, default=mark))


def marked(data: object, dtype: object, shape: object) -> dict[bytes, object]:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def unpack(message: bytes) -> Any:
    def unmark(found: dict) -> Any:
        if b"__ndarray__" in found:
            array = np.frombuffer(found[b"data"], found[b"dtype"])
            return array.reshape(found[b"shape"])
        return found

    return msgpack.unpackb(message, object_hook=unmark)


def dump(value: object) -> bytes:
    """Return JSON with arrays marked as json_numpy marks them."""

    def mark(array: Any) -> dict[str, object]:
        data = base64.b64encode(array.tobytes()).decode()
        return {"__numpy__": data, "dtype": array.dtype.str, "shape": array.shape}

    return json.dumps(value, default=mark).encode()


def load(message: bytes) -> Any:
    def unmark(found: dict) -> Any:
        if "__numpy__" in found:
            array = np.frombuffer(base64.b64decode(found["__numpy__"]), found["dtype"])
            return array.reshape(found["shape"])
        return found

    return json.loads(message, object_hook=unmark)


def openpi(
    answer: Callable[[Any], object], metadata: object = None, greeting: bytes | None = None
) -> Serve:
    """Serve openpi's wire: metadata, then an answer per request; bytes are sent as they are."""

    def serve(connection: Connection) -> None:
        connection.upgrade()
        connection.send(greeting or frame(pack(metadata or {})))
        while True:
            reply = answer(unpack(connection.message()))
            connection.send(reply if isinstance(reply, bytes) else frame(pack(reply)))

    return serve


def act(answer: Callable[[Any], object]) -> Serve:
    """Serve POST /act: an answer per connection; bytes are sent as they are, head and all."""

    def serve(connection: Connection) -> None:
        line, headers = connection.request()
        assert line == "POST /act HTTP/1.1", line
        reply = answer(load(connection.read(int(headers["content-length"]))))
        connection.send(reply if isinstance(reply, bytes) else http(dump(reply)))

    return serve


def http(body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
    """Return an HTTP reply."""
    head = f"HTTP/1.1 {status}\r\nServer: uvicorn\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def swing(request: Any) -> dict[str, object]:
    """Answer with 50 rows: both waists swing out by 0.1 rad and back in the first 25."""
    rows = np.tile(request["state"], (50, 1))
    way = 0.1 * 0.5 * (1.0 - np.cos(2.0 * np.pi * np.arange(1, 51) / 25))
    rows[:, [0, 7]] += way[:, None]
    return {"actions": rows, "server_timing": {"infer_ms": 0.01}}


class PolicyServer:
    """Serves every connection in a thread; a context manager that ends them all.

    Attributes:
        connections: so far.
        failure: what went wrong in a thread, None for nothing.
    """

    def __init__(self, serve: Serve, port: int = 0) -> None:
        self.connections = 0
        self.failure: Exception | None = None
        self._serve, self._ends = serve, list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Die: every connection breaks off, and no other is taken."""
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                end, _ = self._listener.accept()
                self.connections += 1
                self._ends.append(end)
                threading.Thread(target=self._run, args=(end,), daemon=True).start()

    def _run(self, end: socket.socket) -> None:
        try:
            self._serve(Connection(end))
        except (GoneError, OSError, ValueError):  # a file of a closed socket is a ValueError
            pass
        except Exception as error:
            self.failure = error
        finally:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
