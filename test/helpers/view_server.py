"""The researcher's view in a page of its own: its static files, and one socket that answers."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.web import Application, RequestHandler, StaticFileHandler
from tornado.websocket import WebSocketHandler

from cosmos_policy_ros import panel
from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.panel.episodes import EpisodeLibrary

STATIC = Path(panel.__file__).parent / "static"
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>view</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="theme.css">
<link rel="stylesheet" href="static/episodes.css"><script type="module" src="main.js"></script>
</head><body><section id="view"></section></body></html>"""
THEME = """:root { --bg: #101418; --panel: #1a2027; --line: #2c3540;
  --text: #e8edf2; --dim: #9aa7b4; --good: #3ecf8e;
  --warn: #ffb454; --bad: #ff5c5c; --accent: #58a6ff; }
body { margin: 0; background: var(--bg); font-family: system-ui, sans-serif; }"""
MAIN = """
import { createEpisodesView } from "./static/episodes.js";
const socket = new WebSocket(`ws://${location.host}/socket`);
socket.binaryType = "arraybuffer";
const open = new Promise((done) => socket.addEventListener("open", done));
const waiting = [];
const ask = async (name, args = {}) => {
  await open;
  socket.send(JSON.stringify({ name, args }));
  return new Promise((resolve, reject) => waiting.push({ resolve, reject }));
};
socket.addEventListener("message", ({ data }) => {
  const length = new DataView(data).getUint32(0);
  const message = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let at = 4 + length;
  const images = message.sizes.map((size) => new Blob([data.slice(at, (at += size))]));
  const { resolve, reject } = waiting.shift();
  if (message.error) reject(new Error(message.error));
  else resolve(message.images ? { header: message.answer, images } : message.answer);
});
const view = createEpisodesView(document.getElementById("view"),
  { ask, askImages: ask, state: {}, onState() {} });
const route = () => view.show(...location.hash.slice(1).split("?"));
addEventListener("hashchange", route);
route();
"""


@dataclass
class Served:
    """A running server: where it is, and what it was asked (name, arguments)."""

    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class _Text(RequestHandler):
    def initialize(self, text: str, kind: str) -> None:
        self._text, self._kind = text, kind

    def get(self) -> None:
        self.set_header("Content-Type", self._kind)
        policy = "default-src 'self'; img-src data:; connect-src 'self' ws:"
        self.set_header("Content-Security-Policy", policy)
        self.write(self._text)


class _Socket(WebSocketHandler):
    def initialize(self, store: EpisodeStore, library: EpisodeLibrary, served: Served) -> None:
        self._store, self._library, self._served = store, library, served

    def on_message(self, message: str | bytes) -> None:
        asked = json.loads(message)
        name, args = asked["name"], asked["args"]
        self._served.asked.append((name, args))
        images: list[bytes] = []
        head: dict[str, Any]
        try:
            if name == "frames":
                answer, images = self._library.frames(**args)
                head = {"answer": answer, "images": True}
            else:
                head = {"answer": self._answer(name, args)}
        except CosmosPolicyError as error:
            head = {"error": str(error)}
        text = json.dumps({**head, "sizes": [len(each) for each in images]}, allow_nan=False)
        content = text.encode()
        self.write_message(struct.pack(">I", len(content)) + content + b"".join(images), True)

    def _answer(self, name: str, args: dict[str, Any]) -> Any:
        if name == "episodes":
            return self._library.table()
        if name == "score":
            stages, deductions = tuple(args["stages"]), tuple(args["deductions"])
            texts = args["operator"], args["note"]
            given = OperatorScore(args.get("score"), args["success"], stages, deductions, *texts)
            self._store.score(given, episode=args["episode"])
            return {}
        if name == "discard":
            self._store.discard(args["reason"], episode=args["episode"])
            return {}
        return getattr(self._library, name)(**args)


@contextmanager
def serving(store: EpisodeStore) -> Iterator[Served]:
    """Serve a folder of episodes on a free port of this machine, in a thread of its own."""
    served, started = Served(), threading.Event()
    loop = asyncio.new_event_loop()
    of_socket = {"store": store, "library": EpisodeLibrary(store.root), "served": served}
    pages = {"/": (PAGE, "text/html"), "/theme.css": (THEME, "text/css")}
    pages["/main.js"] = (MAIN, "text/javascript")
    routes = [(at, _Text, {"text": text, "kind": kind}) for at, (text, kind) in pages.items()]
    application = Application(
        [
            *routes,
            ("/socket", _Socket, of_socket),
            ("/static/(.*)", StaticFileHandler, {"path": str(STATIC)}),
        ]
    )

    def run() -> None:
        asyncio.set_event_loop(loop)

        async def listen() -> None:
            server = application.listen(0, "127.0.0.1")
            (socket,) = server._sockets.values()
            served.url = f"http://127.0.0.1:{socket.getsockname()[1]}/"
            started.set()

        loop.run_until_complete(listen())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
