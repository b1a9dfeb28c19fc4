"""Scripted demonstrations of LIBERO's tasks "pick up the black bowl ... and place it on the plate".

Run by the benchmark's own interpreter, which has another MuJoCo than this package's; it imports
numpy, h5py, Pillow, the benchmark and ``worker.py``. The script knows the true poses: it grasps the
rim, lifts, carries, lowers and lets go, on a way that is another one each time; LIBERO's own
predicate says whether that succeeded.

Each task's demonstrations are in one file of the released layout, ``data/demo_<initial state>`` in
``demonstrations/<task>_demo.hdf5``; those that failed are in ``failures/``, each in a file in the
layout of the released rollouts. A file is whole or not there, and what is there is not made again.

To draw is what a demonstration costs. Only every so many steps have images; the others' are empty
JPEG files. The released reader decodes all, so it takes what ``--every 1`` makes, and nothing else.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from worker import LazyCameras, release_context

os.environ.setdefault("MUJOCO_GL", "egl")

Array = NDArray[np.float64]

SUITE = "libero_spatial"
BOWL, PLATE = "akita_black_bowl_1", "plate_1"
WAITS = 10  # steps until everything that fell has come to rest, as in the released evaluation
WAIT = np.array([0.0] * 6 + [-1.0])
LIMIT = 220  # steps, as in the released evaluation of this suite
IMAGE_SIZE = 256  # px, as released
JPEG_QUALITY = 95
CAMERAS = {"agentview_image": "agentview_rgb", "robot0_eye_in_hand_image": "eye_in_hand_rgb"}
ROLLOUT_NAMES = {"agentview_rgb": "primary_images", "eye_in_hand_rgb": "wrist_images"}
SUCCESSES, FAILURES = "demonstrations", "failures"
PROPRIO = ("robot0_gripper_qpos", "robot0_eef_pos", "robot0_eef_quat")

# The script's measures [m], and steps.
GAIN = 16.0  # action per metre that is left: all there is from 6 cm on
RIM = 0.045  # from the bowl's middle
ABOVE = 0.11  # the bowl, before it is grasped and while it is carried
GRASP = 0.02  # the bowl's origin, of the fingertips
NEAR = 0.012
CLOSING, OPENING = 9, 8
PATIENCE = 45  # steps for one leg of the way
OPEN, CLOSED = -1.0, 1.0


class Demonstration(NamedTuple):
    """What was done and seen: n steps each; an image that was not drawn is empty."""

    success: bool
    actions: Array
    states: Array
    images: dict[str, list[bytes]]
    sim_states: Array


class Robot:
    """A task's simulation, drawn only where it is asked for."""

    def __init__(self, suite: Any, task: int) -> None:
        """Build it; the first reset is seeded, so that it is the evaluation's."""
        from libero.libero import get_libero_path
        from libero.libero.envs import OffScreenRenderEnv

        self.task = suite.get_task(task)
        self.states = suite.get_task_init_states(task)
        bddl = Path(get_libero_path("bddl_files"), self.task.problem_folder, self.task.bddl_file)
        size = {"camera_heights": IMAGE_SIZE, "camera_widths": IMAGE_SIZE}
        self.env = OffScreenRenderEnv(bddl_file_name=str(bddl), **size)
        self.env.seed(0)
        np.random.seed(0)
        self._inner = self.env.env
        release_context(self._inner)
        self.env.reset()
        # The model stays as this reset made it: a further one with the same seed makes the same.
        self._inner.hard_reset = False
        cameras = [name.removesuffix("_image") for name in CAMERAS]
        self._cameras = LazyCameras(self._inner, cameras, "robot0_eef_pos")

    def begin(self, state: int) -> dict[str, Any]:
        """Return the observation of an initial state after the waits, drawn."""
        np.random.seed(0)
        self._inner.reset()
        self._cameras.show(on=False)
        self.env.set_init_state(self.states[state])
        for left in range(WAITS - 1, -1, -1):
            seen, _ = self.step(WAIT, drawn=left == 0)
        return seen

    def step(self, action: Array, *, drawn: bool) -> tuple[dict[str, Any], bool]:
        """Act; return the observation, with images if drawn, and whether the task is done."""
        self._cameras.show(on=drawn)
        seen, _, done, _ = self.env.step(action)
        return seen, bool(done)


def waypoints(seen: dict[str, Any], random: np.random.Generator) -> Iterator[tuple[Array, float]]:
    """Yield where to be next and the gripper's command, for what is seen at that time.

    Args:
        seen: the newest observation; the caller changes it in place.
        random: chooses the way.
    """
    hand = seen["robot0_eef_pos"]
    bowl, plate = seen[f"{BOWL}_pos"], seen[f"{PLATE}_pos"]
    side = np.array([0.0, RIM if hand[1] > bowl[1] else -RIM, 0.0])

    def leg(target: Any, gripper: float, near: float = NEAR) -> Iterator[tuple[Array, float]]:
        for _ in range(PATIENCE):
            where = target()
            yield where, gripper
            if np.linalg.norm(seen["robot0_eef_pos"] - where) < near:
                break

    # A detour, then what is meant.
    aside = random.uniform([-0.05, -0.05, -0.04], [0.05, 0.05, 0.03])
    on_the_way = random.uniform(0.2, 0.7)
    begun = hand.copy()
    above = np.array([0.0, 0.0, ABOVE]) + random.uniform(-0.012, 0.012, 3)
    grasp = np.array([0.0, 0.0, GRASP]) + random.uniform(-0.004, 0.004, 3)

    def rim() -> Array:
        return np.asarray(seen[f"{BOWL}_pos"] + side)

    yield from leg(lambda: begun + on_the_way * (rim() + above - begun) + aside, OPEN, 0.04)
    yield from leg(lambda: rim() + above, OPEN, 0.015)
    yield from leg(lambda: rim() + grasp, OPEN, 0.008)
    held_at = seen["robot0_eef_pos"].copy()
    for _ in range(CLOSING):
        yield held_at, CLOSED
    height = max(held_at[2], plate[2]) + ABOVE + random.uniform(-0.02, 0.03)
    lifted = np.array([*(held_at[:2] + random.uniform(-0.02, 0.02, 2)), height])
    yield from leg(lambda: lifted, CLOSED, 0.03)

    def over(z: float) -> Array:
        """Return where the hand is when the bowl is over the plate."""
        offset = seen["robot0_eef_pos"] - seen[f"{BOWL}_pos"]
        target = seen[f"{PLATE}_pos"] + offset
        return np.array([target[0], target[1], z])

    yield from leg(lambda: over(height), CLOSED, 0.015)
    low = held_at[2] - bowl[2] + plate[2] + 0.012
    yield from leg(lambda: over(low), CLOSED)
    left_at = seen["robot0_eef_pos"].copy()
    for _ in range(OPENING):
        yield left_at, OPEN
    while True:
        yield left_at + np.array([0.0, 0.0, ABOVE]), OPEN


def demonstrate(robot: Robot, state: int, every: int, random: np.random.Generator) -> Demonstration:
    """Do the task once from an initial state, and go on to the next step that is drawn."""
    seen = robot.begin(state)
    now = dict(seen)
    ways = waypoints(now, random)
    actions, states, sim_states = [], [], []
    images: dict[str, list[bytes]] = {name: [] for name in CAMERAS.values()}
    pushes = {int(at): random.normal(0.0, 0.5, 3) for at in random.integers(3, 90, 4)}
    push, done = np.zeros(3), False
    for step in range(LIMIT):
        where, gripper = next(ways)
        # Now and then something pushes for three steps, and the script has to come back.
        push = pushes.get(step, push * 0.6)
        error = (where - now["robot0_eef_pos"]) * GAIN
        move = np.clip(error + push * (gripper == OPEN), -1.0, 1.0)
        action = np.array([*move, 0.0, 0.0, 0.0, gripper])
        drawn = step % every == 0
        actions.append(action)
        states.append(np.concatenate([seen[name] for name in PROPRIO]))
        sim_states.append(robot.env.sim.get_state().flatten())
        for camera, name in CAMERAS.items():
            images[name].append(to_jpeg(seen[camera][::-1]) if drawn else b"")
        if done and (drawn or every == LIMIT):
            break
        seen, success = robot.step(action, drawn=(step + 1) % every == 0)
        done = done or success
        now.update(seen)
    for name, jpegs in images.items():
        drawn_once = [jpeg for jpeg in jpegs if jpeg]
        if len(set(drawn_once)) < len(drawn_once):
            raise RuntimeError(f"{name} shows the same twice while the arm moves: it is not drawn")
    # The last step has images, too: it is the future of all windows near the end.
    kept = slice(0, len(actions) - (len(actions) - 1) % every)
    return Demonstration(
        done,
        np.stack(actions)[kept],
        np.stack(states)[kept],
        {name: each[kept] for name, each in images.items()},
        np.stack(sim_states)[kept],
    )


def to_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Return an upright image as the released tools store it."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


# ---------------------------------------------------------------- files


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a draft, begun as what is there, that takes the file's place when the block ends."""
    draft = path.with_name(f".{path.name}.partial")
    if path.exists():
        shutil.copyfile(path, draft)
    else:
        draft.unlink(missing_ok=True)
    yield draft
    draft.replace(path)


def add_images(group: Any, names: dict[str, str], made: Demonstration) -> None:
    """Add one JPEG per step and camera."""
    for name, jpegs in made.images.items():
        kind = h5py.vlen_dtype(np.uint8)
        dataset = group.create_dataset(f"{names[name]}_jpeg", (len(jpegs),), kind)
        for row, jpeg in enumerate(jpegs):
            if jpeg:
                dataset[row] = np.frombuffer(jpeg, np.uint8)


def keep_success(path: Path, state: int, made: Demonstration) -> None:
    """Add a demonstration to its task's file."""
    with whole(path) as draft, h5py.File(draft, "a") as file:
        demo = file.require_group("data").create_group(f"demo_{state}")
        demo["actions"], demo["robot_states"] = made.actions, made.states
        demo["states"] = made.sim_states
        ends = np.zeros(len(made.actions), np.uint8)
        ends[-1] = 1
        demo["dones"] = demo["rewards"] = ends
        observed = demo.create_group("obs")
        observed["gripper_states"] = made.states[:, :2]
        observed["ee_pos"] = made.states[:, 2:5]
        add_images(observed, {name: name for name in made.images}, made)


def keep_failure(path: Path, task: str, made: Demonstration) -> None:
    """Write a rollout that failed."""
    with whole(path) as draft, h5py.File(draft, "w") as file:
        file.attrs["success"], file.attrs["task_description"] = False, task
        file["actions"], file["proprio"] = made.actions, made.states
        add_images(file, ROLLOUT_NAMES, made)


def is_made(path: Path, state: int) -> bool:
    """Return whether a task's file has the demonstration of a state."""
    if not path.exists():
        return False
    with h5py.File(path, "r") as file:
        return f"data/demo_{state}" in file


def task_path(folder: Path, name: str) -> Path:
    """Return where the demonstrations of a task are kept."""
    return folder / SUCCESSES / f"{name}_demo.hdf5"


def failure_path(folder: Path, task: int, state: int) -> Path:
    """Return where the failure of a state is kept."""
    name = f"episode_data--suite={SUITE}--task={task}--ep={state}--success=False.hdf5"
    return folder / FAILURES / name


# ---------------------------------------------------------------- words


def numbers(text: str) -> list[int]:
    """Return what "0,2-4" lists."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"'{part}' is neither a number nor a range like 0-29")
        first, last = int(match[1]), int(match[2] or match[1])
        found += range(first, last + 1)
    return found


def replay(robot: Robot, state: int, actions: Array) -> bool:
    """Repeat a demonstration's actions from another initial state; return whether it succeeds."""
    robot.begin(state)
    return any(robot.step(action, drawn=False)[1] for action in actions)


def compare(robots: Robots, output: Path, tasks: list[int], states: list[int], seed: int) -> None:
    """Print how often the script succeeds from these states, and a demonstration that is repeated.

    The demonstration is of another state: that of the same number among those there are, so each
    is repeated about as often.
    """
    for task in tasks:
        robot = robots.of(task)
        with h5py.File(task_path(output, robots.spec(task).name), "r") as file:
            recorded = [demo["actions"][()] for demo in file["data"].values()]
        scripted = repeated = 0
        for number, state in enumerate(states):
            random = np.random.default_rng([seed, task, state])
            scripted += demonstrate(robot, state, LIMIT, random).success
            repeated += replay(robot, state, recorded[number % len(recorded)])
        print(
            f"task {task}, {len(states)} states: script {scripted}, a repeated demonstration "
            f"{repeated} successes",
            flush=True,
        )


class Robots:
    """The suite's tasks, each built when it is asked for."""

    def __init__(self) -> None:
        """Find the suite."""
        from libero.libero import benchmark

        self._suite = benchmark.get_benchmark_dict()[SUITE]()
        self._built: dict[int, Robot] = {}

    def spec(self, task: int) -> Any:
        """Return the benchmark's description of a task."""
        return self._suite.get_task(task)

    def of(self, task: int) -> Robot:
        """Return a task's simulation."""
        if task not in self._built:
            self._built[task] = Robot(self._suite, task)
        return self._built[task]

    def close(self) -> None:
        """Free the renderers."""
        for robot in self._built.values():
            robot.env.close()


def main() -> int:
    """Make what is asked for and not yet there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of both kinds of files")
    parser.add_argument("--tasks", type=numbers, default=numbers("0,2,6,8"), help="of the suite")
    parser.add_argument("--states", type=numbers, default=numbers("0-29"), help="initial states")
    parser.add_argument("--every", type=int, default=4, help="steps from image to image")
    parser.add_argument("--seed", type=int, default=0, help="of the ways that are taken")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="write nothing; count successes of the script, and of demonstrations repeated",
    )
    options = parser.parse_args()
    if not 1 <= options.every <= LIMIT:
        parser.error(f"--every is {options.every}, must be 1 to {LIMIT}")
    output: Path = options.output
    robots = Robots()
    if options.compare:
        compare(robots, output, options.tasks, options.states, options.seed)
        robots.close()
        return 0
    for name in (SUCCESSES, FAILURES):
        (output / name).mkdir(parents=True, exist_ok=True)
    for state in options.states:
        for task in options.tasks:
            spec = robots.spec(task)
            path, failed = task_path(output, spec.name), failure_path(output, task, state)
            if is_made(path, state) or failed.exists():
                continue
            robot = robots.of(task)
            began, cpu = time.monotonic(), time.process_time()
            random = np.random.default_rng([options.seed, task, state])
            made = demonstrate(robot, state, options.every, random)
            if made.success:
                keep_success(path, state, made)
            else:
                keep_failure(failed, spec.language, made)
            print(
                f"task {task}, state {state}: {'success' if made.success else 'FAILURE'} in "
                f"{len(made.actions)} steps, {time.process_time() - cpu:.0f} s of CPU, "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
    robots.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
