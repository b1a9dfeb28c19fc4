"""Whichever controllers a rig has: every entry of the 14-vector goes to exactly one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from helpers.outputs import OUTPUTS, grippers_apart, one_for_all, rig_with

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.rig.arms import Arms
from cosmos_policy_ros.rig.spec import RigSpec

LEFT, RIGHT = tuple(range(7)), tuple(range(7, 14))
EXPECTED = {
    "one for all": [("arms", (*LEFT, *RIGHT))],
    "grippers apart": [
        ("left", LEFT[:6]),
        ("left_gripper", (6,)),
        ("right", RIGHT[:6]),
        ("right_gripper", (13,)),
    ],
    "grippers together": [("arms", (*LEFT[:6], *RIGHT[:6])), ("grippers", (6, 13))],
}


def test_a_stock_rig_has_a_controller_per_arm(rig: RigSpec) -> None:
    assert [(each.name, each.columns) for each in rig.outputs] == [("left", LEFT), ("right", RIGHT)]
    assert rig.outputs[1].topic == rig.arms.right.trajectory
    assert rig.outputs[1].joints == rig.arms.right.names


@pytest.mark.parametrize("kind", OUTPUTS)
def test_other_controllers(kind: str) -> None:
    rig = rig_with(OUTPUTS[kind])
    assert [(each.name, each.columns) for each in rig.outputs] == EXPECTED[kind]
    names = [name for arm in rig.arms.values() for name in arm.names]
    for output in rig.outputs:
        assert output.joints == tuple(names[i] for i in output.columns)


def test_every_entry_is_sent_once_and_names_differ(rig: RigSpec) -> None:
    for topics in product("abcd", repeat=4):
        arms = [
            replace(
                arm,
                joints=tuple(f"{side}_{name}" for name in arm.joints),
                trajectory=topic,
                gripper=replace(arm.gripper, joint=f"{side}_gripper", trajectory=gripper_topic),
            )
            for (side, arm), topic, gripper_topic in zip(
                rig.arms.items(), topics[::2], topics[1::2], strict=True
            )
        ]
        outputs = replace(rig, arms=Arms(*arms)).outputs
        assert sorted(i for each in outputs for i in each.columns) == list(range(14))
        assert len({each.name for each in outputs}) == len(outputs) == len(set(topics))


def test_units_go_there_and_back(rig: RigSpec) -> None:
    positions = np.random.default_rng(0).uniform(0, 1, (5, 14))
    sent = rig.command(positions)
    gripper = rig.arms.left.gripper
    np.testing.assert_array_equal(sent[:, :6], positions[:, :6])
    np.testing.assert_allclose(sent[:, 6], gripper.command(positions[:, 6]))
    np.testing.assert_allclose(rig.commanded(sent), positions)
    np.testing.assert_allclose(
        rig.command_speed(positions), rig.command(positions) - rig.command(np.zeros((5, 14)))
    )


def shared_topic(key: str) -> Callable[[dict[str, Any]], None]:
    def change(arms: dict[str, Any]) -> None:
        arms["right"][key] = arms["left"][key]

    return change


def test_joints_of_one_topic_need_names_of_their_own() -> None:
    with pytest.raises(ConfigError, match=r"two joints on '.*' are called 'waist'; give each .*"):
        rig_with(shared_topic("trajectory"))
    with pytest.raises(ConfigError, match=r"joint states come on '.*called 'elbow'; give them"):
        rig_with(shared_topic("joint_states"))


def test_a_stream_takes_one_trajectory_per_arm() -> None:
    def streamed(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        def both(arms: dict[str, Any]) -> None:
            change(arms)
            for side, arm in arms.items():
                topics = {"joint_group": f"{side}/group", "joint_single": f"{side}/single"}
                arm["driver"] = {**topics, "services": side}

        return both

    assert rig_with(streamed(lambda arms: None), command_interface="interbotix").outputs
    for change in (one_for_all, grippers_apart):
        with pytest.raises(
            ConfigError, match="command_interface: interbotix takes one trajectory per arm"
        ):
            rig_with(streamed(change), command_interface="interbotix")
