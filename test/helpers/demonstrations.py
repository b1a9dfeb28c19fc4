"""Real episodes of the simulated rig without ROS: its demonstrator at work, recorded as they go."""

from __future__ import annotations

from pathlib import Path

from helpers.episodes import JOINT_PERIOD, MS, START_NS, Writing
from helpers.sim_loop import SPEC, observe, send, state
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.rig.arms import ARMS
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.sim.demonstrator import Demonstrator
from cosmos_policy_ros.sim.render import Renderer
from cosmos_policy_ros.sim.rig import SimRig

TASK = "transfer_cube"
CAMERA_EVERY = 4  # joint states


def demonstrate(
    store: EpisodeStore,
    types: Typestore,
    renderer: Renderer,
    seed: int,
    *,
    place: int | None = None,
    chunks: int = 4,
    pause: float = 0.0,
    jitter: float = 1.0,
    scored: bool = True,
    jpeg: bool = False,
) -> Path:
    """Record one episode of the scripted demonstrator; return its folder.

    Args:
        store: takes it.
        types: the store's.
        renderer: of the task's scene; small images are drawn in milliseconds.
        seed: of the demonstrator's variation and, unless ``place`` is given, the object's place.
        place: seed of the object's place.
        chunks: queries, 2 s each.
        pause: s that the arms hold before each chunk, as under a policy that thinks.
        jitter: of the demonstrator; above 3 or so it fails.
        jpeg: record the images as JPEG.
        scored: give it the score that the simulator's judge found.
    """
    rig = SimRig(TASK, seed if place is None else place, start_ns=START_NS)
    writing = Writing(store, types, jpeg=jpeg, engine="demonstrator")
    _write(writing, rig, renderer, images=True)
    policy, commanded = Demonstrator(jitter=jitter), state(rig)
    for index in range(chunks):
        observation = observe(rig, renderer)
        query = Query(TASK, "", seed, index, observation)
        positions = policy.decide(query).positions
        writing.decision((observation.stamp_ns - START_NS) // MS, observation.digest())
        _live(writing, rig, renderer, pause)
        chunk = TimedChunk(
            f"run/{index}", rig.time_ns, 0.04, commanded, positions, SPEC.max_velocity
        )
        send(rig, chunk)
        writing.trajectory(chunk)
        _live(writing, rig, renderer, 2.0)
        commanded = positions[-1]
    path = writing.recording.finish("time_limit")
    if scored:
        points = 100.0 * rig.reached / len(rig.stages)
        store.score(OperatorScore(points, success=points == 100), episode=path.name)
    return path


def _live(writing: Writing, rig: SimRig, renderer: Renderer, seconds: float) -> None:
    for tick in range(1, round(seconds * 1000) // JOINT_PERIOD + 1):
        rig.advance(JOINT_PERIOD / 1000)
        _write(writing, rig, renderer, images=tick % CAMERA_EVERY == 0)


def _write(writing: Writing, rig: SimRig, renderer: Renderer, *, images: bool) -> None:
    at = (rig.time_ns - START_NS) // MS
    for side in ARMS:
        sample = rig.joint_states(side)
        writing.joints(side, at, sample.names, sample.positions)
    if images:
        for role, pixels in renderer.render(rig.snapshot()).items():
            writing.image(role, at, pixels)
