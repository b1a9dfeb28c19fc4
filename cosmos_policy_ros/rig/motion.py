"""A motion of our own, not the policy's: both arms to their start pose, gently and straight."""

from __future__ import annotations

import math

import numpy as np

from cosmos_policy_ros.errors import RigError
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.gate import SafetyGate, Situation
from cosmos_policy_ros.rig.spec import RigSpec

CHUNK_ID = "go_to_start"
MINIMUM_JERK_PEAK = 1.875  # its highest speed, of the average


def start_motion(
    rig: RigSpec, gate: SafetyGate, now: Situation, now_ns: int, speed: float
) -> TimedChunk:
    """Return the way from where the arms are held to their start pose.

    Minimum jerk; every joint sets out and arrives together, and the grippers stay as they are, so
    that nothing is dropped. The safety gate judges it like any other chunk.

    Args:
        rig: start poses and rates.
        gate: judges.
        now: where the arms are.
        now_ns: when they leave.
        speed: of the fastest joint, at most [rad/s].

    Raises:
        RigError: the gate refused.
    """
    goal = np.concatenate([[*arm.start, 0.0] for arm in rig.arms.values()])
    grippers = list(GRIPPER_INDICES)
    goal[grippers] = np.clip(now.commanded[grippers], 0.0, 1.0)
    furthest = float(np.delete(np.abs(goal - now.commanded), grippers).max())
    seconds = MINIMUM_JERK_PEAK * furthest / speed
    rows = max(1, math.ceil(seconds / rig.rates.dt))
    share = np.arange(1, rows + 1)[:, None] / rows
    way = share**3 * (10 - 15 * share + 6 * share**2)
    positions = now.commanded + way * (goal - now.commanded)
    verdict = gate.judge(positions, rig.rates.dt, now, rows=rows)
    if verdict.positions is None:
        raise RigError(f"the way to the start pose is refused: {verdict.message}")
    return TimedChunk(
        CHUNK_ID, now_ns, rig.rates.dt, now.commanded, verdict.positions, rig.max_velocity
    )
