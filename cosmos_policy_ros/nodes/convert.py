"""Between the package's dataclasses and its messages."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from builtin_interfaces.msg import Duration
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos_policy_ros.msg import Candidate as CandidateMsg
from cosmos_policy_ros.msg import Decision as DecisionMsg
from cosmos_policy_ros.msg import Verdict as VerdictMsg
from cosmos_policy_ros.nodes.shell import NS, ns_to_stamp
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.decision import Decision, Query
from cosmos_policy_ros.rig.gate import Verdict
from cosmos_policy_ros.rig.spec import ARM_DIM, ARM_JOINTS, RigSpec


def chunk_to_trajectories(chunk: TimedChunk, rig: RigSpec) -> tuple[JointTrajectory, ...]:
    """Return one JointTrajectory per arm, left then right, in the rig's units.

    The stamp is zero (start on arrival) or the chunk's start, as the rig file says;
    ``header.frame_id`` carries the chunk id, which joint_trajectory_controller ignores.
    """
    times = [Duration(sec=t // NS, nanosec=t % NS) for t in chunk.times_ns()]
    velocities = chunk.velocities()
    trajectories = []
    for index, (_, arm) in enumerate(rig.arms.items()):
        part = slice(index * ARM_DIM, (index + 1) * ARM_DIM)
        q, v = chunk.positions[:, part].copy(), velocities[:, part].copy()
        gripper = arm.gripper
        stroke = gripper.command_open - gripper.command_closed
        q[:, ARM_JOINTS] = gripper.command_closed + q[:, ARM_JOINTS] * stroke
        v[:, ARM_JOINTS] *= stroke
        message = JointTrajectory(joint_names=list(arm.names))
        message.header.frame_id = chunk.chunk_id
        if rig.trajectory_stamp == "start":
            message.header.stamp = ns_to_stamp(chunk.start_ns)
        message.points = [
            JointTrajectoryPoint(
                positions=array("d", q[row]), velocities=array("d", v[row]), time_from_start=time
            )
            for row, time in enumerate(times)
        ]
        trajectories.append(message)
    return tuple(trajectories)


def decision_to_message(
    decision: Decision, query: Query, run_id: str, chunk_id: str, phases: Mapping[str, float]
) -> DecisionMsg:
    """Return the Decision message; ``phases`` are the whole path's, the model's among them."""
    message = DecisionMsg(
        run_id=run_id,
        chunk_id=chunk_id,
        task=query.task,
        prompt=query.prompt,
        engine=decision.engine,
        checkpoint_digest=decision.checkpoint_digest,
        observation_digest=query.observation.digest(),
        denoising_steps=decision.denoising_steps,
        requested=len(decision.candidates),
        finished=sum(c.finished for c in decision.candidates),
        chosen=decision.chosen,
        reason=decision.reason,
        phases=list(phases),
        phase_seconds=array("f", phases.values()),
        dt=decision.dt,
        steps=len(decision.positions),
        positions=array("d", decision.positions.ravel()),
    )
    message.header.stamp = ns_to_stamp(query.observation.stamp_ns)
    message.candidates = [
        CandidateMsg(
            seed=c.seed,
            finished=c.finished,
            value=c.value,
            spread=c.spread,
            values=array("f", c.values),
        )
        for c in decision.candidates
    ]
    return message


def verdict_to_message(verdict: Verdict, chunk_id: str, now_ns: int, rig: RigSpec) -> VerdictMsg:
    """Return the Verdict message."""
    message = VerdictMsg(
        chunk_id=chunk_id,
        accepted=verdict.accepted,
        rule=verdict.rule,
        joint=verdict.joint,
        joint_name=rig.joint_names[verdict.joint] if verdict.joint >= 0 else "",
        step=verdict.step,
        value=verdict.value,
        limit=verdict.limit,
        message=verdict.message,
        clamped=verdict.clamped,
    )
    message.header.stamp = ns_to_stamp(now_ns)
    return message
