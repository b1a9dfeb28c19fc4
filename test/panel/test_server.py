"""The page's server at the other end of a real wire: who gets in, and that a stop never waits."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from cosmos_policy_ros.core.errors import ConfigError, RolloutError
from cosmos_policy_ros.panel.access import Access
from cosmos_policy_ros.panel.server import (
    CROWDED,
    IN_FLIGHT,
    MOST_BYTES,
    MOST_REQUESTS,
    MOST_SESSIONS,
    MOST_STRANGERS,
    REFUSED,
    STATIC,
    Images,
    PanelServer,
    Picture,
)

PASSWORD = "correct horse"  # noqa: S105 - a test's
FILE = b"\xff\xd8 an image \xff\xd9"


class Bench:
    """A server with some things to ask for, and browsers that are none."""

    def __init__(self, access: Access) -> None:
        self.asked: list[dict[str, Any]] = []
        self.reported: list[str] = []
        self.pictures: dict[str, Picture] = {}
        self.released = asyncio.Event()
        self.server = PanelServer(
            access,
            0,
            {
                "echo": self._echo,
                "refuse": self._refuse,
                "fail": self._fail,
                "wait": self._wait,
                "stop": self._echo,
                "images": self._images,
            },
            lambda: dict(self.pictures),
            self.reported.append,
        )
        self.host = f"127.0.0.1:{self.server.port}"

    async def _echo(self, arguments: dict[str, Any]) -> Mapping[str, Any]:
        self.asked.append(arguments)
        return arguments

    async def _refuse(self, _: dict[str, Any]) -> Mapping[str, Any]:
        raise RolloutError("score: 130 must be a number from 0 to 100")

    async def _fail(self, _: dict[str, Any]) -> Mapping[str, Any]:
        raise ZeroDivisionError("division by zero")

    async def _wait(self, _: dict[str, Any]) -> Mapping[str, Any]:
        await self.released.wait()
        return {}

    async def _images(self, _: dict[str, Any]) -> Images:
        return Images({"at": 1.5}, [FILE, b""])

    async def connect(self, **headers: str) -> WebSocketClientConnection:
        """Open a socket, by default as the page does."""
        headers = {"Origin": f"http://{self.host}"} | headers
        request = HTTPRequest(f"ws://{self.host}/socket", headers=headers)
        return await websocket_connect(request)

    async def enter(self) -> WebSocketClientConnection:
        """Open a socket with the token."""
        connection = await self.connect()
        await connection.write_message(json.dumps({"hello": self.server.access.token}))
        await read_state(connection)
        return connection


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(Access())
    yield bench
    bench.server.close()
    assert not bench.reported or "ZeroDivisionError" in bench.reported[0]


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60.0))  # type: ignore[arg-type]


async def read_state(connection: WebSocketClientConnection) -> Any:
    while True:
        message = await connection.read_message()
        assert message is not None, f"closed: {connection.close_code} {connection.close_reason}"
        if isinstance(message, str) and "state" in (said := json.loads(message)):
            return said["state"]


async def read_answer(connection: WebSocketClientConnection, number: int) -> Any:
    while True:
        message = await connection.read_message()
        assert message is not None, f"closed: {connection.close_code} {connection.close_reason}"
        if isinstance(message, str) and (said := json.loads(message)).get("id") == number:
            return said


async def read_binary(connection: WebSocketClientConnection) -> tuple[dict[str, Any], list[bytes]]:
    while not isinstance(message := await connection.read_message(), bytes):
        assert message is not None
    length = int.from_bytes(message[:4], "big")
    header, at, files = json.loads(message[4 : 4 + length]), 4 + length, []
    for size in header["sizes"]:
        files.append(message[at : at + size])
        at += size
    assert at == len(message)
    return header, files


async def closed(connection: WebSocketClientConnection) -> int | None:
    while await connection.read_message() is not None:
        pass
    return connection.close_code


# ------------------------------------------------------------------ who gets in


@pytest.mark.parametrize("said", ['{"hello": "guess"}', '{"hello": 7}', '{"id": 1, "do": "echo"}'])
def test_a_wrong_token_gets_nothing(bench: Bench, said: str) -> None:
    async def work() -> None:
        connection = await bench.connect()
        await connection.write_message(said)
        assert await connection.read_message() is None, "not even the state"
        assert connection.close_code == REFUSED

    run(work)
    assert not bench.asked


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
)
def test_another_site_in_the_operators_browser_is_refused(
    bench: Bench, headers: dict[str, str]
) -> None:
    async def work() -> None:
        with pytest.raises(HTTPClientError) as refused:
            await bench.connect(**headers)
        assert refused.value.code == 403

    run(work)


def test_a_socket_without_an_origin_is_refused(bench: Bench) -> None:
    with socket.create_connection(("127.0.0.1", bench.server.port)) as connection:
        lines = (
            "GET /socket HTTP/1.1",
            f"Host: {bench.host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
        )
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 403")


def test_the_page_is_served_under_this_machines_name_and_nothing_from_elsewhere_fits_in(
    bench: Bench,
) -> None:
    async def work() -> None:
        client = AsyncHTTPClient()
        page = await client.fetch(f"http://{bench.host}/")
        assert b"<title>" in page.body
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self';") and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        with pytest.raises(HTTPClientError) as refused:
            await client.fetch(f"http://{bench.host}/", headers={"Host": "evil.example"})
        assert refused.value.code == 403
        for path in ("/../access.py", "/%2e%2e/access.py", "/panel.py"):
            with pytest.raises(HTTPClientError) as refused:
                await client.fetch(f"http://{bench.host}{path}")
            assert refused.value.code in (403, 404)

    run(work)


def test_the_page_shows_texts_as_text_and_asks_no_other_host() -> None:
    files = [*STATIC.glob("*.js"), *STATIC.glob("*.html"), *STATIC.glob("*.css")]
    assert len(files) > 4
    for file in files:
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text), file.name
    assert 'style="' not in (STATIC / "index.html").read_text()


@pytest.mark.parametrize(
    "message",
    ["x" * (MOST_BYTES + 1), "[]", "{", '{"hello": NaN}', "[" * 9999, '{"hello": "\\ud800"}'],
)
def test_what_makes_no_sense_closes_its_own_socket_only(bench: Bench, message: str) -> None:
    async def work() -> None:
        other = await bench.enter()
        connection = await bench.enter()
        await connection.write_message(message)
        assert await closed(connection) in (1003, 1009, 1006)
        await other.write_message('{"id": 1, "do": "echo"}')
        assert (await read_answer(other, 1))["ok"]

    run(work)


@pytest.mark.parametrize("message", ['{"id": 1, "do": "rm"}', '{"do": "echo"}', '{"id": "1"}'])
def test_what_cannot_be_asked_for_closes_the_socket(bench: Bench, message: str) -> None:
    async def work() -> None:
        connection = await bench.enter()
        await connection.write_message(message)
        assert await closed(connection) == 1003

    run(work)
    assert not bench.asked


def test_no_more_browsers_than_it_can_serve(bench: Bench) -> None:
    async def work() -> None:
        opened = [await bench.enter() for _ in range(MOST_SESSIONS)]
        one_more = await bench.connect()
        await one_more.write_message(json.dumps({"hello": bench.server.access.token}))
        assert await closed(one_more) == CROWDED
        opened[0].close()
        await closed(opened[0])
        await bench.enter()

    run(work)


def test_strangers_are_bounded_in_number(bench: Bench) -> None:
    async def work() -> None:
        inside = await bench.enter()
        waiting = [await bench.connect() for _ in range(MOST_STRANGERS)]
        one_more = await bench.connect()
        assert await closed(one_more) == CROWDED
        await inside.write_message('{"id": 1, "do": "stop"}')
        assert (await read_answer(inside, 1))["ok"]
        waiting[0].close()
        await closed(waiting[0])
        await bench.enter()

    run(work)


def test_a_taken_port_is_named(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=rf"127.0.0.1 port {bench.server.port}: another program"):
        PanelServer(Access(), bench.server.port, {}, dict, print)


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"192.0.2.1 port 0"):
        PanelServer(Access("192.0.2.1", password=PASSWORD), 0, {}, dict, print)


def test_it_speaks_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "rig.pem", tmp_path / "rig.key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", key, "-out", certificate, "-days", "2"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *files]
    subprocess.run(command, check=True, capture_output=True)
    bench = Bench(Access(certificate=certificate, key=key))

    async def work() -> None:
        trust = ssl.create_default_context(cafile=str(certificate))
        page = await AsyncHTTPClient().fetch(f"https://{bench.host}/", ssl_options=trust)
        assert page.code == 200
        request = HTTPRequest(
            f"wss://{bench.host}/socket",
            headers={"Origin": f"https://{bench.host}"},
            ssl_options=trust,
        )
        connection = await websocket_connect(request)
        await connection.write_message(json.dumps({"hello": bench.server.access.token}))
        await read_state(connection)

    run(work)
    bench.server.close()
    protect = ["openssl", "rsa", "-aes256", "-passout", "pass:horse", "-in", key, "-out"]
    locked = tmp_path / "locked.key"
    subprocess.run([*protect, locked], check=True, capture_output=True)
    with pytest.raises(ConfigError, match=r"rig.pem: cannot be used with .*locked.key"):
        PanelServer(Access(certificate=certificate, key=locked), 0, {}, dict, print)
    certificate.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"rig.pem: cannot be used"):
        PanelServer(Access(certificate=certificate, key=key), 0, {}, dict, print)


# ------------------------------------------------------------------ what travels


def test_every_browser_sees_the_same_state(bench: Bench) -> None:
    async def work() -> None:
        first, second = await bench.enter(), await bench.enter()
        bench.server.publish({"sentence": "Armed"})
        for connection in (first, second):
            while await read_state(connection) != {"sentence": "Armed"}:
                pass
        late = await bench.connect()
        await late.write_message(json.dumps({"hello": bench.server.access.token}))
        assert await read_state(late) == {"sentence": "Armed"}
        assert await read_state(late) == {"sentence": "Armed"}, "the beat"

    run(work)


def test_an_answer_is_a_result_or_a_sentence(bench: Bench) -> None:
    async def work() -> None:
        connection = await bench.enter()
        await connection.write_message('{"id": 1, "do": "echo", "task": "<b>ziploc</b>"}')
        answer = await read_answer(connection, 1)
        assert answer == {"id": 1, "ok": True, "result": {"task": "<b>ziploc</b>"}}
        await connection.write_message('{"id": 2, "do": "refuse"}')
        refusal = "score: 130 must be a number from 0 to 100"
        assert await read_answer(connection, 2) == {"id": 2, "ok": False, "message": refusal}
        await connection.write_message('{"id": 3, "do": "fail"}')
        answer = await read_answer(connection, 3)
        assert not answer["ok"] and "a bug in 'fail'" in answer["message"]
        await connection.write_message('{"id": 4, "do": "images"}')
        header, files = await read_binary(connection)
        assert (header["id"], header["at"], files) == (4, 1.5, [FILE, b""])

    run(work)
    assert "ZeroDivisionError" in bench.reported[0], "the traceback is in the log"


def test_a_stop_waits_for_nothing(bench: Bench) -> None:
    async def work() -> None:
        connection = await bench.enter()
        for number in range(MOST_REQUESTS):
            await connection.write_message(json.dumps({"id": number, "do": "wait"}))
        await connection.write_message('{"id": 100, "do": "echo"}')
        assert "requests wait for their answers" in (await read_answer(connection, 100))["message"]
        await connection.write_message('{"id": 101, "do": "stop"}')
        assert (await read_answer(connection, 101))["ok"]
        bench.server.spawn(_set(bench.released))
        for number in range(MOST_REQUESTS):
            assert (await read_answer(connection, number))["ok"]

    run(work)


def _set(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        event.set()

    return work


def test_a_slow_browser_gets_fewer_images_and_never_late_ones(bench: Bench) -> None:
    async def work() -> None:
        connection = await bench.enter()
        bench.pictures["primary"] = Picture(1, FILE, {"age": 0.0})
        await connection.write_message('{"cameras": true}')
        header, files = await read_binary(connection)
        assert (header["names"], files) == (["primary"], [FILE])
        seen = [header["set"]]
        for number in range(2, 30):  # none of which is said to be shown
            bench.pictures["primary"] = Picture(number, b"%d" % number, {"age": 0.0})
            await asyncio.sleep(0.02)
        header, _ = await read_binary(connection)
        seen.append(header["set"])
        assert len(seen) == IN_FLIGHT
        await connection.write_message('{"shown": 1}')
        header, files = await read_binary(connection)
        assert (header["set"], files) == (IN_FLIGHT + 1, [b"29"]), "the newest, and none between"
        await connection.write_message('{"shown": 2}')
        header, files = await read_binary(connection)
        assert (header["names"], files) == ([], []), "an image is sent once, its age again"
        assert header["notes"] == {"primary": {"age": 0.0}}

    run(work)


def test_nothing_is_looked_at_while_no_page_is_open(bench: Bench) -> None:
    looks: list[int] = []
    handlers = {"echo": bench.server.handlers["echo"]}
    server = PanelServer(Access(), 0, handlers, lambda: looks.append(1) or {}, print)  # type: ignore[func-returns-value]
    host = f"127.0.0.1:{server.port}"

    async def work() -> None:
        request = HTTPRequest(f"ws://{host}/socket", headers={"Origin": f"http://{host}"})
        connection = await websocket_connect(request)
        await connection.write_message(json.dumps({"hello": server.access.token}))
        for _ in range(3):
            await read_state(connection)
        assert not looks
        await connection.write_message('{"cameras": true}')
        while not looks:
            await asyncio.sleep(0.01)
        await connection.write_message('{"cameras": false}')
        await connection.write_message('{"id": 1, "do": "echo"}')
        await read_answer(connection, 1)
        count = len(looks)
        for _ in range(2):
            await read_state(connection)
        assert len(looks) == count

    run(work)
    server.close()
