"""The one sentence of the operator's page, and why an action would be refused."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cosmos_policy_ros.core.task import Deduction, Rubric, Stage
from cosmos_policy_ros.panel.status import (
    Graph,
    Trial,
    Unscored,
    allowed,
    chosen_value,
    describe_decision,
    describe_refusal,
    describe_rubric,
    minutes_left,
    sentence,
)

ALIVE: dict[str, Any] = dict.fromkeys(
    ("policy_node", "recorder_node", "arm_interface_node", "sim_rig_node"), "alive"
)


def policy(phase: str = "ready", **fields: Any) -> SimpleNamespace:
    values = {"armed": False, "run_id": "", "task": "ziploc", "chunks": 0, "message": ""}
    return SimpleNamespace(phase=phase, **(values | fields))


def recorder(phase: str = "idle") -> SimpleNamespace:
    return SimpleNamespace(phase=phase, episode_id="", seconds=0.0)


def held(reason: str) -> SimpleNamespace:
    return SimpleNamespace(holding=True, reason=reason, teleoperation="")


def leaders(teleoperation: str, reason: str = "", hold: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        holding=False,
        reason="",
        teleoperation=teleoperation,
        teleoperation_reason=reason,
        leaders_hold=hold,
    )


IDLE = Graph(ALIVE, policy=policy(), recorder=recorder(), simulated=True)
ARMED = replace(IDLE, policy=policy(armed=True))
RUNNING = replace(
    IDLE,
    policy=policy("executing", armed=True, run_id="1f", chunks=3),
    recorder=recorder("recording"),
)

LED = replace(IDLE, arm_interface=leaders("following"))
TAKEN_OVER = replace(
    RUNNING,
    policy=policy("paused", armed=True, run_id="1f"),
    arm_interface=leaders("following"),
)
SHOWING = replace(
    LED,
    recorder=SimpleNamespace(phase="recording", episode_id="e_0007", seconds=1.0),
    demonstrated="e_0007",
)


NEXT = Trial(3, 12)
PREPARED = replace(NEXT, prepared=True)
LOADING = replace(
    IDLE,
    inactive={"policy_node": "unconfigured"},
    busy="A contender is being loaded",
    trial=replace(NEXT, preparing=True),
)
FAULT = replace(NEXT, again="The last trial ended in a fault.")


def lost(node: str, graph: Graph = IDLE) -> Graph:
    return replace(graph, presence=ALIVE | {node: "lost"})


@pytest.mark.parametrize(
    ("graph", "tone", "words"),
    [
        (Graph({}), "idle", "policy node has not been found yet"),
        (replace(IDLE, policy=None), "idle", "first report"),
        (replace(IDLE, inactive={"policy_node": "inactive"}), "idle", "policy node is inactive"),
        (replace(IDLE, policy=policy("loading", message="reading")), "idle", "loading: reading"),
        (IDLE, "idle", "hold Arm for a second"),
        (ARMED, "ready", "press Start"),
        (replace(ARMED, busy="Starting the recorder"), "busy", "Starting the recorder"),
        (RUNNING, "busy", "Running ziploc: the arms follow chunk 3. Space stops."),
        (
            replace(RUNNING, policy=policy("querying", armed=True, run_id="1f")),
            "busy",
            "thinking, the arms hold",
        ),
        (replace(RUNNING, recorder=recorder()), "busy", "NOTHING IS RECORDED"),
        (replace(RUNNING, recorder=recorder(), records=False), "busy", "chunk 3. Space stops."),
        (replace(ARMED, policy=policy("moving", armed=True)), "busy", "go to the start pose"),
        (
            replace(RUNNING, policy=policy("paused", armed=True, run_id="1f", message="no image")),
            "hold",
            "The arms hold: no image. Press Resume",
        ),
        (replace(ARMED, arm_interface=held("a goal came late")), "hold", "a goal came late"),
        (replace(IDLE, recorder=recorder("recording")), "hold", "press End trial"),
        (replace(IDLE, unscored=Unscored("e_0001")), "ready", "Score episode e_0001"),
        (replace(IDLE, policy=policy("failed", message="no GPU")), "fault", "no GPU"),
        (lost("policy_node", RUNNING), "fault", "policy node does not answer any more. The arm"),
        (lost("arm_interface_node"), "fault", "arm interface does not answer any more"),
        (lost("recorder_node", RUNNING), "fault", "recorder does not answer any more"),
        (replace(IDLE, presence=ALIVE | {"recorder_node": "absent"}), "idle", "be recorded"),
        (replace(IDLE, arm_interface=leaders("off")), "idle", "hold Arm for a second"),
        (LED, "busy", "Demonstrate records from then on"),
        (SHOWING, "busy", "Drop discards it"),
        (TAKEN_OVER, "busy", "the run is paused. Let go, then Resume"),
        (
            replace(TAKEN_OVER, arm_interface=leaders("matching", "left/waist by +0.50 rad")),
            "hold",
            "about to take over: left/waist by +0.50 rad",
        ),
        (
            replace(IDLE, arm_interface=leaders("matching", "take both in hand", hold=True)),
            "hold",
            "about to lead the arms: take both in hand",
        ),
        (replace(IDLE, arm_interface=leaders("off", hold=True)), "hold", "Clutch frees them"),
        (
            replace(LED, arm_interface=leaders("held", "it jumped")),
            "hold",
            "hold: it jumped. Press",
        ),
        (replace(LED, arm_interface=leaders("clutched")), "hold", "the followers hold: Clutch"),
        (replace(IDLE, trial=Trial()), "idle", "Looking through the episodes"),
        (replace(IDLE, trial=NEXT), "idle", "Trial 3 of 12: press Prepare"),
        (replace(IDLE, trial=FAULT), "hold", "fault. Trial 3 of 12: press Prepare"),
        (
            replace(IDLE, trial=replace(NEXT, trouble="another protocol")),
            "fault",
            "cannot go on: a",
        ),
        (LOADING, "busy", "A contender is being loaded …"),
        (lost("policy_node", LOADING), "busy", "A contender is being loaded …"),
        (lost("recorder_node", LOADING), "fault", "recorder does not answer any more"),
        (
            replace(LOADING, busy="", trial=replace(NEXT, again="No contender could be loaded.")),
            "hold",
            "No contender could be loaded. Trial 3 of 12: press Prepare",
        ),
        (replace(IDLE, trial=PREPARED), "idle", "Trial 3 of 12: lay the state out until"),
        (replace(ARMED, trial=PREPARED), "ready", "Trial 3 of 12: press Start"),
        (replace(IDLE, trial=Trial(13, 12)), "ready", "All 12 trials are made"),
        (
            replace(IDLE, trial=NEXT, unscored=Unscored("e_0001", trial=True)),
            "ready",
            "by the rubric, or make its trial again",
        ),
        (
            replace(IDLE, trial=NEXT, policy=policy("failed", message="no GPU")),
            "fault",
            "no GPU. Prepare the trial again",
        ),
    ],
)
def test_it_says_what_goes_on_and_what_to_do(graph: Graph, tone: str, words: str) -> None:
    said = sentence(graph)
    assert said.tone == tone
    assert words in said.text


def test_what_is_lost_is_said_before_all_else() -> None:
    both = lost("policy_node", replace(RUNNING, arm_interface=held("the policy node is silent")))
    assert sentence(both).tone == "fault"
    alone = replace(both, presence=ALIVE | {"policy_node": "lost", "arm_interface_node": "lost"})
    assert "arm interface holds" in sentence(both).text
    assert "arm interface holds" not in sentence(alone).text, "nothing holds the arms then"


@pytest.mark.parametrize(
    ("graph", "possible"),
    [
        (Graph({}), set()),
        (IDLE, {"arm", "self_check", "reset"}),
        (ARMED, {"disarm", "start", "go_to_start", "self_check"}),
        (RUNNING, {"disarm", "pause", "end", "self_check"}),
        (
            replace(RUNNING, policy=policy("paused", armed=True, run_id="1f")),
            {"disarm", "resume", "end", "self_check"},
        ),
        (
            replace(ARMED, unscored=Unscored("e_0001")),
            {"disarm", "go_to_start", "self_check", "score", "skip"},
        ),
        (replace(IDLE, recorder=recorder("recording")), {"arm", "self_check", "reset", "end"}),
        (
            replace(IDLE, arm_interface=leaders("off")),
            {"arm", "self_check", "reset", "lead"},
        ),
        (LED, {"arm", "self_check", "reset", "let_go", "clutch", "demonstrate"}),
        (SHOWING, {"arm", "self_check", "reset", "let_go", "clutch", "end", "drop"}),
        (
            replace(RUNNING, arm_interface=leaders("off")),
            {"disarm", "pause", "end", "self_check", "lead"},
        ),
        (TAKEN_OVER, {"disarm", "end", "self_check", "let_go", "clutch"}),
        (
            replace(TAKEN_OVER, arm_interface=leaders("matching", hold=True)),
            {"disarm", "end", "self_check", "lead", "let_go", "clutch"},
        ),
        (
            replace(TAKEN_OVER, arm_interface=leaders("held")),
            {"disarm", "end", "self_check", "let_go", "lead"},
        ),
        (lost("recorder_node", ARMED), {"disarm", "go_to_start", "self_check"}),
        (
            replace(lost("recorder_node", ARMED), records=False),
            {"disarm", "start", "go_to_start", "self_check"},
        ),
        (lost("policy_node", RUNNING), set()),
        (replace(IDLE, simulated=False), {"arm", "self_check"}),
        (lost("sim_rig_node"), {"arm", "self_check"}),
        (replace(IDLE, trial=NEXT), {"arm", "self_check", "prepare", "unseal"}),
        (replace(IDLE, trial=Trial()), {"arm", "self_check", "unseal"}),
        (replace(IDLE, trial=Trial(13, 12)), {"arm", "self_check", "unseal"}),
        (replace(ARMED, trial=NEXT), {"disarm", "go_to_start", "self_check", "prepare", "unseal"}),
        (
            replace(ARMED, trial=PREPARED),
            {"disarm", "start", "go_to_start", "self_check", "prepare", "unseal"},
        ),
        (replace(RUNNING, trial=NEXT), {"disarm", "pause", "end", "self_check"}),
        (LOADING, set()),
        (replace(LOADING, busy="", trial=NEXT), {"prepare", "unseal"}),
        (lost("policy_node", replace(IDLE, trial=NEXT)), {"unseal"}),
        (
            replace(IDLE, trial=NEXT, unscored=Unscored("e_0001", trial=True)),
            {"arm", "self_check", "score", "unseal"},
        ),
    ],
)
def test_what_would_be_refused_says_why(graph: Graph, possible: set[str]) -> None:
    refusals = allowed(graph)
    assert {action for action, refusal in refusals.items() if not refusal} == possible
    assert "stop" not in refusals, "it is never greyed"


def test_recording_time_that_is_left() -> None:
    assert minutes_left(61e9, 1e9, 10e6) == 100.0
    assert minutes_left(0.5e9, 1e9, 10e6) == 0.0
    assert minutes_left(61e9, 1e9, 0.0) is None


def candidate(value: float, *, finished: bool = True) -> SimpleNamespace:
    return SimpleNamespace(value=value, spread=math.nan, finished=finished)


def test_what_is_no_number_is_shown_as_none() -> None:
    decision = SimpleNamespace(
        chunk_id="1f/7",
        requested=2,
        finished=1,
        chosen=0,
        reason="the only one",
        candidates=[candidate(0.5), candidate(math.nan, finished=False)],
    )
    shown = describe_decision(decision)
    assert shown["chunk"] == "7"
    assert [each["value"] for each in shown["candidates"]] == [0.5, None]
    assert [each["spread"] for each in shown["candidates"]] == [None, None]
    assert chosen_value(decision) == 0.5
    decision.chosen = 1
    assert chosen_value(decision) is None
    decision.chosen = 2
    assert chosen_value(decision) is None


def test_a_rubric_as_boxes() -> None:
    rubric = Rubric((Stage("grasped", 40), Stage("in bag", 60)), (Deduction("dropped", 10),))
    assert describe_rubric(rubric) == {
        "stages": [{"name": "grasped", "points": 40}, {"name": "in bag", "points": 60}],
        "deductions": [{"name": "dropped", "points": 10}],
    }


def test_a_refusal_has_joint_value_limit_and_remedy() -> None:
    result = SimpleNamespace(
        chunk_id="1f/3",
        joint_name="left/waist",
        message="4 rad/s where 3.1 are allowed: fix the policy",
    )
    assert describe_refusal(result) == {
        "chunk": "3",
        "joint": "left/waist",
        "message": "4 rad/s where 3.1 are allowed: fix the policy",
    }
