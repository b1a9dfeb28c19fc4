"""Planning through the whole graph: searched, gated, executed, shown, recorded, made again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cosmos_policy_ros.msg import Decision
from helpers.graph import DECISION, Graph, workers_of
from helpers.waiting import is_running, wait_for
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.config import load_yaml
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.topics import future_topic
from cosmos_policy_ros.inference.spec import parse_search
from cosmos_policy_ros.model.files import digest

ROLES = ("left_wrist", "right_wrist", "primary")
DEADLINE = 2.0  # s; sooner than a hung worker is ended, let alone replaced
HASTY = "hasty_cube"  # a task of its own with that deadline
SEARCH = """
candidates: 4
futures: 2
future_steps: 2
values: 3
value_steps: 2
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    folder = tmp_path_factory.mktemp("planning")
    preset = folder / "best_of_4.yaml"
    preset.write_text(SEARCH)
    content = load_yaml(config_folder("tasks") / "transfer_cube.yaml")
    (folder / f"{HASTY}.yaml").write_text(
        yaml.safe_dump({**content, "name": HASTY, "deadline": DEADLINE})
    )
    options: dict[str, Any] = {"planning": str(preset), "devices": "cpu,cpu", "restarts": 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COSMOS_POLICY_TASKS", str(folder))  # an action takes tasks by name
        with Graph(folder, forking=True, denoising_steps=2, **options) as graph:
            yield graph


@pytest.fixture
def graph(running: Graph) -> Graph:
    running.reset()
    return running


def imaged(graph: Graph, chunks: int) -> bool:
    return all(len(graph.wire.read(f"/{future_topic(role)}")) == chunks for role in ROLES)


def until_both_ready(graph: Graph) -> None:
    graph.wait(
        lambda: "2 of 2 workers are ready" in graph.diagnosed("engine")["engine"].message,
        "both workers",
    )


def test_the_task_loop_plans_and_its_decisions_can_be_made_again(
    graph: Graph, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with graph.recorded() as episode:
        graph.step(2)
        assert graph.client.arm().success
        result = graph.run_chunks(2)
        graph.settle()
        wait_for(lambda: imaged(graph, 2), "what was imagined to be shown")
    assert (result.outcome, result.chunks, result.refused) == ("chunk_limit", 2, 0)
    episode.check_complete()
    decisions = [deserialize_message(cdr, Decision) for cdr in episode.wire[DECISION]]
    checkpoint = digest(config_folder("models") / "tiny_random")
    for index, decision in enumerate(decisions):
        assert [c.seed for c in decision.candidates] == [195, 196, 197, 198]
        assert [len(c.values) for c in decision.candidates] == [6] * 4
        assert all(c.finished and c.spread > 0 for c in decision.candidates)
        assert (decision.requested, decision.finished) == (4, 4)
        values = [c.value for c in decision.candidates]
        assert values[decision.chosen] == max(values)
        assert f"seed {decision.candidates[decision.chosen].seed}" in decision.reason
        assert decision.checkpoint_digest == decision.world_model_digest == checkpoint
        assert {"observe", "sample_actions", "predict_future", "predict_value", "transfer"} <= set(
            decision.phases
        )
        assert parse_search(decision.search, "it") == parse_search(SEARCH, "what was asked for")
        for role in ROLES:
            shown = deserialize_message(episode.wire[f"/{future_topic(role)}"][index], Image)
            assert (shown.width, shown.height, shown.encoding) == (64, 64, "rgb8")
            assert shown.header.stamp == decision.header.stamp
            assert shown.header.frame_id == decision.chunk_id
        assert cosmos.main(["replay-decision", str(episode.path), "--index", str(index)]) == 0
        assert "the same decision, to the last bit" in capsys.readouterr().out
    same = tmp_path / "same.yaml"
    same.write_text(SEARCH)
    assert cosmos.main(["compare-searches", str(episode.path), "--searches", str(same)]) == 0
    assert capsys.readouterr().out.count("| 2 of 2 (34 to 100 %) | 100 % (100 to 100) |") == 2


def test_a_worker_killed_in_mid_search_changes_nothing(graph: Graph) -> None:
    node = graph.processes.pid("policy_node")
    until_both_ready(graph)
    graph.step(2)
    assert graph.client.arm().success
    graph.client.start_run()
    graph.until_phase("querying")
    victim = workers_of(node)[0]
    os.kill(victim, signal.SIGKILL)
    graph.until_executing(1)
    (decision,) = graph.wire.read(DECISION)
    assert decision.finished == 4
    assert [len(arm) for arm in graph.sent()] == [1, 1]
    diagnosed = graph.diagnosed("worker 0", "worker 1", "search")
    assert "4 of 4 candidates finished" in diagnosed["search"].message
    assert {v.key for v in diagnosed["search"].values} >= {
        "sample_actions",
        "predict_future",
        "predict_value",
    }
    wait_for(
        lambda: len([p for p in workers_of(node) if p != victim and is_running(p)]) == 2,
        "the worker to be back",
    )


def test_without_workers_the_arms_hold_until_they_are_back(graph: Graph) -> None:
    """The deadline is the task's own."""
    node = graph.processes.pid("policy_node")
    until_both_ready(graph)
    graph.step(2)
    assert graph.client.arm().success
    for worker in workers_of(node):
        os.kill(worker, signal.SIGSTOP)
    graph.client.start_run(task=HASTY)
    graph.until_said(f"no candidate finished within the deadline of {DEADLINE:g} s")
    assert graph.sent() == [[], []]
    assert graph.accepted() == [0, 0]
    graph.step(2)
    graph.until_executing(1)
    assert len(graph.wire.read(DECISION)) == 1


def test_a_decision_remembers_its_chunk_not_an_average(graph: Graph) -> None:
    """The chunk sent is the chosen candidate's own."""
    graph.step(2)
    assert graph.client.arm().success
    graph.client.start_run(seed=7)
    graph.until_executing(1)
    (decision,) = graph.wire.read(DECISION)
    assert [c.seed for c in decision.candidates] == [7, 8, 9, 10]
    left, _ = graph.sent()
    rows = np.reshape(decision.positions, (50, 14))
    waist = [point.positions[0] for point in left[0].points]
    np.testing.assert_allclose(waist, rows[:, 0], atol=1e-9)


def test_seed_0_is_a_seed_like_any_other(graph: Graph) -> None:
    """It was taken for none: the node's own was used, and 0 recorded."""
    graph.step(2)
    assert graph.client.arm().success
    graph.client.start_run(seed=0)
    graph.until_executing(1)
    (decision,) = graph.wire.read(DECISION)
    assert [c.seed for c in decision.candidates] == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", [-2, 2**32])
def test_a_seed_that_no_noise_can_be_drawn_from_is_refused(graph: Graph, seed: int) -> None:
    graph.step(2)
    assert graph.client.arm().success
    refused = graph.client.finish_run(graph.client.start_run(seed=seed), 30.0)
    assert refused.outcome == "refused"
    assert refused.message == f"seed {seed} must be from 0 to 4294967295, or -1 for the node's own"
