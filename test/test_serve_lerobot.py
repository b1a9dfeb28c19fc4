"""``scripts/serve_lerobot.py`` without LeRobot: its decoder, its inputs and its server.

openpi's decoder dies of an array of objects: NumPy takes raw bytes for pointers. And a network of
convolutions takes an image of any size, so that a wrong one is noticed by how badly the arms move.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import msgpack
import numpy as np
import pytest
from helpers.waiting import PATIENCE
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from cosmos_policy_ros.core.errors import RemoteError
from cosmos_policy_ros.inference.remote import RemotePolicy
from cosmos_policy_ros.inference.remote_config import RemoteDeadlines, load_remote
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.observation import Observation

FILE = Path(__file__).parents[1] / "scripts/serve_lerobot.py"
_spec = importlib.util.spec_from_file_location("serve_lerobot", FILE)
assert _spec is not None
assert _spec.loader is not None
serve_lerobot = importlib.util.module_from_spec(_spec)
sys.modules["serve_lerobot"] = serve_lerobot  # where dataclasses look for it
_spec.loader.exec_module(serve_lerobot)
decode, encode = serve_lerobot.decode, serve_lerobot.encode

INPUTS = (
    serve_lerobot.Input("observation.state", (14,), image=False),
    serve_lerobot.Input("observation.images.cam_high", (3, 4, 6), image=True),
)


def array(data: Any = bytes(8), dtype: Any = "<f4", shape: Any = (2,)) -> bytes:
    """Return a frame whose one array claims what is given."""
    claims = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack.packb({"state": claims})


def request(**others: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 6, 3), np.uint8)
    return {"state": rng.random(14), "images": {"cam_high": image}, "prompt": "fold", **others}


# ---- the decoder --------------------------------------------------------------------------------
def test_arrays_of_every_type_come_back() -> None:
    sent = {dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in serve_lerobot.DTYPES}
    got = decode(encode(sent))
    assert list(got) == list(sent)
    for dtype, value in sent.items():
        assert got[dtype].dtype.str == dtype
        np.testing.assert_array_equal(got[dtype], value)


def test_numbers_of_numpy_come_as_numbers() -> None:
    seed = {b"__npgeneric__": True, b"data": 7, b"dtype": "<i8"}
    assert decode(msgpack.packb({"seed": seed, "prompt": "fold"})) == {"seed": 7, "prompt": "fold"}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (array(dtype="|O", shape=(1,)), "type must be one of .*'|O'"),
        (array(dtype=[["a", "<f4"]]), "type must be one of"),
        (array(dtype="<c8", shape=(1,)), "type must be one of"),
        (array(dtype=">f4"), "type must be one of"),
        (array(dtype=7), "type must be one of"),
        (array(shape=(3,)), r"shape \[3\] and type <f4 has 12 bytes, not 8 bytes"),
        (array(shape=(1,)), "has 4 bytes, not 8 bytes"),
        (array(shape=(-2,)), "no list of lengths"),
        (array(shape=(-1, -2)), "no list of lengths"),
        (array(shape=(True, 2)), "no list of lengths"),
        (array(shape=(2.0,)), "no list of lengths"),
        (array(shape=(2, 1, 1, 1, 1)), "no list of lengths"),
        (array(shape=8), "no list of lengths"),
        (array(shape=(2**40, 2**40)), "has 4835703278458516698824704 bytes, not 8"),
        (array(data="eight by"), "not str"),
        (array(data=[0] * 8), "not list"),
        (array(data=None), "not NoneType"),
        (msgpack.packb({"state": {b"__ndarray__": True}}), "type must be one of"),
        (msgpack.packb([1, 2]), "a map of names, this one is a list"),
        (msgpack.packb({"state": [0.0] * 65}), "cannot be decoded: 65 exceeds"),
        (msgpack.packb({"state": [[0] * 64] * 64}), "more than 1024 elements"),
        (msgpack.packb({"a": msgpack.ExtType(4, b"code")}), "cannot be decoded"),
        (msgpack.packb({"a": msgpack.Timestamp(0)}), "cannot be decoded"),
        (msgpack.packb({7: 1}), "cannot be decoded"),
        (b"\x91" * 100_000, "cannot be decoded"),
        (b"\x81\xa1a" * 100_000, "cannot be decoded"),
        (b"\xdd\xff\xff\xff\xff", "cannot be decoded"),
        (b"\xc6\xff\xff\xff\xff", "cannot be decoded"),
        (encode({"a": 1})[:-1], "cannot be decoded"),
        (encode({"a": 1}) + b"\x00", "cannot be decoded"),
        (b"\x81\xa1a\xa1\xff", "cannot be decoded"),
        (b"", "cannot be decoded"),
        ("{}", "binary frame, this one is text"),
    ],
    ids=lambda each: "frame" if isinstance(each, bytes) else each,
)
def test_a_hostile_frame_is_refused(frame: bytes | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(frame)


CLAIM = st.fixed_dictionaries(
    {b"__ndarray__": st.just(True)},
    optional={
        b"data": st.binary(max_size=16),
        b"dtype": st.sampled_from([*serve_lerobot.DTYPES, "|O", "<U1", "V8", "<m8[s]", ""]),
        b"shape": st.lists(st.integers(-3, 2**33), max_size=6),
    },
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text() | CLAIM,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
)


@given(st.binary() | VALUES.map(msgpack.packb) | CLAIM.map(lambda each: msgpack.packb({"a": each})))
def test_whatever_comes_is_a_request_or_refused(frame: bytes) -> None:
    try:
        message = decode(frame)
    except ValueError:
        return
    for value in message.values():
        if isinstance(value, np.ndarray):
            assert value.nbytes <= len(frame)
            assert value.dtype.str in serve_lerobot.DTYPES
            value.sum()


# ---- what a policy looks at ---------------------------------------------------------------------
def test_images_come_in_either_order_and_flat_or_nested() -> None:
    sent = request()
    image = sent["images"]["cam_high"]
    wanted = image.transpose(2, 0, 1) / np.float32(255)
    flat = {"state": list(sent["state"]), "images/cam_high": image.transpose(2, 0, 1)}
    for each in (sent, flat):
        taken = serve_lerobot.take_inputs(each, INPUTS)
        assert set(taken) == {"observation.state", "observation.images.cam_high"}
        assert all(value.dtype == np.float32 for value in taken.values())
        np.testing.assert_array_equal(taken["observation.images.cam_high"], wanted)
        np.testing.assert_allclose(taken["observation.state"], sent["state"], rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"images": {"top": np.zeros((4, 6, 3), np.uint8)}},
            "lacks images/cam_high; has images/top",
        ),
        ({"state": np.zeros(16)}, r"state: has shape \(16,\), must be \(14,\)$"),
        ({"state": np.full(14, np.nan)}, "state: must be finite numbers"),
        ({"state": "now"}, r"state: has shape \(\), must be \(14,\)"),
        ({"state": ["now"] * 14}, "state: must be finite numbers"),
        ({"state": [[0.0], 1.0]}, "inhomogeneous"),
        (
            {"images": {"cam_high": np.zeros((8, 6, 3), np.uint8)}},
            r"cam_high: has shape \(8, 6, 3\), must be \(3, 4, 6\) or \(4, 6, 3\)",
        ),
        (
            {"images": {"cam_high": np.zeros((4, 6, 3))}},
            "cam_high: has type float64, must be uint8",
        ),
    ],
)
def test_what_the_policy_was_not_trained_on_is_refused_by_name(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        serve_lerobot.take_inputs(request(**changed), INPUTS)


def test_the_rate_of_the_training_set_is_found_or_unknown(tmp_path: Path) -> None:
    assert serve_lerobot.trained_fps(tmp_path) is None
    (tmp_path / "set/meta").mkdir(parents=True)
    config = tmp_path / "train_config.json"
    config.write_text(f'{{"dataset": {{"root": "{tmp_path}/set"}}}}', encoding="utf-8")
    assert serve_lerobot.trained_fps(tmp_path) is None
    (tmp_path / "set/meta/info.json").write_text('{"fps": 25}', encoding="utf-8")
    assert serve_lerobot.trained_fps(tmp_path) == 25.0


# ---- the server ---------------------------------------------------------------------------------
class Stub:
    """Answers with the state, so that answers can be told apart; "wait" and "break" do so."""

    def __init__(self) -> None:
        self.metadata = {"server": "stub", "fps": 25.0}
        self.waiting, self.go_on = Event(), Event()

    def infer(self, asked: dict[str, Any]) -> np.ndarray:
        taken = serve_lerobot.take_inputs(asked, INPUTS)
        if asked["prompt"] == "wait":
            self.waiting.set()
            assert self.go_on.wait(PATIENCE)
        if asked["prompt"] == "break":
            raise KeyError("no such layer")
        return np.repeat(taken["observation.state"][None], 5, axis=0)


@pytest.fixture
def served(capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[Stub, int]]:
    """A server in a thread of its own, and its port."""
    stub, loop, ready = Stub(), asyncio.new_event_loop(), Event()
    ports: list[int] = []

    def run() -> None:
        server = loop.create_task(serve_lerobot.run_server(stub, "127.0.0.1", 0, started))
        try:
            loop.run_until_complete(server)
        except asyncio.CancelledError:
            pass
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    def started(port: int) -> None:
        ports.append(port)
        ready.set()

    thread = Thread(target=run)
    thread.start()
    assert ready.wait(PATIENCE)
    yield stub, ports[0]
    stub.go_on.set()
    loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_metadata_then_an_answer_to_each_request(served: tuple[Stub, int]) -> None:
    stub, port = served
    with connect(f"ws://127.0.0.1:{port}") as one:
        assert msgpack.unpackb(one.recv(PATIENCE)) == stub.metadata
        for scale in (1.0, 0.5):
            state = scale * np.arange(14.0)
            one.send(encode(request(state=state)))
            answer = decode(one.recv(PATIENCE))
            np.testing.assert_array_equal(answer["actions"], np.repeat(state[None], 5, axis=0))
            assert answer["server_timing"]["infer_ms"] >= 0
    with connect(f"ws://127.0.0.1:{port}") as next_one:
        assert msgpack.unpackb(next_one.recv(PATIENCE)) == stub.metadata


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (encode(request(state=np.zeros(7))), r"state: has shape \(7,\), must be \(14,\)"),
        (array(dtype="|O", shape=(1,)), "type must be one of"),
        (encode(request(prompt="break")), "^KeyError: 'no such layer'$"),
        ("hello", "binary frame, this one is text"),
    ],
    ids=lambda each: "frame" if isinstance(each, bytes) else each,
)
def test_an_error_is_a_text_frame_and_ends_the_connection(
    served: tuple[Stub, int], frame: bytes | str, message: str
) -> None:
    _, port = served
    with connect(f"ws://127.0.0.1:{port}") as one:
        one.recv(PATIENCE)
        one.send(frame)
        said = one.recv(PATIENCE)
        assert isinstance(said, str)
        with pytest.raises(ValueError, match=message):
            raise ValueError(said)
        with pytest.raises(ConnectionClosedError) as closed:
            one.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
    with connect(f"ws://127.0.0.1:{port}") as next_one:
        next_one.recv(PATIENCE)
        next_one.send(encode(request()))
        assert "actions" in decode(next_one.recv(PATIENCE))


def test_the_engine_of_this_package_and_the_script_understand_each_other(
    served: tuple[Stub, int],
) -> None:
    _, port = served
    shipped = load_remote(f"openpi://127.0.0.1:{port}", "lerobot_aloha")
    patient = RemoteDeadlines(connect=PATIENCE, first_answer=PATIENCE, answer=PATIENCE)
    fitted = replace(
        shipped.config,
        images=(replace(shipped.config.images[0], size=(4, 6)),),
        actions=replace(shipped.config.actions, rows=5, executed=3),
        deadlines=patient,
    )
    images = {"primary": np.full((48, 64, 3), 7, np.uint8)}
    seen = Observation(stamp_ns=1, images=images, state=np.linspace(0, 1, 14), ages={})
    policy = RemotePolicy(replace(shipped, config=fitted))
    try:
        decision = policy.decide(Query("a_task", "fold", 7, 0, seen))
        np.testing.assert_allclose(decision.positions, np.repeat(seen.state[None], 3, 0), rtol=1e-6)
        assert "stub" in decision.reason and "server" in decision.phases
        with pytest.raises(RemoteError, match="KeyError: 'no such layer'"):
            policy.decide(Query("a_task", "break", 7, 1, seen))
    finally:
        policy.close()
    # As shipped its images are those of an ALOHA's cameras.
    other = RemotePolicy(replace(shipped, config=replace(shipped.config, deadlines=patient)))
    everywhere = dict.fromkeys(("primary", "left_wrist", "right_wrist"), images["primary"])
    try:
        with pytest.raises(RemoteError, match=r"has shape \(480, 640, 3\), must be \(3, 4, 6\)"):
            other.decide(Query("a_task", "fold", 7, 0, replace(seen, images=everywhere)))
    finally:
        other.close()


def test_health_is_told_while_the_policy_thinks(served: tuple[Stub, int]) -> None:
    stub, port = served
    with connect(f"ws://127.0.0.1:{port}") as one:
        one.recv(PATIENCE)
        one.send(encode(request(prompt="wait")))
        assert stub.waiting.wait(PATIENCE)
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        asked.request("GET", "/healthz")
        reply = asked.getresponse()
        assert (reply.status, reply.read()) == (200, b"OK\n")
        stub.go_on.set()
        assert "actions" in decode(one.recv(PATIENCE))


def test_a_page_in_a_browser_is_refused(served: tuple[Stub, int]) -> None:
    _, port = served
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{port}", origin="http://127.0.0.1:8000")
