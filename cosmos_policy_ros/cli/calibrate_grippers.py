"""``cosmos calibrate-grippers``: walks an operator through open and close, writes the rig file.

Nothing is sent to an arm: the grippers are moved by hand, or by whatever drives them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import rclpy
import yaml
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState

from cosmos_policy_ros.core.config import did_you_mean, to_plain
from cosmos_policy_ros.core.errors import ConfigError, RigError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig.arms import Arms, Gripper
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

# A gripper's block of the rig file, from what its driver says closed and open.


LEAST_TURN, LEAST_WAY = 0.3, 0.005  # rad of the motor, m of a finger; less is no stroke
MOST_UNSTEADY = 0.05  # of the stroke, from the lowest reading to the highest
FINGERS = 2.0  # a "linear" command is the distance between both

Joints = Mapping[str, float]


def calibrate(gripper: Gripper, closed: Sequence[Joints], opened: Sequence[Joints]) -> Gripper:
    """Return the block with measured ends; everything else stays as it was.

    Args:
        gripper: as it is in the rig file.
        closed: joint states, positions by name, while the fingers touch.
        opened: the same while they are as far apart as they go.

    Raises:
        RigError: the joints are not in the messages, it moved too little, or it was not held still.
    """
    if not closed or not opened:
        raise RigError(f"no joint state of gripper '{gripper.joint}' came; is the driver running?")
    turned = gripper.state_source == "angle"
    told = (_all(gripper.state_joint, joints) for joints in (closed, opened))
    shut, wide = ([gripper.reading(position) for position in positions] for positions in told)
    state = _ends(gripper, shut, wide, LEAST_TURN if turned else LEAST_WAY)
    command = gripper.command_closed, gripper.command_open
    if gripper.command_unit == "angle":
        angles = _all(gripper.joint, closed), _all(gripper.joint, opened)
        command = _ends(gripper, *angles, LEAST_TURN)
    elif gripper.command_unit == "linear":
        ways = _all(gripper.finger_joint, closed), _all(gripper.finger_joint, opened)
        one = _ends(gripper, *ways, LEAST_WAY)
        command = FINGERS * one[0], FINGERS * one[1]
    return replace(
        gripper,
        state_closed=round(state[0], 5),
        state_open=round(state[1], 5),
        command_closed=round(command[0], 4),
        command_open=round(command[1], 4),
    )


def _all(name: str, states: Sequence[Joints]) -> list[float]:
    return [_joint(name, joints) for joints in states]


def _joint(name: str, joints: Joints) -> float:
    if name not in joints:
        raise RigError(f"joint '{name}' is not in the message{did_you_mean(name, joints)}")
    return float(joints[name])


def _ends(
    gripper: Gripper, closed: Sequence[float], opened: Sequence[float], least: float
) -> tuple[float, float]:
    ends = median(closed), median(opened)
    stroke = abs(ends[1] - ends[0])
    if stroke < least:
        raise RigError(
            f"gripper '{gripper.joint}' went from {ends[0]:.4f} to {ends[1]:.4f}, by less than "
            f"{least:g}; close it wholly, then open it wholly"
        )
    for name, readings in (("closed", closed), ("open", opened)):
        if max(readings) - min(readings) > MOST_UNSTEADY * stroke:
            raise RigError(
                f"gripper '{gripper.joint}' moved while it was read {name}: {min(readings):.4f} to "
                f"{max(readings):.4f}; hold it still"
            )
    return ends


PATIENCE = 5.0  # s for both arms to be found
SECONDS = 1.0  # of reading each end
STALE = 0.3  # s, in which what came while the operator was busy is taken and thrown away
ENDS = (
    ("closed", "close both grippers until the fingers touch, with nothing between them"),
    ("open", "open both grippers as far as they go"),
)


def add_calibrate_grippers(parser: argparse.ArgumentParser) -> None:
    """Measure both grippers' ends and write a rig file that has them."""
    parser.add_argument("--rig", default="interbotix_1", help="name in config/rigs, or a file")
    parser.add_argument("--output", type=Path, required=True, help="the rig file to write")
    parser.set_defaults(run=lambda options: _calibrate(options.rig, options.output.expanduser()))


def _calibrate(name: str, output: Path) -> int:
    rig = load_rig(name, config_folder("rigs"))
    if output.exists():
        raise ConfigError(f"{output}: is there already; give another --output")
    rclpy.init()
    try:
        read = _read_both(rig, input)
    finally:
        rclpy.try_shutdown()
    arms = {}
    for side, arm in rig.arms.items():
        try:
            gripper = calibrate(arm.gripper, read["closed"][side], read["open"][side])
        except RigError as error:
            raise RigError(f"{side} arm: {error}") from error
        arms[side] = replace(arm, gripper=gripper)
        print(
            f"{side}: state {gripper.state_closed:g} to {gripper.state_open:g}, command "
            f"{gripper.command_closed:g} to {gripper.command_open:g} (closed to open)"
        )
    text = yaml.safe_dump(
        to_plain(replace(rig, name=output.stem, arms=Arms(**arms))), sort_keys=False
    )
    try:
        replace_text(output, f"# {rig.name} with measured grippers.\n{text}")
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error}") from error
    print(f"written: {output}; use it with rig:={output}")
    return 0


Readings = dict[str, dict[str, list[dict[str, float]]]]  # by end, by side


def _read_both(rig: RigSpec, ask: Callable[[str], Any]) -> Readings:
    node, executor = Node("calibrate_grippers"), SingleThreadedExecutor()
    executor.add_node(node)
    heard: dict[str, list[dict[str, float]]] = {side: [] for side, _ in rig.arms.items()}

    def keep(side: str) -> Callable[[JointState], None]:
        return lambda m: heard[side].append(dict(zip(m.name, m.position, strict=False)))

    for side, arm in rig.arms.items():
        node.create_subscription(JointState, arm.joint_states, keep(side), 10)
    found: Readings = {}
    try:
        until = time.monotonic() + PATIENCE
        while not all(heard.values()) and time.monotonic() < until:
            _spin(executor, STALE)
        if silent := [side for side, readings in heard.items() if not readings]:
            topics = ", ".join(rig.arms[side].joint_states for side in silent)
            raise RigError(f"nothing came on {topics} for {PATIENCE:g} s; start the arms' drivers")
        for end, wish in ENDS:
            ask(f"{wish}, then press Enter ")
            _spin(executor, STALE)
            for readings in heard.values():
                readings.clear()
            _spin(executor, SECONDS)
            found[end] = {side: list(readings) for side, readings in heard.items()}
    finally:
        executor.shutdown()
        node.destroy_node()
    return found


def _spin(executor: SingleThreadedExecutor, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        executor.spin_once(timeout_sec=0.05)
