"""A scripted policy for the simulated tasks, behind the same seam as the model.

It sees what the model sees, three images and the state, finds the objects by colour and answers
with chunks. It makes rollouts to record, to train small models on and to test the whole graph with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import cv2
import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, STATE_DIM, Gripper, angle_from_finger
from cosmos_policy_ros.rig.decision import Candidate, Decision, EngineInfo, Query
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.sim.kinematics import Move, Phase, Pose, gripper_pose, plan_motion
from cosmos_policy_ros.sim.rig import CRANK_RADIUS, ROD_LENGTH
from cosmos_policy_ros.sim.scene import CAMERAS, camera_matrix, load_physics_model

# Finding the coloured objects on the table in the primary camera's image.

_BRIGHT = 70
"""Least grey level of the object's colour; its darkest side has 146, and 82 in a shadow."""
_DOMINANCE = 2.0
"""The colour is this many times stronger than both others; grey parts have 1."""
_VISIBLE = 0.4
"""Least fraction of an object's upper face that must be seen to trust its middle."""
_REFINEMENTS = 3
"""The outline's middle is not quite the object's, more so near the image's edge; each round of
comparing the seen outline with the expected one makes that error ten times smaller."""
_CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)


@dataclass(frozen=True)
class ColouredBox:
    """What to look for: red, green or blue, with its extent [m] along the world's axes."""

    name: str
    colour: str
    size: tuple[float, float, float]


class PrimarySight:
    """The primary camera as a measuring device: pose and lens are known from the scene."""

    def __init__(self, task: str = "transfer_cube") -> None:
        self._model = load_physics_model(task)
        data = mujoco.MjData(self._model)
        mujoco.mj_forward(self._model, data)
        camera = self._model.camera(CAMERAS["primary"]).id
        self._position = data.cam_xpos[camera].copy()
        self._rotation = data.cam_xmat[camera].reshape(3, 3).copy()

    def locate(self, image: NDArray[np.uint8], thing: ColouredBox) -> tuple[float, float]:
        """Return the x and y [m] of the middle of ``thing`` lying on the table.

        ``image`` is (H, W, 3) RGB of any size, with square pixels.

        Raises:
            ObservationError: it is not in the image, or mostly hidden.
        """
        height, width = image.shape[:2]
        levels = image.astype(np.float32)
        channel = ("red", "green", "blue").index(thing.colour)
        own, others = levels[..., channel], np.delete(levels, channel, axis=2).max(axis=2)
        rows, columns = np.nonzero((own > _BRIGHT) & (own > _DOMINANCE * others))
        lens = camera_matrix(self._model, "primary", height, width)
        depth = self._position[2] - thing.size[2]
        expected = thing.size[0] * thing.size[1] * (lens[0, 0] / depth) ** 2
        if len(rows) < _VISIBLE * expected:
            raise ObservationError(
                f"the primary image ({width}x{height}) shows {len(rows)} {thing.colour} pixels "
                f"where the {thing.name} should cover about {expected:.0f}; reset the rig, or move "
                "what hides it"
            )
        seen = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
        # Where the ray through that pixel meets the height of the object's middle.
        middle = thing.size[2] / 2.0
        column, row = (seen - lens[:2, 2]) / lens[0, 0]
        ray = self._rotation @ np.array([column, -row, -1.0])
        x, y, _ = self._position + (middle - self._position[2]) / ray[2] * ray
        scale = (self._position[2] - middle) / lens[0, 0]
        for _ in range(_REFINEMENTS):
            error = seen - self._outline_middle(x, y, thing, lens)
            x, y = x + scale * error[0], y - scale * error[1]
        return float(x), float(y)

    def _outline_middle(
        self, x: float, y: float, thing: ColouredBox, lens: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the middle (column, row) of the outline that ``thing`` at (x, y) would have."""
        corners = (_CORNERS - np.array([0.5, 0.5, 0.0])) * thing.size + np.array([x, y, 0.0])
        view = (corners - self._position) @ self._rotation
        pixels = lens[:2, 2] + lens[0, 0] * view[:, :2] * [1.0, -1.0] / -view[:, 2:]
        outline = cv2.convexHull(pixels.astype(np.float32))
        moments = cv2.moments(outline)
        return np.array([moments["m10"], moments["m01"]]) / moments["m00"]


# What the demonstrator does in each task, phase by phase, given where it saw the objects.

Places = Mapping[str, tuple[float, float]]

CUBE = ColouredBox("cube", "red", (0.04, 0.04, 0.04))
BLUE_CUBE = ColouredBox("blue cube", "blue", CUBE.size)
PEG = ColouredBox("peg", "red", (0.12, 0.02, 0.02))
SOCKET = ColouredBox("socket", "blue", (0.12, 0.044, 0.044))

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
        choice: 0 to 1, of several ways that are as good where the prompt names none.
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
        return Variation(grasp, meet_y, meet_z, random.random())


Script = Callable[[Places, Variation, str], Iterator[Phase]]


def _transfer_cube(seen: Places, variation: Variation, prompt: str) -> Iterator[Phase]:
    return _hand_over(seen[CUBE.name], variation, approach=0.4)


def _either_cube(seen: Places, variation: Variation, prompt: str) -> Iterator[Phase]:
    named = [cube for cube in (CUBE, BLUE_CUBE) if f"the {cube.colour} cube" in prompt]
    drawn = CUBE if variation.choice < 0.5 else BLUE_CUBE
    cube = named[0] if named else drawn
    return _hand_over(seen[cube.name], variation, approach=_LOOK)


def _hand_over(
    place: tuple[float, float], variation: Variation, approach: float
) -> Iterator[Phase]:
    x, y = place
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


def _insertion(seen: Places, variation: Variation, prompt: str) -> Iterator[Phase]:
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


SCRIPTS: dict[str, tuple[tuple[ColouredBox, ...], Script]] = {
    "transfer_cube": ((CUBE,), _transfer_cube),
    "insertion": ((PEG, SOCKET), _insertion),
    "either_cube": ((CUBE, BLUE_CUBE), _either_cube),
}
"""Task -> what its demonstration looks for, and what it then does."""


CHUNK_ROWS = 50
DT = 0.04
"""Rows per chunk and seconds between them, as of the released ALOHA checkpoint."""

SERVO_LAG = 0.15
"""How far [rad] the arms may stand off the last row and still count as having got there."""


class Demonstrator:
    """Implements :class:`~cosmos_policy_ros.rig.decision.Policy` for the simulated tasks.

    The whole episode is planned at query 0; later queries return the next rows of that plan, and
    the last row for ever after its end. Nothing depends on when the queries come, so the arms may
    rest between chunks for as long as they like; after a chunk that was braked on its way, the
    next one goes on from where the arms stand. Asked while they move, it answers with what follows
    at the times that are asked for, between two rows of the plan if need be.
    """

    def __init__(
        self,
        *,
        gripper: Gripper | None = None,
        jitter: float = 1.0,
    ) -> None:
        """Choose how to demonstrate.

        Args:
            gripper: whose state is a finger's [m] and whose command an angle [rad]; by default
                that of the rig "sim".
            jitter: how much demonstrations differ by ``query.seed``: 0 not at all, 1 a few
                millimetres at the grasp and a few centimetres in the air. More makes failures.
        """
        self._gripper = gripper or load_rig("sim", config_folder("rigs")).arms.left.gripper
        self._jitter = jitter
        self._sight: dict[str, PrimarySight] = {}  # by task: each has its lens
        self._plan: NDArray[np.float64] | None = None
        self._next = 0.0
        self._reason = ""

    @property
    def info(self) -> EngineInfo:
        """A script has no checkpoint and nothing to warn of."""
        return EngineInfo()

    def decide(self, query: Query) -> Decision:
        """Return the next (50, 14) rows at 25 Hz.

        Raises:
            ObservationError: an object is hidden or out of reach, the task is not one of the
                simulated ones, or the first query of the run was never asked.
        """
        phases: dict[str, float] = {}
        if query.index == 0:
            began = time.perf_counter()
            self._plan = self.plan(query)
            phases["plan"] = time.perf_counter() - began
        plan = self._plan
        if plan is None:
            raise ObservationError(
                f"the demonstrator has no plan for query {query.index}; start the run anew, it "
                "plans at query 0"
            )
        first = self._resume(plan, query)
        self._next = first + CHUNK_ROWS
        # The rows may lie between two of the plan; after its end the last one is held.
        at = np.minimum(np.arange(CHUNK_ROWS) + first, len(plan) - 1)
        before = np.floor(at).astype(int)
        after = np.minimum(before + 1, len(plan) - 1)
        rest = (at - before)[:, None]
        rows = f"rows {first + 1:g} to {self._next:g} of {len(plan)}"
        return Decision(
            positions=(1 - rest) * plan[before] + rest * plan[after],
            dt=DT,
            candidates=(Candidate(query.seed),),
            chosen=0,
            reason=f"{self._reason}; {rows}",
            engine="demonstrator",
            phases=phases,
        )

    def _resume(self, plan: NDArray[np.float64], query: Query) -> float:
        """Return the row to go on from: the next one or, after a brake, where the arms stand."""
        if query.index == 0:
            return 0
        if query.committed is not None:
            return max(self._next - query.committed.seconds / DT, 0.0)
        last = min(round(self._next), len(plan)) - 1
        begin = max(0, last + 1 - CHUNK_ROWS)
        off = np.delete(plan[begin : last + 1] - query.observation.state, GRIPPER_INDICES, axis=1)
        distances = np.abs(off).max(axis=1)
        if distances[-1] <= SERVO_LAG:
            return round(self._next)
        return begin + int(np.argmin(distances)) + 1

    def plan(self, query: Query) -> NDArray[np.float64]:
        """Return rows (N, 14) in policy units, DT apart, for what a query sees.

        Raises:
            ObservationError: an object is hidden or out of reach, or the task is none of the
                simulated ones.
        """
        task, observation = query.task, query.observation
        if task not in SCRIPTS:
            raise ObservationError(
                f"the demonstrator has no script for task '{task}'{did_you_mean(task, SCRIPTS)}"
            )
        image = observation.images.get("primary")
        if image is None:
            raise ObservationError(
                "the demonstrator needs the primary image; the observation has "
                f"{', '.join(observation.images) or 'none'}"
            )
        if task not in self._sight:
            self._sight[task] = PrimarySight(task)
        things, script = SCRIPTS[task]
        seen = {thing.name: self._sight[task].locate(image, thing) for thing in things}
        state = np.array(observation.state, dtype=np.float64)
        if state.shape != (STATE_DIM,) or not np.isfinite(state).all():
            raise ObservationError(
                f"the demonstrator needs 14 finite state values, found {state.tolist()}"
            )
        gripper = self._gripper
        for index in GRIPPER_INDICES:
            finger = gripper.state_closed + state[index] * gripper.state_stroke
            state[index] = angle_from_finger(finger, CRANK_RADIUS, ROD_LENGTH)
        variation = Variation.draw(query.seed, self._jitter)
        rows = plan_motion(state, script(seen, variation, query.prompt), DT)
        places = ", ".join(f"{name} at ({x:.3f}, {y:.3f}) m" for name, (x, y) in seen.items())
        self._reason = f"scripted {task}: saw {places}"
        angles = rows[:, GRIPPER_INDICES]
        rows[:, GRIPPER_INDICES] = (angles - gripper.command_closed) / gripper.command_stroke
        return rows
