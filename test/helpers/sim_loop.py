"""The loop that the nodes make of rig, eyes, policy, gate and arms, without ROS; for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.evaluation.trial import trajectories
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.decision import Policy, Query
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.rig.safety_gate import GateContext, SafetyGate
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.sim.render import Renderer
from cosmos_policy_ros.sim.rig import SimRig

SPEC = load_rig("sim", Path(__file__).parents[2] / "config" / "rigs")
GATE = SafetyGate(SPEC)


def state(rig: SimRig) -> NDArray[np.float64]:
    parts: list[float] = []
    for side, arm in SPEC.arms.items():
        positions = rig.joint_states(side).positions
        parts += [*positions[:6], arm.gripper.normalize(positions[7])]
    return np.array(parts)


def observe(rig: SimRig, renderer: Renderer) -> Observation:
    return Observation(rig.time_ns, renderer.render(rig.snapshot()), state(rig), {})


def send(rig: SimRig, chunk: TimedChunk) -> None:
    """Send one chunk to all controllers; raises RigError when one refuses it."""
    for output, points in trajectories(SPEC, chunk):
        rig.command(output.name, output.joints, points, 0)


def episode(
    rig: SimRig, renderer: Renderer, policy: Policy, *, chunks: int = 8, pause: float = 0.0
) -> int:
    """Run up to ``chunks`` queries, each executed to its end; return the stage reached.

    Fails when the safety gate would refuse or change a chunk.
    """
    commanded = state(rig)
    for index in range(chunks):
        observation = observe(rig, renderer)
        decision = policy.decide(Query(rig.task, "", rig.seed, index, observation))
        verdict = GATE.judge(
            decision.positions, decision.dt, GateContext(commanded, observation.state)
        )
        assert verdict.accepted, verdict.message
        assert verdict.clamped == 0
        chunk = TimedChunk(
            "", rig.time_ns, decision.dt, commanded, decision.positions, SPEC.max_velocity
        )
        send(rig, chunk)
        rig.advance((chunk.end_ns - chunk.start_ns) / 1e9 + pause)
        commanded = decision.positions[-1]
        if rig.reached == len(rig.stages):
            break
    return rig.reached
