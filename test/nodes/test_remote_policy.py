"""A policy server drives the arms through the whole graph, until it dies.

What it sends passes the same gate; when it is gone the arms hold, and the next run finds it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cosmos_policy_ros.msg import Decision
from helpers.graph import DECISION, GATE_RESULT, POLICY_STATE, Graph
from helpers.policy_servers import PolicyServer, openpi, swing
from helpers.waiting import PATIENCE
from rclpy.serialization import deserialize_message

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.dataset.contact_sheet import contact_sheet, future_sheet
from cosmos_policy_ros.dataset.gate_replay import check_episode
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.nodes.options import POLICY
from cosmos_policy_ros.nodes.policy_parameters import read_settings, warnings
from cosmos_policy_ros.panel.timeline import EpisodeTimeline

HALF_SECOND = 13  # periods; a chunk takes twelve and a half


class Rooms:
    """A graph, and the server that its policy node asks."""

    def __init__(self, graph: Graph, server: PolicyServer, url: str) -> None:
        self.graph, self.server, self.url = graph, server, url

    def execute(self, first: int, last: int) -> None:
        for chunk in range(first, last + 1):
            self.graph.until_executing(chunk)
            if chunk < last:
                self.graph.step(HALF_SECOND)

    def run(self, chunks: int) -> Any:
        handle = self.graph.client.start_run(chunk_limit=chunks)
        self.execute(1, chunks)
        self.graph.step(HALF_SECOND)
        return self.graph.client.finish_run(handle, PATIENCE)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rooms]:
    root = tmp_path_factory.mktemp("remote")
    config = (config_folder("remotes") / "openpi_aloha.yaml").read_text()
    patient = root / "patient.yaml"  # on a busy machine
    for short in ("connect: 5.0", "answer: 10.0"):
        assert short in config
        config = config.replace(short, f"{short.split()[0]} 60.0")
    patient.write_text(config)
    with PolicyServer(openpi(swing, {"name": "a swing"})) as server:
        url = f"openpi://127.0.0.1:{server.port}"
        with Graph(root, remote=url, remote_config=str(patient)) as graph:
            yield Rooms(graph, server, url)


def test_a_run_is_executed_and_recorded_at_the_servers_pace(rooms: Rooms) -> None:
    graph = rooms.graph
    state = graph.client.policy_state
    assert state is not None
    assert (state.engine, state.checkpoint, state.checkpoint_digest) == ("remote", rooms.url, "")
    with graph.recorded() as episode:
        graph.step(2)
        assert graph.client.arm().success
        result = rooms.run(4)
        graph.settle()
    assert (result.outcome, result.chunks, result.refused) == ("chunk_limit", 4, 0), result.message
    decisions = [deserialize_message(cdr, Decision) for cdr in episode.wire[DECISION]]
    assert [(d.engine, d.steps, d.dt) for d in decisions] == [("remote", 25, 0.02)] * 4
    assert "a swing" in decisions[0].reason and "server" in decisions[0].phases
    (left, _) = graph.sent()
    assert {len(each.points) for each in left} == {25}
    # The bag is one like any other, though its rig's file says 50 rows at 25 Hz.
    bag = read_episode(episode.path)
    assert (bag.metadata.engine, bag.metadata.checkpoint) == ("remote", rooms.url)
    assert bag.quality.go, bag.quality.reasons
    checked = check_episode(episode.path)
    assert (checked.judged, checked.skipped, checked.changed) == (4, 0, [])
    assert not checked.refused
    windows = EpisodeWindows(bag)
    assert len(windows) == 4 * 12
    assert 0.08 < np.ptp(windows.steps.actions[:, 0]) < 0.4
    assert contact_sheet(episode.path).size and future_sheet(episode.path) is None
    chunks = EpisodeTimeline(bag).all()
    assert not chunks["troubles"]
    assert [round(c["end"] - c["start"], 3) for c in chunks["chunks"]] == [0.5] * 4


def test_when_the_server_dies_the_arms_hold_and_the_next_run_finds_it_again(rooms: Rooms) -> None:
    graph, port = rooms.graph, rooms.server.port
    graph.reset()
    assert graph.client.arm().success
    handle = graph.client.start_run()
    rooms.execute(1, 2)
    rooms.server.close()
    graph.step(HALF_SECOND)
    result = graph.client.finish_run(handle, PATIENCE)
    assert (result.outcome, result.chunks) == ("fault", 2)
    assert f"query failed: {rooms.url}: it closed the connection" in result.message
    assert "the arms hold" in result.message
    graph.step(10)  # arms are a moment behind their command
    held = graph.wire.newest(f"/{graph.rig.arms.left.joint_states}").position[:6]
    graph.step(25)
    still = graph.wire.newest(f"/{graph.rig.arms.left.joint_states}").position[:6]
    np.testing.assert_allclose(still, held, atol=0.01)
    assert graph.accepted() == [2, 2]
    # While it is away a run ends at once, and moves nothing.
    result = graph.client.finish_run(graph.client.start_run(), PATIENCE)
    assert (result.outcome, result.chunks) == ("fault", 0)
    assert "no connection" in result.message and "server running there" in result.message
    state = graph.client.policy_state
    assert state is not None and state.armed
    with PolicyServer(openpi(swing), port):
        result = rooms.run(2)
    assert (result.outcome, result.chunks) == ("chunk_limit", 2), result.message


def test_the_gate_judges_what_a_server_sends(rooms: Rooms) -> None:
    def leap(request: Any) -> object:
        answer = swing(request)
        answer["actions"] = np.asarray(answer["actions"]) + 0.5
        return answer

    graph = rooms.graph
    graph.reset()
    assert graph.client.arm().success
    with PolicyServer(openpi(leap), rooms.server.port):
        result = graph.client.finish_run(graph.client.start_run(), PATIENCE)
    assert (result.outcome, result.chunks, result.refused) == ("fault", 0, 3)
    assert {each.rule for each in graph.wire.read(GATE_RESULT)} == {"start_jump"}
    assert graph.accepted() == [0, 0]
    assert all(state.engine == "remote" for state in graph.wire.read(POLICY_STATE))


def given(**values: Any) -> Any:
    """Return a node with these parameters, and the defaults of the others."""
    known = {o.name: None if isinstance(o.default, type) else o.default for o in POLICY} | values
    return SimpleNamespace(get_parameter=lambda name: SimpleNamespace(value=known[name]))


def test_a_url_makes_the_engine_and_what_the_rig_executes() -> None:
    settings = read_settings(given(remote="openpi://127.0.0.1"))
    assert (settings.engine.engine, settings.engine.place) == ("remote", "openpi://127.0.0.1")
    rates = settings.rig.rates
    assert (rates.chunk_steps, rates.dt, rates.loss_brake) == (25, 0.02, 0.08)
    assert settings.execution.blend_rows == 10, "0.2 s"
    # The process is ended only once the server's own deadlines have passed.
    assert settings.worker.query_timeout > 5.0 + 300.0
    (unknown,) = warnings(settings)
    assert unknown == "which checkpoint openpi://127.0.0.1 has is unknown, as told by the server"
    settings = read_settings(given(remote="act://gpu-box", remote_config="cosmos_aloha"))
    assert (settings.rig.rates.chunk_steps, settings.rig.rates.dt) == (50, 0.04)
    _, exposed = warnings(settings)
    assert "gpu-box is another machine" in exposed
    assert read_settings(given()).rig.rates.chunk_steps == 50


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"engine": "remote"}, "engine remote needs the URL of a policy server: give remote:="),
        ({"engine": "cosmos", "remote": "act://localhost"}, "needs engine remote, not cosmos"),
        ({"remote": "localhost:8000"}, "is no URL of a policy server"),
        ({"remote": "act://localhost", "remote_config": "openpi_aloha"}, "is for wire openpi"),
        ({"remote": "act://localhost", "planning": "best_of_8"}, "needs engine cosmos, not remote"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings(given(**values))
    assert words in str(refused.value)
