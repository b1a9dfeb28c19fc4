"""What must be true before arms are armed: a table of checks and what to do about each that fails.

Without ROS: the caller brings what was seen on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cosmos_policy_ros.core.units import Array
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


def _check(what: str, fine: str, wrong: Sequence[str], advice: str) -> Check:
    return Check(what, False, "; ".join(wrong), advice) if wrong else Check(what, True, fine)


def check_sources(problems: Sequence[str]) -> Check:
    """Check whether an observation could be made now (see :meth:`SensorBuffer.problems`)."""
    advice = "start or restart what is named"
    return _check("sources", "cameras and arms are fresh", problems, advice)


def check_rates(rig: RigSpec, counts: Mapping[str, int], seconds: float) -> Check:
    """Check how often every source of the rig, by its name in ``counts``, came in ``seconds``."""
    if seconds < LEAST_WINDOW:
        found = f"heard for {seconds:.1f} s, {LEAST_WINDOW:g} are needed"
        return Check("rates", False, found, "try again in a second")
    wanted = dict.fromkeys(CAMERA_ROLES, rig.rates.cameras)
    wanted |= {f"{side}/joint_states": rig.rates.joint_states for side, _ in rig.arms.items()}
    rates = {name: counts[name] / seconds for name in wanted}
    slow = [name for name, rate in rates.items() if rate < LEAST_SHARE * wanted[name]]
    found = ", ".join(f"{name} {rates[name]:.0f} Hz" for name in slow or rates)
    if not slow:
        return Check("rates", True, found)
    expected = ", ".join(f"{wanted[name]:g}" for name in slow)
    advice = "look at the driver's rate and at the USB bus, or fix rates in the rig file"
    return Check("rates", False, f"{found}; the rig file says {expected}", advice)


def check_sides(rig: RigSpec) -> Check:
    """Check whether a topic of one side bears the other side's name."""
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
    advice = "swap the topics in the rig file; left comes first"
    return _check("sides", "no topic bears the other side's name", swapped, advice)


def check_pose(rig: RigSpec, measured: Array | None) -> Check:
    """Check whether the joints of (14,) stand where such an arm can stand."""
    if measured is None:
        return Check("pose", False, "no joint states", "start the arms' drivers")
    over = np.maximum(rig.lower - measured, measured - rig.upper)
    over[GRIPPER_INDICES] = 0.0
    outside = np.flatnonzero(over > rig.gate.joint_overshoot)
    if not len(outside):
        return Check("pose", True, "all joints within their limits")
    found = ", ".join(f"{rig.joint_names[i]} {measured[i]:.2f} rad" for i in outside)
    return Check("pose", False, f"outside the limits: {found}", "is this the arm of the rig file?")


def check_grippers(rig: RigSpec, measured: Array | None) -> Check:
    """Check whether the grippers of (14,) read between closed and open."""
    if measured is None:
        return Check("grippers", False, "no joint states", "start the arms' drivers")
    openings = measured[GRIPPER_INDICES].tolist()
    sides = zip(rig.arms.keys(), openings, strict=True)
    found = "opened by " + ", ".join(f"{side} {opening:.2f}" for side, opening in sides)
    low, high = GRIPPER_RANGE
    if all(low <= opening <= high for opening in openings):
        return Check("grippers", True, found)
    advice = "the gripper block is another gripper's: run calibrate_grippers"
    return Check("grippers", False, f"{found}; closed is 0 and open is 1", advice)


def check_watchdog(name: str, silence: str) -> Check:
    """Check whether the node that would hold the arms is heard of: no run goes without it."""
    advice = "the launch file starts it; look at its log"
    return _check("watchdog", f"{name} is heard of", [silence] if silence else [], advice)


def check_alone(foreign: Mapping[str, Sequence[str]]) -> Check:
    """Check that no other node commands the arms: foreign publishers by command topic."""
    others = [f"{', '.join(names)} on {topic}" for topic, names in foreign.items() if names]
    return _check(
        "alone", "nothing else commands the arms", others, "end what else commands the arms"
    )


def check_listeners(unheard: Sequence[str]) -> Check:
    """Check that what is sent to the arms is taken: ``unheard`` are the topics where it is not."""
    wrong = [f"no listener on {', '.join(unheard)}"] if unheard else []
    advice = "start the controller or driver; a controller must be active, too"
    return _check("listeners", "what is sent is taken", wrong, advice)


def check_qos(mismatches: Sequence[str]) -> Check:
    """Check that publishers offer what is asked for."""
    advice = "set qos_overrides in config/params/policy_node.yaml"
    return _check("QoS", "all publishers offer what is asked for", mismatches, advice)


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
