"""Between the package's dataclasses and its messages."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos_policy_ros.bags.messages import Label
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.msg import Candidate as CandidateMsg
from cosmos_policy_ros.msg import Decision as DecisionMsg
from cosmos_policy_ros.msg import GateResult as GateResultMsg
from cosmos_policy_ros.msg import Label as LabelMsg
from cosmos_policy_ros.nodes.shell import ns_to_stamp
from cosmos_policy_ros.rig.chunk import ChunkTransition, TimedChunk
from cosmos_policy_ros.rig.decision import Decision, Query, message_fields
from cosmos_policy_ros.rig.safety_gate import GateResult
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryPoint


class TrajectoryMessages:
    """Turns chunks into a JointTrajectory per output of the rig, in its drivers' units.

    The messages are filled anew by every call and only made once per length: making the hundred
    point objects of a chunk takes ten times as long as filling them, with the arms waiting.
    """

    def __init__(self, rig: RigSpec) -> None:
        """Make messages for ``rig``; the stamp is zero or that of sending, as its file says."""
        self._rig = rig
        self._made: dict[int, tuple[JointTrajectory, ...]] = {}
        self._blank(rig.rates.chunk_steps)

    def fill(self, chunk: TimedChunk, sent_ns: int) -> tuple[JointTrajectory, ...]:
        """Return the messages of a chunk; publish them before the next call.

        ``sent_ns`` is ROS time where ``chunk.sent_ns`` is the arms'.

        ``header.frame_id`` carries the chunk id, which joint_trajectory_controller ignores.
        """
        messages = self._blank(len(chunk.positions))
        positions = self._rig.command(chunk.positions)
        velocities = self._rig.command_speed(chunk.velocities)
        for output, message in zip(self._rig.outputs, messages, strict=True):
            q, v = positions[:, output.columns], velocities[:, output.columns]
            message.header.frame_id = chunk.chunk_id
            if self._rig.trajectory_stamp == "start":
                message.header.stamp = ns_to_stamp(sent_ns)
            for row, (point, time) in enumerate(zip(message.points, chunk.times_ns(), strict=True)):
                point.positions = array("d", q[row].tobytes())
                point.velocities = array("d", v[row].tobytes())
                point.time_from_start.sec, point.time_from_start.nanosec = divmod(time, NS_PER_S)
        return messages

    def _blank(self, rows: int) -> tuple[JointTrajectory, ...]:
        if rows not in self._made:
            self._made[rows] = tuple(
                JointTrajectory(
                    joint_names=list(output.joints),
                    points=[JointTrajectoryPoint() for _ in range(rows)],
                )
                for output in self._rig.outputs
            )
        return self._made[rows]


def trajectory_points(message: JointTrajectory) -> list[TrajectoryPoint]:
    """Return a trajectory's points, unchecked."""
    return [
        TrajectoryPoint(
            tuple(p.positions),
            tuple(p.velocities),
            p.time_from_start.sec * NS_PER_S + p.time_from_start.nanosec,
            tuple(p.effort),
        )
        for p in message.points
    ]


def decision_to_message(
    decision: Decision, query: Query, run_id: str, chunk_id: str, phases: Mapping[str, float]
) -> DecisionMsg:
    """Return the Decision message; ``phases`` are the whole path's, the model's among them."""
    fields = message_fields(decision, query, run_id, chunk_id, phases)
    candidates = [CandidateMsg(**_arrays(each)) for each in fields.pop("candidates")]
    message = DecisionMsg(**_arrays(fields), candidates=candidates)
    message.header.stamp = ns_to_stamp(query.observation.stamp_ns)
    return message


def _arrays(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with arrays as rclpy takes them without looking at every number."""
    return {
        name: array(value.dtype.char, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in fields.items()
    }


def image_to_message(image: NDArray[np.uint8], stamp_ns: int, chunk_id: str) -> Image:
    """Return an imagined image (H, W, 3) RGB; it bears its decision's stamp and chunk."""
    height, width, channels = image.shape
    message = Image(height=height, width=width, encoding="rgb8", step=width * channels)
    message.header.stamp, message.header.frame_id = ns_to_stamp(stamp_ns), chunk_id
    message.data = array("B", image.tobytes())
    return message


def gate_result_to_message(
    result: GateResult,
    transition: ChunkTransition | None,
    chunk_id: str,
    now_ns: int,
    rig: RigSpec,
) -> GateResultMsg:
    """Return the message; ``transition`` is the judged chunk's, None where it has none."""
    message = GateResultMsg(
        chunk_id=chunk_id,
        accepted=result.accepted,
        rule=result.rule,
        joint=result.joint,
        joint_name=rig.joint_names[result.joint] if result.joint >= 0 else "",
        step=result.step,
        value=result.value,
        limit=result.limit,
        message=result.message,
        clamped=result.clamped,
    )
    message.header.stamp = ns_to_stamp(now_ns)
    if transition is not None:
        message.asked = ns_to_stamp(transition.asked_ns)
        message.latency, message.dropped = transition.latency, transition.dropped
        message.blend_rows = transition.blend_rows
        message.jump_decided = array("d", dataclasses.astuple(transition.decided))
        if transition.sent is not None:
            message.jump_sent = array("d", dataclasses.astuple(transition.sent))
    return message


def label_to_message(label: Label) -> LabelMsg:
    """Return an operator's label as it is published."""
    values = {field.name: getattr(label, field.name) for field in dataclasses.fields(label)}
    stamp = ns_to_stamp(values.pop("stamp_ns"))
    return LabelMsg(header=Header(stamp=stamp), **values)
