"""What must be true before arms are armed, as a table with what to do about each line that is not.

Without ROS: who asks brings what was seen on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.spec import CAMERA_ROLES, RigSpec

# A driver that is told 100 Hz gives 97; one that gives a third of it is another driver.
LEAST_SHARE = 0.7
LEAST_WINDOW = 1.0  # s, of counting messages
GRIPPER_RANGE = (-0.1, 1.1)  # strokes; outside, the constants are another gripper's
_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        what: was looked at.
        passed: whether arms may be armed as far as this goes.
        found: in a few words.
        advice: what to do; empty where it passed.
    """

    what: str
    passed: bool
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Heard:
    """What came in over a while.

    Attributes:
        seconds: how long was listened.
        counts: messages by source: camera roles, and "left/joint_states", "right/joint_states".
    """

    seconds: float
    counts: Mapping[str, int]


def check_sources(problems: Sequence[str]) -> Check:
    """Look at whether an observation could be made now (see :meth:`SensorBuffer.problems`)."""
    if not problems:
        return Check("sources", True, "cameras and arms are fresh")
    return Check("sources", False, "; ".join(problems), "start or restart what is named")


def check_rates(rig: RigSpec, heard: Heard) -> Check:
    """Look at how often every source speaks."""
    if heard.seconds < LEAST_WINDOW:
        return Check(
            "rates",
            False,
            f"heard for {heard.seconds:.1f} s, {LEAST_WINDOW:g} are needed",
            "try again in a second",
        )
    wanted = dict.fromkeys(CAMERA_ROLES, rig.rates.cameras)
    wanted |= {f"{side}/joint_states": rig.rates.joint_states for side, _ in rig.arms.items()}
    rates = {name: heard.counts[name] / heard.seconds for name in wanted}
    slow = [name for name, rate in rates.items() if rate < LEAST_SHARE * wanted[name]]
    told = [f"{name} {rates[name]:.0f} Hz" for name in slow or rates]
    if slow:
        expected = ", ".join(f"{wanted[name]:g}" for name in slow)
        return Check(
            "rates",
            False,
            f"{', '.join(told)}; the rig file says {expected}",
            "look at the driver's rate and at the USB bus, or fix rates in the rig file",
        )
    return Check("rates", True, ", ".join(told))


def check_sides(rig: RigSpec) -> Check:
    """Look at whether a topic of one side bears the other side's name."""
    named = {f"{side} arm": (side, arm.joint_states) for side, arm in rig.arms.items()}
    named |= {
        f"output {output.name}": (output.name.split("_")[0], output.topic)
        for output in rig.outputs
        if output.name not in ("arms", "grippers")
    }
    named |= {
        f"camera {camera.role}": (camera.role.split("_")[0], camera.topic)
        for camera in rig.cameras
        if camera.role != "primary"
    }
    swapped = []
    for what, (side, topic) in named.items():
        words = re.split(r"[/_]", topic)
        if _OTHER_SIDE[side] in words and side not in words:
            swapped.append(f"{what} is on {topic}")
    if swapped:
        return Check(
            "sides", False, "; ".join(swapped), "swap the topics in the rig file; left comes first"
        )
    return Check("sides", True, "no topic bears the other side's name")


def check_pose(rig: RigSpec, measured: NDArray[np.float64] | None) -> Check:
    """Look at whether the joints of (14,) stand where such an arm can stand."""
    if measured is None:
        return Check("pose", False, "no joint states", "start the arms' drivers")
    over = np.maximum(rig.lower - measured, measured - rig.upper)
    over[GRIPPER_INDICES] = 0.0
    outside = np.flatnonzero(over > rig.gate.joint_overshoot)
    if not len(outside):
        return Check("pose", True, "all joints within their limits")
    told = ", ".join(f"{rig.joint_names[i]} {measured[i]:.2f} rad" for i in outside)
    advice = "is this the arm of the rig file?"
    return Check("pose", False, f"outside the limits: {told}", advice)


def check_grippers(rig: RigSpec, measured: NDArray[np.float64] | None) -> Check:
    """Look at whether the grippers of (14,) read between closed and open."""
    if measured is None:
        return Check("grippers", False, "no joint states", "start the arms' drivers")
    openings = [float(measured[i]) for i in GRIPPER_INDICES]
    told = ", ".join(f"{side} {x:.2f}" for side, x in zip(rig.arms.keys(), openings, strict=True))
    low, high = GRIPPER_RANGE
    if all(low <= opening <= high for opening in openings):
        return Check("grippers", True, f"opened by {told}")
    return Check(
        "grippers",
        False,
        f"opened by {told}; closed is 0 and open is 1",
        "the gripper block is another gripper's: run calibrate_grippers",
    )


def check_watchdog(name: str, silence: str) -> Check:
    """Look at whether the node that would hold the arms is heard of: no run goes without it."""
    if silence:
        return Check("watchdog", False, silence, "the launch file starts it; look at its log")
    return Check("watchdog", True, f"{name} is heard of")


def check_alone(foreign: Mapping[str, Sequence[str]]) -> Check:
    """Look at whether somebody else commands the arms: foreign publishers by command topic."""
    others = [f"{', '.join(names)} on {topic}" for topic, names in foreign.items() if names]
    if others:
        return Check("alone", False, "; ".join(others), "end whoever else commands the arms")
    return Check("alone", True, "nobody else commands the arms")


def check_listeners(unheard: Sequence[str]) -> Check:
    """Look at whether somebody takes what is sent to the arms: topics on which nobody does."""
    if unheard:
        advice = "start the controller or driver; a controller must be active, too"
        return Check("listeners", False, f"nobody listens on {', '.join(unheard)}", advice)
    return Check("listeners", True, "what is sent is taken")


def check_qos(mismatches: Sequence[str]) -> Check:
    """Look at whether publishers offer what is asked for."""
    if mismatches:
        return Check(
            "QoS",
            False,
            "; ".join(mismatches),
            "set qos_overrides in config/params/policy_node.yaml",
        )
    return Check("QoS", True, "all publishers offer what is asked for")


def table(checks: Sequence[Check]) -> str:
    """Return the lines, one below the other."""
    width = max(len(check.what) for check in checks)
    lines = []
    for check in checks:
        line = f"{'pass' if check.passed else 'FAIL'}  {check.what:{width}}  {check.found}"
        lines.append(line + (f" -> {check.advice}" if check.advice else ""))
    return "\n".join(lines)


def failures(checks: Sequence[Check]) -> str:
    """Return what stands against arming in one line, empty if nothing does."""
    failed = [check for check in checks if not check.passed]
    return "; ".join(f"{c.what}: {c.found} ({c.advice})" for c in failed)
