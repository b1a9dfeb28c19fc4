"""A policy server answers with a chunk, or the operator reads what is wrong, by a deadline.

The servers are of the test's own (:mod:`helpers.policy_servers`); the hostile ones send whatever
TCP carries.
"""

from __future__ import annotations

import gzip
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.policy_servers import (
    PING,
    TEXT,
    Connection,
    PolicyServer,
    Serve,
    act,
    dump,
    frame,
    http,
    marked,
    openpi,
    pack,
)

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import ConfigError, RemoteError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.inference.engines import load_engine
from cosmos_policy_ros.inference.remote import (
    RemotePolicy,
    build_request,
    fit_image,
    hand_state,
    read_actions,
)
from cosmos_policy_ros.inference.remote_config import (
    Remote,
    RemoteActions,
    RemoteConfig,
    RemoteDeadlines,
    RemoteImage,
    RemoteState,
    load_remote,
)
from cosmos_policy_ros.inference.spec import Decide, EngineSpec
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.observation import Observation

PATIENT = RemoteDeadlines(connect=60.0, first_answer=60.0, answer=60.0)
BRIEF = RemoteDeadlines(connect=1.0, first_answer=0.5, answer=0.5)
STATE = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.25, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 0.75])
ROWS = np.linspace(0.0, 1.0, 50 * 14).reshape(50, 14)
RNG = np.random.default_rng(1)
IMAGES = {
    role: RNG.integers(0, 256, (48, 64, 3), np.uint8)
    for role in ("left_wrist", "right_wrist", "primary")
}


def query(index: int = 0, prompt: str = "put candy in bag") -> Query:
    seen = Observation(stamp_ns=1, images=IMAGES, state=STATE, ages={})
    return Query("ziploc", prompt, 7, index, seen)


def remote(url: str, deadlines: RemoteDeadlines = PATIENT, name: str | None = None) -> Remote:
    found = load_remote(url, name)
    return replace(found, config=replace(found.config, deadlines=deadlines))


@pytest.fixture
def connect() -> Iterator[Callable[..., RemotePolicy]]:
    """Return a policy of a server's; it is closed after the test."""
    policies = []

    def make(server: PolicyServer, wire: str = "openpi", **more: Any) -> RemotePolicy:
        policies.append(RemotePolicy(remote(f"{wire}://127.0.0.1:{server.port}", **more)))
        return policies[-1]

    yield make
    for policy in policies:
        policy.close()


# -------------------------------------------------------------------- configs and addresses


@pytest.mark.parametrize("path", [*config_folder("remotes").glob("*.yaml")], ids=lambda p: p.stem)
def test_every_shipped_config_is_for_a_rig(path: Path, rig: Any) -> None:
    config = load_config(RemoteConfig, path)
    found = load_remote(f"{config.wire}://localhost", path.stem)
    if config.actions.hand:
        with pytest.raises(ConfigError, match="for the one arm of a benchmark"):
            found.executing(rig)
        return
    executing = found.executing(rig)
    assert executing.rates.chunk_steps == config.actions.executed
    assert executing.rates.dt == pytest.approx(config.actions.dt)
    assert replace(executing, rates=rig.rates) == rig
    assert [image.camera for image in config.images] == ["primary", "left_wrist", "right_wrist"]


def test_a_benchmarks_server_is_asked_as_its_own_client_asks() -> None:
    """Openpi on LIBERO: pictures by half a turn, hand's position, axis and angle, gripper."""
    config = load_remote("openpi://localhost", "openpi_libero").config
    half = np.sqrt(0.5)
    state = np.array([0.04, -0.04, 0.1, 0.2, 0.3, 0.0, half, 0.0, half])  # a quarter turn about y
    image = np.zeros((256, 256, 3), np.uint8)
    image[:32, :64] = 255
    seen = Observation(1, {"primary": image, "wrist": image}, state, {})
    request = build_request(config, Query("libero_goal/0", "open the drawer", 195, 0, seen))
    sent = request["observation/image"]
    assert sent.shape == (224, 224, 3)
    assert sent[-20:, -50:].min() == 255
    assert sent[:150].max() == 0
    told = request["observation/state"]
    assert told == pytest.approx([0.1, 0.2, 0.3, 0.0, np.pi / 2, 0.0, 0.04, -0.04])
    rows = np.arange(70.0).reshape(10, 7)
    assert np.array_equal(read_actions(config, {"actions": rows}, state), rows[:5])
    straight = np.array([0.0, 0, 0, 0, 0, 0, 0, 0, 1])
    assert not hand_state(straight, ("axis_angle",)).any()


@pytest.mark.parametrize(
    ("state", "actions", "words"),
    [
        ({"hand": ("position",)}, {}, "go together"),
        ({}, {"hand": 7}, "go together"),
        ({"hand": ("position",)}, {"hand": 7, "kind": "delta"}, "executed as they are"),
    ],
)
def test_arms_of_two_kinds_are_refused(
    state: dict[str, Any], actions: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        RemoteConfig(
            "x",
            "openpi",
            (RemoteImage("image", "primary", (8, 8)),),
            RemoteState("state", **state),
            RemoteActions(10, 5, 0.05, **actions),
        )


def test_an_address_names_port_path_and_config() -> None:
    found = load_remote("openpi://gpu-box")
    assert (found.authority, found.path, found.name) == ("gpu-box:8000", "/", "openpi_aloha")
    assert not found.loopback
    found = load_remote("act://[::1]:99/predict", "cosmos_aloha")
    assert (found.authority, found.path, found.name) == ("[::1]:99", "/predict", "cosmos_aloha")
    assert found.loopback and load_remote("act://127.0.1.5").loopback
    assert load_remote("act://localhost").path == "/act"


@pytest.mark.parametrize(
    ("url", "name", "words"),
    [
        ("http://127.0.0.1:8000", None, "is no URL of a policy server; give one like openpi://"),
        ("openpi://", None, "is no URL of a policy server"),
        ("127.0.0.1:8000", None, "is no URL of a policy server"),
        ("openpi://host:port", None, "is no URL (Port could not be cast"),
        ("openpi://host:99999", None, "is no URL (Port out of range"),
        ("openpi://me:secret@host", None, "has a user"),
        ("openpi://host/?x=1", None, "has a user, a query or a fragment"),
        ("openpi://ho\x1bst", None, "ho\\x1bst' is no URL"),
        ("openpi://host", "cosmos_aloha", "cosmos_aloha.yaml is for wire act"),
        ("act://host", "cosmos_alohaa", "did you mean 'cosmos_aloha'"),
    ],
)
def test_a_wrong_address_is_refused_with_a_right_one(
    url: str, name: str | None, words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_remote(url, name)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("rows: 50", "rows: 0"),
        ("executed: 25", "executed: 51"),
        ("dt: 0.02", "dt: 0.0"),
        ("dt: 0.02", "dt: .nan"),
        ("key: state", "key: images/cam_high"),
        ("key: state", "key: images"),
        ("key: state", "key: a//b"),
        ("prompt: prompt", "prompt: state"),
        ("size: [224, 224]", "size: [224]"),
        ("size: [224, 224]", "size: [224, 9999]"),
        ("connect: 5.0", "connect: 0.0"),
        ("connect: 5.0", "connect: .inf"),
        ("{key: state}", "{key: state, closed: 1.0}"),
        ("{key: state}", "{key: state, layout: [left_arm, right_arm]}"),
        ("wire: openpi", "wire: grpc"),
        ("prompt: prompt", "prompt: prompt\nconstants: {a: [1]}"),
        ("prompt: prompt", "prompt: prompt\nconstants: {state/x: 1}"),
        ("prompt: prompt", "prompt: prompt\nseed: prompt"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(change: str, words: str, tmp_path: Path) -> None:
    text = (config_folder("remotes") / "openpi_aloha.yaml").read_text()
    assert change in text
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace(change, words, 1))
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        load_remote("openpi://localhost", str(file))


# -------------------------------------------------------------------- what is asked


def test_openpis_request() -> None:
    request = build_request(load_remote("openpi://localhost").config, query())
    assert list(request) == ["images", "state", "prompt"]
    assert list(request["images"]) == ["cam_high", "cam_left_wrist", "cam_right_wrist"]
    for image in request["images"].values():
        assert (image.dtype, image.shape) == (np.uint8, (3, 224, 224))
        # 48 rows to 64 columns: an eighth of the square is black, above and below.
        assert not image[:, :28].any() and not image[:, -28:].any() and image[:, 30:-30].any()
    np.testing.assert_array_equal(request["state"], STATE)
    assert request["prompt"] == "put candy in bag"


def test_the_requests_of_act() -> None:
    request = build_request(load_remote("act://localhost").config, query())
    # OpenVLA-OFT reads every key with "wrist" in it, in this order.
    images = ["full_image", "left_wrist_image", "right_wrist_image"]
    assert list(request) == [*images, "state", "instruction"]
    assert {request[key].shape for key in images} == {(256, 256, 3)}
    request = build_request(load_remote("act://localhost", "cosmos_aloha").config, query())
    images = ["primary_image", "left_wrist_image", "right_wrist_image"]
    assert list(request) == [*images, "proprio", "task_description", "return_all_query_results"]
    assert {request[key].shape for key in images} == {(224, 224, 3)}
    assert request["return_all_query_results"] is False


def test_the_released_servers_images_are_those_that_the_model_here_sees() -> None:
    from cosmos_policy_ros.model.images import reduce

    request = build_request(load_remote("act://localhost", "cosmos_aloha").config, query())
    np.testing.assert_array_equal(request["left_wrist_image"], reduce(IMAGES["left_wrist"], 224))


def test_images_are_stretched_or_padded_and_their_channels_ordered() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    image[..., 0], image[:, 10:, 1] = 200, 100
    how = RemoteImage("k", "primary", (20, 20), fit="pad")
    padded = fit_image(how, image)
    np.testing.assert_array_equal(padded[5:15], image)
    assert not padded[:5].any() and not padded[15:].any()
    stretched = fit_image(replace(how, fit="stretch", order="chw"), image)
    assert stretched.shape == (3, 20, 20) and stretched.flags.c_contiguous
    assert (stretched[0] == 200).all() and stretched[1, 0, 0] == 0 and stretched[1, 0, 19] == 100
    tall = fit_image(how, image.transpose(1, 0, 2))
    assert tall[:, 5:15].any() and not tall[:, :5].any()


def test_prompts_are_mapped_and_constants_sent() -> None:
    config = load_remote("openpi://localhost").config
    config = replace(config, prompts={"put candy in bag": "fill the bag"}, constants={"a/b": 2.5})
    assert "seed" not in build_request(config, query())
    assert build_request(replace(config, seed="seed"), query())["seed"] == 7
    request = build_request(config, query())
    assert (request["prompt"], request["a"]) == ("fill the bag", {"b": 2.5})
    assert build_request(config, query(prompt="other"))["prompt"] == "other"
    assert "prompt" not in build_request(replace(config, prompt=""), query())


# -------------------------------------------------------------------- what is answered

LAYOUT = ("right_arm", "right_gripper", "left_arm", "left_gripper")


def actions(**changes: Any) -> RemoteConfig:
    config = load_remote("openpi://localhost").config
    found = replace(RemoteActions(rows=50, executed=25, dt=0.02), **changes)
    return replace(config, actions=found, state=RemoteState("state", LAYOUT, 2.0, -2.0))


def test_layouts_and_gripper_ends_go_there_and_back() -> None:
    config = actions(layout=LAYOUT, closed=2.0, open=-2.0)
    sent = build_request(config, query())["state"]
    np.testing.assert_allclose(sent, [*STATE[7:13], -1.0, *STATE[:6], 1.0])
    found = read_actions(config, np.tile(sent, (50, 1)), STATE)
    np.testing.assert_allclose(found, np.tile(STATE, (25, 1)))


def test_relative_rows_are_added_to_the_state_and_deltas_to_each_other() -> None:
    config = actions(kind="relative", layout=LAYOUT, closed=0.0, open=10.0)
    step = np.zeros((50, 14))
    step[:, 0], step[:, 6] = 0.01, 1.0  # right waist, right gripper: a tenth of its stroke
    found = read_actions(config, step, STATE) - STATE
    np.testing.assert_allclose(found[:, 7], 0.01)
    np.testing.assert_allclose(found[:, 13], 0.1)
    delta = replace(config, actions=replace(config.actions, kind="delta"))
    found = read_actions(delta, step, STATE) - STATE
    np.testing.assert_allclose(found[:, 7], 0.01 * np.arange(1, 26))


def test_openpi_answers_a_run(connect: Callable[..., RemotePolicy]) -> None:
    seen: list[Any] = []

    def answer(request: Any) -> object:
        seen.append(request)
        return {"actions": ROWS.astype("f4"), "server_timing": {"infer_ms": 0.001}}

    metadata = {"reset_pose": [0.0] * 6, "name": "pi05\x1b[31m"}
    with PolicyServer(openpi(answer, metadata)) as server:
        policy = connect(server)
        for index in range(3):
            decision = policy.decide(query(index))
            np.testing.assert_allclose(decision.positions, ROWS[:25], atol=1e-7)
        assert server.connections == 1
        policy.decide(query(0))
        assert server.connections == 2, "a run begins with a connection of its own"
    assert (decision.positions.dtype, decision.dt, decision.engine) == (np.float64, 0.02, "remote")
    assert (decision.checkpoint_digest, decision.chosen) == ("", 0)
    (candidate,) = decision.candidates
    assert (candidate.seed, candidate.values) == (7, ())
    assert f"openpi://127.0.0.1:{server.port}" in decision.reason
    assert "pi05\\x1b" in decision.reason and decision.reason.isprintable()
    assert list(decision.phases) == ["prepare", "server", "network"]
    assert decision.phases["server"] == pytest.approx(1e-6)
    np.testing.assert_array_equal(seen[0]["state"], STATE)
    assert seen[0]["images"]["cam_high"].shape == (3, 224, 224)


@pytest.mark.parametrize("told", [None, "soon", -1.0, 1e9, float("nan"), {"a": 1}])
def test_a_servers_time_counts_only_if_it_can_be(
    told: object, connect: Callable[..., RemotePolicy]
) -> None:
    reply = {"actions": ROWS, "server_timing": {"infer_ms": told}}
    with PolicyServer(openpi(lambda request: reply)) as server:
        assert list(connect(server).decide(query()).phases) == ["connect", "prepare", "answer"]


@pytest.mark.parametrize("value", [0.75, [0.75], 1.5, float("nan"), None, "high"])
@pytest.mark.parametrize("rows", [list(ROWS), ROWS.tolist()], ids=["arrays", "lists"])
def test_the_released_server_answers_with_a_value(
    value: object, rows: object, connect: Callable[..., RemotePolicy]
) -> None:
    pictures = {"future_image": np.zeros((224, 224, 3), np.uint8), "future_image2": None}
    reply = {"actions": rows, "future_image_predictions": pictures, "value_prediction": value}
    with PolicyServer(act(lambda request: reply)) as server:
        decision = connect(server, "act", name="cosmos_aloha").decide(query())
    np.testing.assert_array_equal(decision.positions, ROWS)
    (candidate,) = decision.candidates
    assert candidate.values == ((0.75,) if value in (0.75, [0.75]) else ())
    assert "uvicorn" in decision.reason


def test_openvla_answers_with_the_rows_alone(connect: Callable[..., RemotePolicy]) -> None:
    wrists = []

    def answer(request: Any) -> object:
        wrists.append([request[key][0, 0].tolist() for key in request if "wrist" in key])
        return list(ROWS[:25])

    with PolicyServer(act(answer)) as server:
        policy = connect(server, "act")
        policy.decide(query())
        decision = policy.decide(query(1))
    assert decision.positions.shape == (25, 14) and decision.dt == 0.04
    images = load_remote("act://localhost").config.images[1:]
    corners = [fit_image(how, IMAGES[how.camera])[0, 0].tolist() for how in images]
    assert [how.camera for how in images] == ["left_wrist", "right_wrist"]
    assert wrists == [corners] * 2


def test_a_server_is_answered_while_the_arms_move(connect: Callable[..., RemotePolicy]) -> None:
    """Between two queries: openpi's server drops a client that leaves its pings unanswered."""
    answered = threading.Event()

    def serve(connection: Connection) -> None:
        connection.upgrade()
        connection.send(frame(pack({})))
        connection.message()
        connection.send(frame(pack({"actions": ROWS})) + frame(b"here?", PING))
        head = connection.read(2)
        assert head[0] & 0xF == 10
        connection.read(4 + (head[1] & 0x7F))
        answered.set()
        connection.message()
        connection.send(frame(pack({"actions": ROWS})))

    with PolicyServer(serve) as server:
        policy = connect(server)
        policy.decide(query())
        assert answered.wait(60.0)
        policy.decide(query(1))


def test_an_engine_waits_for_a_server_that_is_not_there_yet() -> None:
    with PolicyServer(openpi(lambda request: {"actions": ROWS}, {"name": "pi0"})) as server:
        port = server.port
    engine = load_engine(EngineSpec("remote", remote=remote(f"openpi://127.0.0.1:{port}")))
    assert engine.info.digest == ""
    assert "no connection: Connection refused" in engine.info.warning
    with pytest.raises(RemoteError, match="is the policy server running there"):
        engine.answer(Decide(query()))
    with PolicyServer(openpi(lambda request: {"actions": ROWS}, {"name": "pi0"}), port):
        engine.answer(Decide(query()))
    assert "checkpoint unknown, as told by the server: {'name': 'pi0'}" in engine.info.warning
    assert "ssh tunnel" not in engine.info.warning


def test_another_machine_is_warned_of() -> None:
    policy = RemotePolicy(load_remote("act://192.0.2.1"))
    assert "neither encrypted nor authenticated" in policy.info.warning
    assert "ssh tunnel" in policy.info.warning
    policy.close()


# -------------------------------------------------------------------- what goes wrong


def dies_after(answers: int) -> Serve:
    def serve(connection: Connection) -> None:
        connection.upgrade()
        connection.send(frame(pack({})))
        for _ in range(answers):
            connection.message()
            connection.send(frame(pack({"actions": ROWS})))
        connection.message()

    return serve


def test_a_lost_connection_comes_back_with_the_next_run_alone(
    connect: Callable[..., RemotePolicy],
) -> None:
    with PolicyServer(dies_after(1)) as server:
        policy = connect(server)
        with pytest.raises(RemoteError, match="there is no connection"):
            policy.decide(query(1))
        policy.decide(query(0))
        with pytest.raises(RemoteError, match="closed the connection"):
            policy.decide(query(1))
        for index in (1, 2):
            with pytest.raises(RemoteError, match="not asked again before the next run"):
                policy.decide(query(index))
        assert server.connections == 1
        policy.decide(query(0))
        assert server.connections == 2


def openpi_with(reply: object) -> Serve:
    return openpi(lambda request: reply)


def act_with(reply: object) -> Serve:
    return act(lambda request: reply)


NAN = ROWS.copy()
NAN[3, 5] = np.nan
BOMB = gzip.compress(bytes(10**7))
REPLIES = {
    "an object array": (
        "openpi",
        openpi_with({"actions": marked(bytes(8), "|O", [1])}),
        "an array of type '|O'",
    ),
    "a wrong size": (
        "openpi",
        openpi_with({"actions": marked(b"", "<f8", [50, 14])}),
        "an array of shape [50, 14] and type float64 in 0 bytes",
    ),
    "a negative shape": ("openpi", openpi_with({"actions": marked(b"", "<f8", [-1])}), "[-1]"),
    "NaN": ("openpi", openpi_with({"actions": NAN}), "not finite: nan in row 3, column 5, of 1"),
    "500 rows": (
        "openpi",
        openpi_with({"actions": np.zeros((500, 14))}),
        "shape (500, 14), expected (50, 14)",
    ),
    "another width": (
        "openpi",
        openpi_with({"actions": np.zeros((50, 7))}),
        "shape (50, 7), expected (50, 14)",
    ),
    "another key": ("openpi", openpi_with({"action": ROWS}), "no 'actions': it holds action"),
    "no mapping": ("openpi", openpi_with([1]), "no 'actions': it is list"),
    "deep nesting": ("openpi", openpi_with(frame(b"\x91" * 1000 + b"\x01")), "16 levels deep"),
    "a text frame": (
        "openpi",
        openpi_with(frame(b"Traceback:\n  File x\nKeyError: '\x1b[1mstate'\n", TEXT)),
        "reports an error: KeyError: '\\x1b[1mstate'",
    ),
    "a text frame for a greeting": (
        "openpi",
        openpi(lambda request: None, greeting=frame(b"busy", TEXT)),
        "reports an error: busy",
    ),
    "a second answer": (
        "openpi",
        openpi_with(frame(pack({"actions": ROWS})) * 2),
        "a message that was not asked for",
    ),
    "compression that was not offered": (
        "openpi",
        lambda c: c.upgrade("Sec-WebSocket-Extensions: permessage-deflate\r\n"),
        "",
    ),
    "a compressed frame": ("openpi", openpi_with(frame(BOMB, reserved=4)), "closed the connection"),
    "a frame of 2 GB": (
        "openpi",
        openpi_with(b"\x82\x7f" + (2**31).to_bytes(8, "big")),
        "closed the connection",
    ),
    "the end in a frame": ("openpi", lambda c: (c.upgrade(), c.send(b"\x82\x7e\x10")), "closed"),
    "no WebSocket": ("openpi", lambda c: c.send(http(b"hello")), "Non-websocket response"),
    "a redirect of the WebSocket": (
        "openpi",
        lambda c: c.send(http(b"", "302 Found", "Location: http://127.0.0.1:1/\r\n")),
        "302",
    ),
    "no HTTP at all": ("openpi", lambda c: c.send(b"\x00" * 100), ""),
    "error with 200": ("act", act_with("error"), "it reports an error: error (its log says why)"),
    "a broken server": (
        "act",
        act_with(http(b"<html>\nInternal Server Error\n", "500 Internal")),
        "answers HTTP 500: Internal Server Error",
    ),
    "a redirect": (
        "act",
        act_with(http(b"", "307 Elsewhere", "Location: http://127.0.0.1:1/act\r\n")),
        "HTTP 307, elsewhere (http://127.0.0.1:1/act), which is not followed",
    ),
    "a compression bomb": (
        "act",
        act_with(http(BOMB, extra="Content-Encoding: gzip\r\n")),
        "in encoding 'gzip'",
    ),
    "a body of 2 GB": (
        "act",
        act_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2147483648\r\n\r\n"),
        "",
    ),
    "a head without end": ("act", act_with(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000), ""),
    "the end in a body": (
        "act",
        act_with(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[[0.0"),
        "",
    ),
    "no JSON": ("act", act_with(http(b"[[0.0,")), "cannot be read as JSON"),
    "an object array in JSON": (
        "act",
        act_with(http(b'[{"__numpy__": "AAAAAAAAAAA=", "dtype": "|O", "shape": [1]}]')),
        "an array of type '|O'",
    ),
    "NaN in JSON": ("act", act_with(NAN[:25].tolist()), "not finite"),
    "50 rows in JSON": ("act", act_with(list(ROWS)), "shape (50, 14), expected (25, 14)"),
    "uneven rows": ("act", act_with([[0.0], [0.0, 1.0]]), "rows of 1 and of 2 numbers"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_what_is_no_chunk_is_one_clear_error(
    name: str, connect: Callable[..., RemotePolicy], caplog: pytest.LogCaptureFixture
) -> None:
    wire, serve, words = REPLIES[name]
    with PolicyServer(serve) as server:
        policy = connect(server, wire)
        with pytest.raises(RemoteError) as failed:
            policy.decide(query())
            # A surplus message may come after the answer that it follows.
            since = time.monotonic()
            while time.monotonic() - since < 60.0:
                policy.decide(query(1))
    text = str(failed.value)
    assert text.startswith(f"{wire}://127.0.0.1:{server.port}: ") and words in text
    assert text.isprintable() and len(text) < 500
    assert not caplog.records, "nor is a traceback logged"


def endless_frames(connection: Connection) -> None:
    connection.upgrade()
    connection.send(frame(pack({})))
    connection.message()
    connection.send(frame(b"\x81", final=False))
    while True:
        connection.send(frame(b"", 0, final=False) * 100)


def slow_bytes(connection: Connection) -> None:
    connection.upgrade()
    connection.send(frame(pack({})))
    connection.message()
    for byte in frame(pack({"actions": ROWS})):
        connection.send(bytes([byte]))
        time.sleep(0.05)


def silence(connection: Connection) -> None:
    connection.upgrade()
    connection.send(frame(pack({})))
    connection.message()
    connection.message()


def silent_greeting(connection: Connection) -> None:
    connection.upgrade()
    connection.message()


def slow_http(connection: Connection) -> None:
    _, headers = connection.request()
    connection.read(int(headers["content-length"]))
    for byte in http(dump(list(ROWS[:25]))):
        connection.send(bytes([byte]))
        time.sleep(0.05)


def silent_http(connection: Connection) -> None:
    _, headers = connection.request()
    connection.read(int(headers["content-length"]) + 1)


def endless_http(connection: Connection) -> None:
    _, headers = connection.request()
    connection.read(int(headers["content-length"]))
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.send(b"1\r\n \r\n" * 100)


@pytest.mark.parametrize(
    ("wire", "serve"),
    [
        ("openpi", endless_frames),
        ("openpi", slow_bytes),
        ("openpi", silence),
        ("openpi", silent_greeting),
        ("openpi", lambda connection: connection.read(10**6)),
        ("act", slow_http),
        ("act", silent_http),
        ("act", endless_http),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_the_whole_answer_has_one_deadline(
    wire: str, serve: Serve, connect: Callable[..., RemotePolicy]
) -> None:
    with PolicyServer(serve) as server:
        policy = connect(server, wire, deadlines=BRIEF)
        with pytest.raises(RemoteError, match=r"no whole answer within .* under deadlines in"):
            policy.decide(query())
        connections = server.connections
        with pytest.raises(RemoteError, match="not asked again before the next run"):
            policy.decide(query(1))
        assert server.connections == connections


def test_a_first_answer_may_take_longer_than_the_others(
    connect: Callable[..., RemotePolicy],
) -> None:
    may_answer = threading.Event()

    def answer(request: Any) -> object:
        may_answer.wait(60.0)
        return {"actions": ROWS}

    deadlines = RemoteDeadlines(connect=60.0, first_answer=60.0, answer=0.5)
    with PolicyServer(openpi(answer)) as server:
        policy = connect(server, deadlines=deadlines)
        threading.Timer(1.0, may_answer.set).start()
        policy.decide(query(0))
        may_answer.clear()
        with pytest.raises(RemoteError, match="no whole answer"):
            policy.decide(query(1))
        may_answer.set()
