"""Random access gives what replay gives, what the arms were told, and says what is not usable."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.demonstrations import TASK, demonstrate
from helpers.episodes import MS, RIG, START_NS, Writing
from helpers.outputs import OUTPUTS, rig_with
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.dataset.playback import decisions, stamp_ns
from cosmos_policy_ros.dataset.windows import EpisodeWindows, before_takeover
from cosmos_policy_ros.episodes.episode import read_episode, read_messages
from cosmos_policy_ros.episodes.recording import Options
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.importer import rig_text
from cosmos_policy_ros.rig.chunk import Blend, TimedChunk
from cosmos_policy_ros.rig.observation import SensorBuffer
from cosmos_policy_ros.rig.safety_gate import CHUNK_ID
from cosmos_policy_ros.rig.teleoperation import TELEOPERATION
from cosmos_policy_ros.sim.render import Renderer

DT = 0.04


def chunk(start_ms: int, name: str = "run/0", rows: int = 50, dt: float = DT) -> TimedChunk:
    """Return a chunk whose rows hold the ms at which each is due, in tenths of a mrad."""
    due = start_ms + np.arange(1, rows + 1) * dt * 1000
    positions = np.repeat(due[:, None] / 1e4, 14, axis=1)
    start_ns = START_NS + start_ms * MS
    return TimedChunk(name, start_ns, dt, np.zeros(14), positions, np.full(14, 3.0))


def windows_of(path: Path) -> EpisodeWindows:
    return EpisodeWindows(read_episode(path), DT)


@pytest.fixture
def writing(store: EpisodeStore, types: Typestore) -> Writing:
    return Writing(store, types)


def sent(writing: Writing, seconds: float, *chunks: TimedChunk) -> EpisodeWindows:
    """Return what a healthy rig sent in so many seconds, and these chunks to it."""
    writing.seconds(seconds)
    for each in chunks:
        writing.trajectory(each)
    return windows_of(writing.recording.finish("stopped"))


def due_ms(windows: EpisodeWindows) -> list[int]:
    """Return when the steps' actions were due, as their chunks' rows say."""
    return [int(due) for due in np.rint(windows.steps.actions[:, 0] * 1e4)]


@pytest.fixture(scope="module")
def demonstration(
    tmp_path_factory: pytest.TempPathFactory, types: Typestore
) -> Iterator[EpisodeWindows]:
    store = EpisodeStore(tmp_path_factory.mktemp("demonstrations"), types)
    with Renderer(TASK, 64, 64) as renderer:
        yield windows_of(demonstrate(store, types, renderer, 3, chunks=2, pause=0.4))


def test_at_a_decision_it_sees_what_was_decided_on(demonstration: EpisodeWindows) -> None:
    seen = list(decisions(demonstration.episode.path))
    assert len(seen) == 2
    for decision in seen:
        stamp = decision.header.stamp
        observation = demonstration.observe(stamp.sec * 10**9 + stamp.nanosec)
        assert observation.digest() == decision.observation_digest


@settings(max_examples=20)
@given(at=st.integers(-100, 5000))
def test_at_any_moment_it_sees_what_the_policy_node_would(
    demonstration: EpisodeWindows, at: int
) -> None:
    moment = START_NS + at * MS
    try:
        live = streamed(demonstration, moment).observe(moment)
    except ObservationError:
        with pytest.raises(ObservationError):
            demonstration.observe(moment)
    else:
        observation = demonstration.observe(moment)
        assert observation.digest() == live.digest()
        assert observation.ages == live.ages


@cache
def received(path: Path, topics: tuple[str, ...]) -> list[tuple[str, int, Any]]:
    return list(read_messages(path, topics))


def streamed(windows: EpisodeWindows, moment: int) -> SensorBuffer:
    """Return a buffer that was given every message up to a moment, one after the other."""
    rig, buffer = windows.rig, SensorBuffer(windows.rig.rig)
    for topic, _, message in received(windows.episode.path, rig.sensors):
        at = stamp_ns(message)
        if at > moment:
            continue
        if topic in rig.cameras:
            buffer.add_image(rig.cameras[topic], message, at)
        for side, name in rig.arms.items():
            if name == topic:
                buffer.add_joint_state(side, message.name, message.position, at)
    return buffer


def test_the_steps_are_the_rows_that_were_sent_and_pauses_are_none(
    demonstration: EpisodeWindows,
) -> None:
    steps = demonstration.steps
    assert len(steps) == 100
    gaps = np.diff(steps.times_ns) // MS
    assert gaps[49] == 440  # the pause, and one step
    assert set(np.delete(gaps, 49)) == {40}
    np.testing.assert_array_equal(demonstration.chunk(49, 50), steps.actions[49:99])
    assert demonstration.future(48, 50) == 98
    assert demonstration.future(49, 50) == demonstration.future(60, 50) == 99


def test_a_chunk_at_the_end_repeats_its_last_action(demonstration: EpisodeWindows) -> None:
    chunk, actions = demonstration.chunk(90, 50), demonstration.steps.actions
    np.testing.assert_array_equal(chunk[:10], actions[90:])
    np.testing.assert_array_equal(chunk[10:], np.repeat(actions[-1:], 40, axis=0))


@pytest.mark.parametrize("options", [Options(), Options(compression="zstd")])
def test_actions_come_back_in_policy_units(
    store: EpisodeStore, types: Typestore, options: Options
) -> None:
    writing = Writing(store, types, options=options)
    writing.seconds(3.0)
    writing.trajectory(chunk(500))
    windows = windows_of(writing.recording.finish("stopped"))
    expected = (540 + 40 * np.arange(50)) / 1e4
    np.testing.assert_allclose(
        windows.steps.actions, np.repeat(expected[:, None], 14, 1), atol=1e-12
    )
    np.testing.assert_array_equal(
        windows.steps.times_ns, START_NS + (500 + 40 * np.arange(50)) * MS
    )
    assert windows.usable(50).all()


def test_chunks_that_took_over_in_motion_are_one_stretch_without_a_gap(writing: Writing) -> None:
    """Each row once, at its own time, whoever sent it first."""
    writing.seconds(6.0)
    path = chunk(500)
    writing.trajectory(path)
    for index, (seen_ms, answered_ms) in enumerate([(1510, 1815), (3030, 3331)]):
        now_ns = START_NS + answered_ms * MS
        blend = Blend(path, chunk(seen_ms, f"run/{index + 1}"), now_ns, 5)
        path = blend.chunk(f"run/{index + 1}", blend.blended())
        writing.trajectory(path)
    windows = windows_of(writing.recording.finish("stopped"))
    steps = windows.steps
    assert set(np.diff(steps.times_ns)) == {40 * MS}
    assert set(steps.stretch) == {0}
    assert steps.times_ns[0] == START_NS + 500 * MS
    due = (steps.times_ns - START_NS) / MS + 40
    np.testing.assert_allclose(steps.actions[:, 0], due / 1e4, atol=1e-3)
    assert len(steps) == len(path.positions) + (path.start_ns - START_NS - 500 * MS) // (40 * MS)


def test_a_chunk_replaced_or_braked_counts_as_far_as_it_was_executed(writing: Writing) -> None:
    windows = sent(
        writing,
        5.0,
        chunk(400, "run/0"),
        chunk(1200, "run/1"),
        chunk(1810, "run/1/brake", rows=5),
        chunk(2600, "run/2"),
    )
    assert due_ms(windows) == [
        *range(440, 1201, 40),
        *range(1240, 1801, 40),
        *range(2640, 4601, 40),
    ]
    assert windows.steps.stretch.tolist() == [0] * 35 + [1] * 50
    usable = windows.usable(10)
    assert usable.tolist() == [True] * 26 + [False] * 9 + [True] * 50


def targets(start_ms: int, count: int, first: int = 1) -> list[TimedChunk]:
    """Return what a teleoperation sends, 50 targets a second, each due 40 ms after it is sent."""
    return [
        chunk(start_ms + 20 * index, f"{TELEOPERATION}/{first + index}", rows=1)
        for index in range(count)
    ]


def test_what_a_person_led_is_what_a_chunk_of_the_same_motion_is(
    store: EpisodeStore, types: Typestore
) -> None:
    """Number by number: times, actions, and where windows may begin."""
    shown = sent(Writing(store, types), 4.0, *targets(500, 99))
    done = sent(Writing(store, types), 4.0, chunk(500))
    np.testing.assert_array_equal(shown.steps.times_ns, done.steps.times_ns)
    np.testing.assert_allclose(shown.steps.actions, done.steps.actions, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(shown.usable(25), done.usable(25))
    assert shown.steps.led.all() and not done.steps.led.any()


def test_a_pause_of_the_person_is_no_action(writing: Writing) -> None:
    windows = sent(
        writing,
        5.0,
        *targets(400, 41),
        chunk(1220, f"{TELEOPERATION}/42/brake", rows=1),
        *targets(2600, 41, first=43),
        *targets(4000, 11, first=90),  # some were lost on their way into the bag
    )
    assert due_ms(windows) == [
        *range(440, 1241, 40),
        *range(2640, 3441, 40),
        *range(4040, 4241, 40),
    ]
    assert windows.steps.stretch.tolist() == [1] * 21 + [4] * 21 + [6] * 6


def test_a_takeover_is_told_step_by_step(writing: Writing) -> None:
    windows = sent(
        writing,
        6.0,
        chunk(400, "run/0"),
        chunk(1210, "run/0/brake", rows=5),
        *targets(2000, 51),
        chunk(3200, f"{TELEOPERATION}/52/brake", rows=1),
        chunk(4000, "run/1", rows=25),
    )
    steps = windows.steps
    assert steps.led.tolist() == [False] * 20 + [True] * 26 + [False] * 25
    assert windows.usable(25).tolist() == [
        *[False] * 20,
        *[True, True] + [False] * 24,
        *[True] * 25,
    ]
    blamed = before_takeover(steps, 1.0)
    assert (steps.times_ns[blamed][0] - START_NS) / MS == 1000
    assert np.flatnonzero(blamed).tolist() == [*range(15, 20), 20]


def test_the_way_to_the_start_pose_is_no_action(writing: Writing) -> None:
    windows = sent(
        writing,
        6.0,
        chunk(400, "run/0", rows=25),
        chunk(1500, CHUNK_ID, rows=40),
        chunk(3400, "run/1", rows=25),
    )
    assert due_ms(windows) == [*range(440, 1401, 40), *range(3440, 4401, 40)]
    assert windows.steps.stretch.tolist() == [0] * 25 + [1] * 25


def test_one_arms_trajectory_alone_is_no_action(writing: Writing) -> None:
    writing.seconds(5.0)
    writing.trajectory(chunk(400, "run/0"), to=["left"])
    writing.trajectory(chunk(2600, "run/1"))
    windows = windows_of(writing.recording.finish("stopped"))
    assert len(windows) == 50


def test_a_faster_source_is_thinned_out(writing: Writing) -> None:
    windows = sent(writing, 3.0, chunk(400, rows=100, dt=0.02))
    assert due_ms(windows) == list(range(440, 2401, 40))


def test_a_chunk_of_odd_rows_ends_with_its_last_whole_step(writing: Writing) -> None:
    """Of a policy that executes half a second at 50 Hz, in motion too."""
    writing.seconds(3.0)
    writing.trajectory(chunk(400, rows=25, dt=0.02))
    path = chunk(1000, "run/1", rows=25, dt=0.02)
    writing.trajectory(path)
    for number, (seen_ms, answered_ms) in enumerate([(1210, 1315), (1530, 1632)], 2):
        now_ns = START_NS + answered_ms * MS
        blend = Blend(path, chunk(seen_ms, f"run/{number}", 25, 0.02), now_ns, 5)
        path = blend.chunk(f"run/{number}", blend.blended())
        writing.trajectory(path)
    assert (path.start_ns - START_NS) // MS % 40 == 20, "it takes over between two steps"
    windows = windows_of(writing.recording.finish("stopped"))
    due = (windows.steps.times_ns - START_NS) // MS + 40
    assert due.tolist() == [*range(440, 900, 40), *range(1040, 1040 + 40 * (len(due) - 12), 40)]
    assert due[-1] > 1960
    np.testing.assert_allclose(windows.steps.actions[:, 0], due / 1e4, atol=1e-3)


def test_a_chunk_shorter_than_a_step_holds_none(writing: Writing) -> None:
    windows = sent(writing, 2.0, chunk(400, rows=1, dt=0.02), chunk(800, "run/1", rows=3, dt=0.02))
    assert due_ms(windows) == [840]


def test_rows_between_the_steps_are_refused(writing: Writing) -> None:
    writing.seconds(3.0)
    writing.trajectory(chunk(400, dt=0.03))
    path = writing.recording.finish("stopped")
    with pytest.raises(RolloutError, match=r"rows 0.03 to 0.03 s apart.*0.04 s"):
        windows_of(path)


def test_windows_are_usable_where_an_observation_could_be_made(writing: Writing) -> None:
    """What the stamps say beforehand is what the sources say when they are asked."""
    for at in range(0, 4000, 10):
        for side in ("left", "right"):
            if not (side == "left" and 1500 < at < 1750):
                writing.state(side, at)
        for camera in RIG.cameras:
            lag = 60 if camera.role == "primary" and 2500 < at < 2700 else 0
            if at % 40 == 0 and not (camera.role == "left_wrist" and 800 < at < 1200):
                writing.image(camera.role, at - lag)
    writing.trajectory(chunk(100, rows=90))
    windows = windows_of(writing.recording.finish("stopped"))

    def possible(step: int) -> bool:
        try:
            windows.observe(int(windows.steps.times_ns[step]))
        except ObservationError:
            return False
        return True

    seen = np.array([possible(step) for step in range(len(windows))])
    last = np.minimum(np.arange(len(windows)) + 20, len(windows) - 1)
    np.testing.assert_array_equal(windows.usable(20), seen & seen[last])
    assert 10 < seen.sum() < len(windows) - 10


def test_a_frozen_camera_is_seen_though_only_two_images_are_read(writing: Writing) -> None:
    for at in range(0, 3000, 10):
        for side in ("left", "right"):
            writing.state(side, at)
        if at % 40 == 0:
            for camera in RIG.cameras:
                frozen = camera.role == "primary" and at > 1000
                pixels = np.full((8, 8, 3), 7 if frozen else at // 40, np.uint8)
                writing.image(camera.role, at, pixels)
    writing.trajectory(chunk(100))
    windows = windows_of(writing.recording.finish("stopped"))
    windows.observe(START_NS + 2000 * MS)
    with pytest.raises(ObservationError, match="same image for"):
        windows.observe(START_NS + 2100 * MS)


def test_rejected_joint_states_are_passed_over(writing: Writing) -> None:
    writing.seconds(1.0)
    arm = RIG.arms.left
    names = [*arm.names, arm.gripper.finger_joint]
    writing.joints("left", 1000, names, [float("nan")] * len(names))
    for camera in RIG.cameras:
        writing.image(camera.role, 1000)
    writing.state("right", 1000)
    writing.trajectory(chunk(100, rows=5))
    path = writing.recording.finish("stopped")
    windows = windows_of(path)
    live = streamed(windows, START_NS + 1000 * MS).observe(START_NS + 1000 * MS)
    observation = windows.observe(START_NS + 1000 * MS)
    assert observation.digest() == live.digest()
    assert observation.ages["left/joint_states"] == 0.01


def test_a_sensor_without_messages_is_named(writing: Writing) -> None:
    writing.seconds(1.0, without="primary")
    with pytest.raises(RolloutError, match=r"cam_high.* holds no message"):
        windows_of(writing.recording.finish("stopped"))


def test_damage_is_named_with_its_file(writing: Writing) -> None:
    writing.seconds(1.0)
    writing.trajectory(chunk(100, rows=5))
    path = writing.recording.finish("stopped")
    windows = windows_of(path)
    (file,) = windows.episode.files
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(RolloutError, match=r"_0.mcap.*'cosmos episodes verify'"):
        windows.observe(START_NS + 950 * MS)
    with pytest.raises(RolloutError, match=r"'cosmos recover' rebuilds it|cannot be read"):
        windows_of(path)


def test_a_flipped_byte_inside_an_image_is_no_image(writing: Writing) -> None:
    writing.seconds(1.0)
    writing.trajectory(chunk(100, rows=5))
    path = writing.recording.finish("stopped")
    *_, (_, _, image) = read_messages(path, ["/" + RIG.cameras[0].topic])
    (file,) = read_episode(path).files
    damaged = bytearray(file.read_bytes())
    damaged[damaged.index(image.data.tobytes()) + 100] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(RolloutError, match=r"_0.mcap.*its checksum does not fit"):
        windows_of(path).observe(START_NS + 1000 * MS)


def test_a_trajectory_without_a_row_ends_a_chunk(writing: Writing) -> None:
    """It is how a controller is told to stop."""
    windows = sent(
        writing,
        4.0,
        chunk(400, "run/0"),
        chunk(1200, "run/1", rows=0),
        chunk(1600, "run/2"),
    )
    assert windows.steps.stretch.tolist() == [0] * 20 + [1] * 50


def test_a_bag_of_one_moment_holds_no_step(writing: Writing) -> None:
    writing.seconds(0.01)
    writing.trajectory(chunk(100))
    assert len(windows_of(writing.recording.finish("stopped"))) == 0


@pytest.mark.parametrize("kind", OUTPUTS)
def test_other_controllers_give_the_same_steps(
    store: EpisodeStore, types: Typestore, kind: str
) -> None:
    rig = rig_with(OUTPUTS[kind])
    writing = Writing(store, types, rig=rig, rig_yaml=rig_text(rig))
    writing.seconds(3.0)
    writing.trajectory(chunk(400, "run/0"))
    writing.trajectory(chunk(2500, "run/1"), to=[rig.outputs[0].name])
    path = writing.recording.finish("stopped")
    windows = windows_of(path)
    whole = len(rig.outputs) == 1
    np.testing.assert_allclose(windows.chunk(0, 50), chunk(400).positions, atol=1e-12)
    assert (len(windows) > 50) == whole, "a chunk that not every controller got is no action"
    live = streamed(windows, START_NS + 1000 * MS).observe(START_NS + 1000 * MS)
    assert windows.observe(START_NS + 1000 * MS).digest() == live.digest()
    np.testing.assert_allclose(windows.state(0)[:6], 0.4 / 100)


def test_one_broadcaster_tells_of_both_arms(store: EpisodeStore, types: Typestore) -> None:
    rig = rig_with(OUTPUTS["one for all"])
    writing = Writing(store, types, rig=rig, rig_yaml=rig_text(rig))
    writing.seconds(0.2)
    names = [name for arm in rig.arms.values() for name in arm.state_names]
    for at in range(200, 2500, 10):
        positions = np.full(14, at / 1e5)
        positions[7:] += 0.5
        writing.joints("left", at, names, positions)
    for at in range(200, 2500, 40):
        for camera in rig.cameras:
            writing.image(camera.role, at)
    writing.trajectory(chunk(400))
    path = writing.recording.finish("stopped")
    windows = windows_of(path)
    state = windows.observe(START_NS + 1000 * MS).state
    np.testing.assert_allclose(state[[0, 7]], [0.01, 0.51])
    live = streamed(windows, START_NS + 1000 * MS).measured()
    assert live is not None
    np.testing.assert_array_equal(live, state)
