"""A rig's messages made from numbers and pictures, serialised, without ROS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import ARM_JOINTS, Arm
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rollouts.exchange.frames import Picture
from cosmos_policy_ros.rollouts.pictures import COMPRESSED, FORMAT, IMAGE

JOINT_STATE = "sensor_msgs/msg/JointState"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
_POINT, _HEADER = "trajectory_msgs/msg/JointTrajectoryPoint", "std_msgs/msg/Header"
_TIME, _DURATION = "builtin_interfaces/msg/Time", "builtin_interfaces/msg/Duration"

_NONE = np.zeros(0)


class RigMessages:
    """Makes CDR bytes of what a rig's drivers, and whoever drives it, would have published."""

    def __init__(self, types: Typestore) -> None:
        """Make messages of the types in ``types``."""
        self._types = types

    def picture(self, picture: Picture, stamp_ns: int) -> bytes:
        """Return a CompressedImage with the very bytes of a JPEG, or an Image of RGB pixels."""
        header = self._header(stamp_ns)
        if isinstance(picture, bytes):
            data = np.frombuffer(picture, np.uint8)
            return self._serialise(COMPRESSED, header=header, format=FORMAT, data=data)
        height, width, channels = picture.shape
        return self._serialise(
            IMAGE,
            header=header,
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=width * channels,
            data=np.ascontiguousarray(picture).ravel(),
        )

    def joint_state(
        self, arm: Arm, stamp_ns: int, position: Array, velocity: Array | None, effort: Array | None
    ) -> bytes:
        """Return a JointState that ``rig.sources.read_arm`` reads as ``position``.

        Args:
            arm: whose gripper is read from a finger or a motor angle, not through a crank.
            stamp_ns: of the header.
            position: (7,) policy units.
            velocity: (7,) policy units per second, or None where nothing measured it.
            effort: (7,) as the source has it, or None.
        """
        gripper = arm.gripper
        assert gripper.state_source != "crank", "see rig_as_imported"
        stroke = gripper.state_stroke
        position = position.copy()
        position[ARM_JOINTS] = gripper.state_closed + position[ARM_JOINTS] * stroke
        if velocity is not None:
            velocity = velocity.copy()
            velocity[ARM_JOINTS] *= stroke
        return self.joints(arm.state_names, stamp_ns, position, velocity, effort)

    def joints(
        self,
        names: Sequence[str],
        stamp_ns: int,
        position: Array,
        velocity: Array | None = None,
        effort: Array | None = None,
    ) -> bytes:
        """Return a JointState of these joints, in a driver's units."""
        return self._serialise(
            JOINT_STATE,
            header=self._header(stamp_ns),
            name=list(names),
            position=position,
            velocity=_NONE if velocity is None else velocity,
            effort=_NONE if effort is None else effort.copy(),
        )

    def trajectories(
        self,
        rig: RigSpec,
        chunk_id: str,
        start_ns: int,
        step_ns: int,
        rows: Array,
        velocities: Array | None = None,
        sent_after_ns: int = 0,
    ) -> Iterator[tuple[str, bytes]]:
        """Yield (topic, JointTrajectory) of (K, 14) targets in policy units for each output.

        Row i is due ``(i + 1) * step_ns - sent_after_ns`` after ``start_ns``. Without
        ``velocities``, (K, 14) in policy units per second, a controller interpolates linearly.
        """
        rows = rig.command(rows)
        speeds = None if velocities is None else rig.command_speed(velocities)
        for output in rig.outputs:
            columns = list(output.columns)
            points = [
                self._point(
                    row[columns],
                    _NONE if speeds is None else speeds[i, columns],
                    (i + 1) * step_ns - sent_after_ns,
                )
                for i, row in enumerate(rows)
            ]
            cdr = self._serialise(
                TRAJECTORY,
                header=self._header(start_ns, chunk_id),
                joint_names=list(output.joints),
                points=points,
            )
            yield output.topic, cdr

    def _point(self, row: Array, speed: Array, offset_ns: int) -> Any:
        sec, nanosec = divmod(offset_ns, NS_PER_S)
        make = self._types.types
        return make[_POINT](
            positions=row,
            velocities=speed,
            accelerations=_NONE,
            effort=_NONE,
            time_from_start=make[_DURATION](sec=sec, nanosec=nanosec),
        )

    def _header(self, stamp_ns: int, frame_id: str = "") -> Any:
        sec, nanosec = divmod(stamp_ns, NS_PER_S)
        make = self._types.types
        return make[_HEADER](stamp=make[_TIME](sec=sec, nanosec=nanosec), frame_id=frame_id)

    def _serialise(self, msgtype: str, **fields: Any) -> bytes:
        return bytes(self._types.serialize_cdr(self._types.types[msgtype](**fields), msgtype))
