"""The operator's page on the wire: one static page and one WebSocket, served by Tornado.

The server runs in a thread of its own. A browser opens the socket with the token of this start and
gets, until it leaves:

* text, ``{"state": {...}}``: everything the page shows, whenever it changes and twice a second;
* binary, cameras: a header and JPEG files. At most two sets are on their way to a browser, which
  says when it has shown one, so that a slow one gets fewer images and never late ones.

It asks by ``{"id": 7, "do": "pause", ...}`` and gets ``{"id": 7, "ok": true, "result": {...}}`` or
``{"id": 7, "ok": false, "message": "a sentence"}``. A binary message begins with its header's
length (4 bytes, big endian) and the header (JSON, with ``sizes``), and the files follow.

Images go through the socket and not as MJPEG streams: three of these use up the six connections
that a browser has for a host, and the stop of a second tab would wait for ever.
"""

from __future__ import annotations

import asyncio
import errno
import json
import ssl
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, StaticFileHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError
from cosmos_policy_ros.panel.access import Access

STATIC = Path(__file__).parent / "static"
MOST_BYTES = 64 << 10  # of a message from a browser; a score with the longest note has 10 kB
MOST_SESSIONS = 16  # browsers and their tabs
MOST_STRANGERS = 64  # sockets that have not given the token yet
MOST_REQUESTS = 8  # of one browser that wait for their answers
IN_FLIGHT = 2  # sets of images on their way to a browser
GREETING = 5.0  # s that a browser has to give the token
WRONG_SECRET = 1.0  # s that each wrong guess takes
FAREWELL = 1.0  # s for the browsers to take their leave
BEAT = 0.5  # s between two states, changed or not: a page that hears none has lost its server
SETS = 1 / 30  # s between two looks at the cameras
AGES = 0.2  # s after which a set is sent although nothing is new: the ages are
REFUSED, CROWDED = 4401, 4429  # codes that close a socket: wrong secret, too many browsers
# Nothing from another host, no inline script or style, and never in a frame.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Picture(NamedTuple):
    """The newest image of one source.

    Attributes:
        number: counts this source's images.
        jpeg: the file.
        note: what the page shows beside it: age [s], whether it is stale, its chunk.
    """

    number: int
    jpeg: bytes
    note: Mapping[str, Any]


class Images(NamedTuple):
    """A handler's answer that has images."""

    header: Mapping[str, Any]
    files: list[bytes]


Handler = Callable[[dict[str, Any]], Awaitable["Mapping[str, Any] | Images"]]


def pack(header: Mapping[str, Any], files: list[bytes]) -> bytes:
    """Return a binary message: the header's length, the header with ``sizes``, the files."""
    text = json.dumps({**header, "sizes": [len(file) for file in files]}).encode()
    return b"".join([len(text).to_bytes(4, "big"), text, *files])


class PanelServer:
    """Serves the page until it is closed.

    Attributes:
        url: the address to open, with the token.
    """

    def __init__(
        self,
        access: Access,
        port: int,
        handlers: Mapping[str, Handler],
        look: Callable[[], Mapping[str, Picture]],
        report: Callable[[str], object],
    ) -> None:
        """Bind the port and begin to serve.

        Args:
            access: who may open the page.
            port: TCP port, 0 for a free one.
            handlers: what a browser may ask for, by name; called in the server's thread.
            look: returns the newest images by source; called in the server's thread while a browser
                shows the cameras.
            report: takes a line for the log.

        Raises:
            ConfigError: the port or address cannot be had, or the certificate cannot be read.
        """
        self.access, self.handlers, self.report = access, handlers, report
        self.sessions: set[Session] = set()
        self.strangers: set[Session] = set()  # have not given the token yet
        self.state = json.dumps({"state": None})
        self._look = look
        options = _tls(access)
        sockets = _bind(access.address, port)
        self.port: int = sockets[0].getsockname()[1]
        self.url = access.url(self.port)
        self._loop = asyncio.new_event_loop()
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(sockets, options, started), name="panel", daemon=True
        )
        self._thread.start()
        started.result()

    def publish(self, state: Mapping[str, Any]) -> None:
        """Show a state in every browser; may be called from any thread."""
        text = json.dumps({"state": state}, allow_nan=False)
        self._loop.call_soon_threadsafe(self._publish, text)

    def spawn(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Have the server's thread do something; may be called from any thread."""

        def begin() -> None:
            task = asyncio.ensure_future(work())
            self._tasks.add(task)
            task.add_done_callback(self._done)

        self._loop.call_soon_threadsafe(begin)

    def close(self) -> None:
        """Close every browser's socket and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _serve(self, sockets: list[Any], tls: Any, started: Future[None]) -> None:
        asyncio.set_event_loop(self._loop)
        self._tasks: set[asyncio.Future[Any]] = set()

        async def begin() -> HTTPServer:
            application = Application(
                [
                    ("/socket", Session, {"server": self}),
                    ("/(.*)", Page, {"path": str(STATIC), "default_filename": "index.html"}),
                ],
                default_handler_class=RequestHandler,
                websocket_max_message_size=MOST_BYTES,
                # A browser whose network went away is noticed, and its images are no longer made.
                websocket_ping_interval=5,
                websocket_ping_timeout=5,
                log_function=lambda handler: None,
                panel_access=self.access,
            )
            server = HTTPServer(application, ssl_options=tls, max_body_size=MOST_BYTES)
            server.add_sockets(sockets)
            return server

        try:
            server = self._loop.run_until_complete(begin())
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        for work in (self._beat, self._send_images):
            self.spawn(work)
        self._loop.run_forever()
        self._loop.run_until_complete(self._end(server))
        self._loop.close()

    async def _end(self, server: HTTPServer) -> None:
        server.stop()
        for session in tuple(self.sessions):
            session.close(1001, "the panel has ended")
        for task in self._tasks:
            task.cancel()
        with suppress(asyncio.TimeoutError):  # of a browser that takes nothing any more
            await asyncio.wait_for(server.close_all_connections(), FAREWELL)

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, CosmosPolicyError):
            self.report(str(error))
        else:
            self.report(f"a bug in the panel: {''.join(traceback.format_exception(error))}")

    def _publish(self, text: str) -> None:
        if text != self.state:
            self.state = text
            for session in self.sessions:
                session.tell_state()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            for session in self.sessions:
                session.tell_state()

    async def _send_images(self) -> None:
        while True:
            await asyncio.sleep(SETS)
            wanting = [session for session in self.sessions if session.wants_images]
            if wanting:
                pictures = self._look()
                for session in wanting:
                    session.send_images(pictures)


class Guarded(RequestHandler):
    """A request to this machine by its own name."""

    def prepare(self) -> None:
        """Refuse a foreign Host header."""
        if not self.settings["panel_access"].admits_host(self.request.host):
            self.set_status(403)
            self.finish("this page is served under this machine's own name only\n")

    def set_default_headers(self) -> None:
        """Keep everything from elsewhere out."""
        for name, value in HEADERS.items():
            self.set_header(name, value)


class Page(Guarded, StaticFileHandler):
    """The page's files, which hold no secret."""


class Session(Guarded, WebSocketHandler):
    """One browser's socket.

    Attributes:
        wants_images: whether it shows the cameras and has room for a set of them.
    """

    def initialize(self, server: PanelServer) -> None:
        """Begin without any right."""
        self._server, self._admitted, self._cameras = server, False, False
        self._sent: dict[str, int] = {}  # newest number by source
        self._in_flight = self._set = self._waiting = 0
        self._last_set = 0.0  # loop's s
        self._telling: Any = None

    def check_origin(self, origin: str) -> bool:
        """Take sockets of the page itself only."""
        return self._server.access.admits_origin(origin, self.request.host)

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Refuse a socket without an Origin, which Tornado would take."""
        if self.request.headers.get("Origin") is None:
            self.set_status(403)
            self.finish("the Origin header is missing\n")
            return
        await super().get(*args, **kwargs)

    def open(self, *args: str, **kwargs: str) -> None:
        """Wait for the token."""
        # A browser's small message is not to wait for the answer to the one before.
        self.set_nodelay(True)
        self._server.strangers.add(self)
        if len(self._server.strangers) > MOST_STRANGERS:
            self.close(CROWDED, f"{MOST_STRANGERS} sockets have not given the token")
        asyncio.get_running_loop().call_later(GREETING, self._close_unless_admitted)

    def on_close(self) -> None:
        """Forget it."""
        self._server.sessions.discard(self)
        self._server.strangers.discard(self)
        self._cameras = False

    async def on_message(self, message: str | bytes) -> None:
        """Take what a browser says; what makes no sense closes its socket."""
        try:
            said = json.loads(message, parse_constant=_no_number)
            json.dumps(said, ensure_ascii=False).encode()  # half a character is no text
            assert isinstance(said, dict)
        except (ValueError, AssertionError, RecursionError):
            self.close(1003, "no JSON object")
            return
        if not self._admitted:
            await self._greet(said.get("hello"))
        elif "shown" in said:
            self._in_flight = max(0, self._in_flight - 1)
        elif "cameras" in said:
            self._cameras = said["cameras"] is True
            self._sent.clear()
        else:
            await self._answer(said)

    async def _greet(self, secret: object) -> None:
        if not self._server.access.admits_secret(secret):
            await asyncio.sleep(WRONG_SECRET)
            self.close(REFUSED, "wrong token")
        elif len(self._server.sessions) >= MOST_SESSIONS:
            self.close(CROWDED, f"{MOST_SESSIONS} browsers are connected")
        else:
            self._admitted = True
            self._server.strangers.discard(self)
            self._server.sessions.add(self)
            self.tell_state()

    def _close_unless_admitted(self) -> None:
        if not self._admitted:
            self.close(REFUSED, "no token")

    async def _answer(self, said: dict[str, Any]) -> None:
        number, name = said.pop("id", None), said.pop("do", None)
        handler = self._server.handlers.get(name) if isinstance(name, str) else None
        if type(number) is not int or handler is None:
            self.close(1003, "no such request")
            return
        if self._waiting >= MOST_REQUESTS and name != "stop":
            refusal = f"{MOST_REQUESTS} requests wait for their answers; wait for one of them"
            self._send({"id": number, "ok": False, "message": refusal})
            return
        # A task of its own: a stop must not wait for the answer to a start.
        self._server.spawn(lambda: self._serve(number, str(name), handler, said))

    async def _serve(
        self, number: int, name: str, handler: Handler, arguments: dict[str, Any]
    ) -> None:
        self._waiting += 1
        try:
            found = await handler(arguments)
        except CosmosPolicyError as error:
            self._send({"id": number, "ok": False, "message": str(error)})
        except Exception as error:
            self._server.report(f"a bug in '{name}': {traceback.format_exc()}")
            refusal = f"a bug in '{name}', see the panel's log: {type(error).__name__}: {error}"
            self._send({"id": number, "ok": False, "message": refusal})
        else:
            if isinstance(found, Images):
                self._send(pack({**found.header, "id": number}, found.files))
            else:
                self._send({"id": number, "ok": True, "result": found})
        finally:
            self._waiting -= 1

    def tell_state(self) -> None:
        """Send the newest state, unless the one before is still on its way: the beat brings it."""
        if self._telling is None or self._telling.done():
            self._telling = self._send(self._server.state)

    @property
    def wants_images(self) -> bool:
        """Whether it shows the cameras and has room for a set of them."""
        return self._cameras and self._in_flight < IN_FLIGHT

    def send_images(self, pictures: Mapping[str, Picture]) -> None:
        """Send what this browser has not seen, and the ages of all."""
        new = {k: p for k, p in pictures.items() if p.number != self._sent.get(k)}
        now = asyncio.get_running_loop().time()
        if not new and now - self._last_set < AGES:
            return
        self._last_set = now
        self._sent |= {name: picture.number for name, picture in new.items()}
        self._set += 1
        header = {
            "set": self._set,
            "names": list(new),
            "notes": {name: picture.note for name, picture in pictures.items()},
        }
        self._in_flight += 1
        self._send(pack(header, [picture.jpeg for picture in new.values()]))

    def _send(self, message: Mapping[str, Any] | str | bytes) -> asyncio.Future[None] | None:
        """Send a message; returns what is done when the network has taken it."""
        data = json.dumps(message, allow_nan=False) if isinstance(message, Mapping) else message
        with suppress(WebSocketClosedError):
            sending = asyncio.ensure_future(
                self.write_message(data, binary=isinstance(data, bytes))
            )
            # A browser may leave meanwhile, which is no error.
            sending.add_done_callback(lambda done: done.cancelled() or done.exception())
            return sending
        return None


def _no_number(text: str) -> float:
    """Refuse NaN and Infinity, which are no JSON and no answer to anything."""
    raise ValueError(f"{text} is no number")


def _bind(address: str, port: int) -> list[Any]:
    try:
        return bind_sockets(port, address)
    except OSError as error:
        reason = "another program has it" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(
            f"the operator's page cannot be served on {address} port {port}: {reason}; give "
            "panel_port:=0 for a free port, or another one"
        ) from error


def _tls(access: Access) -> ssl.SSLContext | None:
    if access.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(access.certificate, access.key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"panel_certificate {access.certificate}: cannot be used with {access.key}: {error}"
        ) from error
    return context
