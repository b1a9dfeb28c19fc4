"""What the demonstrator does in each task, phase by phase, given where it saw the objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cosmos_policy_ros.rig.crank import angle_from_finger
from cosmos_policy_ros.sim.kinematics import Pose, gripper_pose
from cosmos_policy_ros.sim.motion import Move, Phase
from cosmos_policy_ros.sim.rig import CRANK_RADIUS, ROD_LENGTH
from cosmos_policy_ros.sim.sight import Thing

Places = Mapping[str, tuple[float, float]]

CUBE = Thing("cube", "red", (0.04, 0.04, 0.04))
BLUE_CUBE = Thing("blue cube", "blue", CUBE.size)
PEG = Thing("peg", "red", (0.12, 0.02, 0.02))
SOCKET = Thing("socket", "blue", (0.12, 0.044, 0.044))

_PICK_PITCH = 60.0
"""Grippers come from above and outside [degrees]: the arms stay clear of each other."""
_LOWEST_PINCH = 0.018
"""Height [m] of the pinch point that keeps pitched fingertips 3 mm above the table."""
_SOCKET_PINCH = 0.028
"""Height [m] at which the socket is grasped: 6 mm above its middle, so that it hangs level."""
_HOVER = 0.08
"""Height [m] above a grasp from which the gripper descends."""
_LOOK = 1.8
"""Duration [s] of the way to above one of two cubes: at the next query the wrist camera sees it."""
_SETTLE = 0.2
"""Rest [s] before a grasp or a release, for the arms to catch up with their targets."""

_OPEN = angle_from_finger(0.057, CRANK_RADIUS, ROD_LENGTH)
_CLOSED = angle_from_finger(0.021, CRANK_RADIUS, ROD_LENGTH)
"""Motor angles [rad] at the ends of the fingers' travel in the model."""


@dataclass(frozen=True)
class Variation:
    """How one demonstration differs from the next.

    Attributes:
        grasp: along the table, added to where the objects are grasped [m].
        meet_y: added to where the grippers meet, sideways [m].
        meet_z: the same, upwards [m].
        choice: 0 to 1, of several ways that are as good.
    """

    grasp: float
    meet_y: float
    meet_z: float
    choice: float = 0.0

    @staticmethod
    def draw(seed: int, amount: float) -> Variation:
        """Draw one; ``amount`` scales standard deviations of 2, 10 and 15 mm, cut at two."""
        random = np.random.default_rng(seed)
        draws = np.clip(random.normal(size=3), -2.0, 2.0) * amount
        grasp, meet_y, meet_z = (draws * np.array([0.002, 0.010, 0.015])).tolist()
        return Variation(grasp, meet_y, meet_z, choice=random.random())


@dataclass(frozen=True)
class Script:
    """What a task's demonstration looks for, and what it then does."""

    things: tuple[Thing, ...]
    phases: Callable[[Places, Variation], Iterator[Phase]]


def _transfer_cube(seen: Places, variation: Variation, approach: float = 0.4) -> Iterator[Phase]:
    x, y = seen[CUBE.name]
    grasp = gripper_pose("right", np.array([x + variation.grasp, y, 0.022]), _PICK_PITCH)
    meet = np.array([0.0, 0.5 + variation.meet_y, 0.25 + variation.meet_z])
    offer = Pose(meet, grasp.quaternion)
    take = gripper_pose("left", meet, 0.0, roll_deg=90.0)
    wait = take.backed_off(0.12)

    yield Phase({"right": Move(grasp.moved(z=_HOVER), gripper=_OPEN)}, approach)
    yield Phase({"right": Move(grasp, straight=True), "left": Move(wait, gripper=_OPEN)})
    yield Phase({}, _SETTLE)
    yield Phase({"right": Move(gripper=_CLOSED)}, 0.8)
    yield Phase({"right": Move(grasp.moved(z=_HOVER), straight=True)}, 0.6)
    yield Phase({"right": Move(offer)})
    yield Phase({"left": Move(take, straight=True)}, 0.8)
    yield Phase({}, _SETTLE)
    yield Phase({"left": Move(gripper=_CLOSED)}, 0.8)
    yield Phase({"right": Move(gripper=_OPEN)}, 0.6)
    yield Phase({"right": Move(offer.backed_off(0.10), straight=True)}, 0.8)
    yield Phase({"left": Move(wait, straight=True)}, 1.0)


def _either_cube(seen: Places, variation: Variation) -> Iterator[Phase]:
    chosen = CUBE if variation.choice < 0.5 else BLUE_CUBE
    return _transfer_cube({CUBE.name: seen[chosen.name]}, variation, _LOOK)


def _insertion(seen: Places, variation: Variation) -> Iterator[Phase]:
    (peg_x, peg_y), (socket_x, socket_y) = seen[PEG.name], seen[SOCKET.name]
    right = gripper_pose(
        "right", np.array([peg_x + variation.grasp, peg_y, _LOWEST_PINCH]), _PICK_PITCH
    )
    left = gripper_pose(
        "left", np.array([socket_x + variation.grasp, socket_y, _SOCKET_PINCH]), _PICK_PITCH
    )
    above_peg = _LOWEST_PINCH - PEG.size[2] / 2.0
    above_socket = _SOCKET_PINCH - SOCKET.size[2] / 2.0
    meet = np.array([0.0, 0.5 + variation.meet_y, 0.20 + variation.meet_z])
    socket = Pose(meet + np.array([-0.08, 0.0, above_socket]), left.quaternion)
    peg = Pose(meet + np.array([0.08, 0.0, above_peg]), right.quaternion)

    yield Phase(
        {
            "right": Move(right.moved(z=_HOVER), gripper=_OPEN),
            "left": Move(left.moved(z=_HOVER), gripper=_OPEN),
        }
    )
    yield Phase({"right": Move(right, straight=True), "left": Move(left, straight=True)})
    yield Phase({}, _SETTLE)
    yield Phase({"right": Move(gripper=_CLOSED), "left": Move(gripper=_CLOSED)}, 0.8)
    yield Phase(
        {
            "right": Move(right.moved(z=_HOVER), straight=True),
            "left": Move(left.moved(z=_HOVER), straight=True),
        },
        0.6,
    )
    yield Phase({"right": Move(peg.moved(x=0.05)), "left": Move(socket.moved(x=-0.05))}, 1.0)
    yield Phase({}, _SETTLE)
    yield Phase({"right": Move(peg, straight=True), "left": Move(socket, straight=True)}, 1.2)
    yield Phase(
        {
            "right": Move(peg.moved(x=-0.04), straight=True),
            "left": Move(socket.moved(x=0.04), straight=True),
        },
        1.6,
    )


SCRIPTS = {
    "transfer_cube": Script((CUBE,), _transfer_cube),
    "insertion": Script((PEG, SOCKET), _insertion),
    "either_cube": Script((CUBE, BLUE_CUBE), _either_cube),
}
"""Task -> its script."""
