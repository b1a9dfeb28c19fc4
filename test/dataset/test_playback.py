"""Pins that a bag gives the very observations that were decided on, whatever was late or lossy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.episodes import MS, RIG, START_NS, Writing, noise, record
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.dataset.playback import decisions, observations
from cosmos_policy_ros.episodes.episode import TopicSummary, read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import find_rig
from cosmos_policy_ros.rig.observation import Observation, SensorBuffer


@pytest.fixture
def episodes(tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(tmp_path / "episodes", types, clock=lambda: START_NS)


def at(*moments_ms: int) -> list[int]:
    return [START_NS + moment * MS for moment in moments_ms]


def seen(path: Path, *moments_ms: int) -> list[Observation]:
    """Return the observations of these moments, all of which there have to be."""
    found = list(observations(path, at(*moments_ms)))
    assert all(isinstance(each, Observation) for each in found), found
    return found  # type: ignore[return-value]


def test_moments_get_the_newest_by_their_time_in_any_order(
    episodes: EpisodeStore, types: Typestore
) -> None:
    path = record(episodes, types, 1.0)
    second, first = seen(path, 490, 255)
    assert (first.stamp_ns, second.stamp_ns) == tuple(at(250, 490))
    assert first.state[0] == 0.0025
    assert list(first.images) == [camera.role for camera in RIG.cameras]
    for role, image in first.images.items():
        np.testing.assert_array_equal(image, noise(role, 240))
        np.testing.assert_array_equal(second.images[role], noise(role, 480))
    assert first.ages["primary"] == pytest.approx(0.015)


@pytest.mark.parametrize("namespace", ["", "/lab/left_table"])
@pytest.mark.parametrize("jpeg", [False, True])
def test_names_of_the_recorder_do_not_matter(
    episodes: EpisodeStore, types: Typestore, namespace: str, jpeg: bool
) -> None:
    path = record(episodes, types, 0.5, namespace=namespace, jpeg=jpeg)
    (observation,) = seen(path, 400)
    for role, image in observation.images.items():
        exact = np.array_equal(image, noise(role, 400))
        assert (image.shape, exact) == ((8, 8, 3), not jpeg)


def test_an_episode_of_an_earlier_version_is_refused_by_name(
    episodes: EpisodeStore, types: Typestore
) -> None:
    """Read without its gate results, every action would begin a little late, without a word."""
    episode = read_episode(record(episodes, types, 0.5))
    topics = {**episode.topics, "/lab/policy_node/verdict": TopicSummary("x/msg/Verdict", 3)}
    with pytest.raises(RolloutError, match=r"/lab/policy_node/verdict for today's .*gate_result"):
        find_rig(replace(episode, topics=topics))
    rig_yaml = episode.metadata.rig_yaml + "\nlead_in: 0.2\n"
    old = replace(episode, metadata=replace(episode.metadata, rig_yaml=rig_yaml))
    with pytest.raises(RolloutError, match="lead_in"):
        find_rig(old)


def write_with_late_sources(writing: Writing, digest: str) -> Path:
    """A decision at 430 ms, when the newest of the high camera and the right arm were under way."""
    for moment in range(0, 600, 10):
        writing.state("left", moment)
        writing.state("right", moment, received=moment + 35)
        for camera in RIG.cameras if moment % 40 == 0 else ():
            late = 35 if camera.role == "primary" else 0
            writing.image(camera.role, moment, received=moment + late)
        if moment == 430:
            writing.decision(430, digest)
    return writing.recording.finish("time_limit")


def test_what_was_under_way_is_not_in_the_observation(
    episodes: EpisodeStore, types: Typestore, tmp_path: Path
) -> None:
    other = EpisodeStore(tmp_path / "other", types, clock=lambda: START_NS)
    earlier, by_time = seen(write_with_late_sources(Writing(other, types), ""), 390, 430)
    images = dict(by_time.images) | {"primary": noise("primary", 360)}
    state = np.concatenate([by_time.state[:7], earlier.state[7:]])
    truth = Observation(by_time.stamp_ns, images, state, {})
    path = write_with_late_sources(Writing(episodes, types), truth.digest())
    (found,) = observations(path)
    assert isinstance(found, Observation)
    assert found.digest() == truth.digest() != by_time.digest()
    assert (found.ages["right/joint_states"], found.ages["primary"]) == (0.04, 0.07)
    assert [d.chunk_id for d in decisions(path)] == ["run/430"]


def test_what_is_not_in_the_bag_is_not_made_up(episodes: EpisodeStore, types: Typestore) -> None:
    (found,) = observations(write_with_late_sources(Writing(episodes, types), "ab" * 32))
    assert isinstance(found, ObservationError)
    assert "nothing in it has the digest abababababab" in str(found)


def test_images_that_became_jpeg_are_found_by_their_digest_too(
    episodes: EpisodeStore, types: Typestore
) -> None:
    """What the policy saw of raw images is what was recorded of them, byte for byte."""
    live = SensorBuffer(RIG)
    live.add_joint_state("left", *joints(430), at(430)[0])
    live.add_joint_state("right", *joints(390), at(390)[0])
    for camera in RIG.cameras:
        moment = 360 if camera.role == "primary" else 400
        live.add_image(camera.role, raw_image(noise(camera.role, moment)), at(moment)[0])
    decided_on = live.observe(at(430)[0])
    assert not np.array_equal(decided_on.images["primary"], noise("primary", 360))
    writing = Writing(episodes, types, jpeg=True)
    (found,) = observations(write_with_late_sources(writing, decided_on.digest()))
    assert isinstance(found, Observation)
    assert found.digest() == decided_on.digest()
    (other,) = observations(write_with_late_sources(Writing(episodes, types, jpeg=True), "ab" * 32))
    assert isinstance(other, ObservationError)


def joints(moment: int) -> tuple[list[str], list[float]]:
    """Return names and positions of an arm's joint state as :class:`Writing` writes it."""
    names = [*RIG.arms.left.names, RIG.arms.left.gripper.finger_joint]
    return names, [moment / 1e5] * len(names)


def raw_image(pixels: np.ndarray) -> SimpleNamespace:
    height, width, _ = pixels.shape
    data = pixels.tobytes()
    return SimpleNamespace(height=height, width=width, encoding="rgb8", step=3 * width, data=data)


def test_a_bad_moment_says_why_and_the_next_is_given(
    episodes: EpisodeStore, types: Typestore
) -> None:
    writing = Writing(episodes, types)
    for moment in (*range(0, 300, 10), *range(1000, 1300, 10)):
        writing.state("left", moment)
        writing.state("right", moment)
        for camera in RIG.cameras if moment % 40 == 0 else ():
            writing.image(camera.role, moment)
    path = writing.recording.finish("time_limit")
    before, within, after = observations(path, at(200, 700, 1200))
    assert isinstance(before, Observation) and isinstance(after, Observation)
    assert isinstance(within, ObservationError) and "last image is 0.42 s old" in str(within)


def test_a_camera_that_never_came_is_named_at_any_moment(
    episodes: EpisodeStore, types: Typestore
) -> None:
    found = observations(record(episodes, types, 0.5, without="primary"), at(100, 490))
    for each in found:
        assert isinstance(each, ObservationError) and "has sent no image yet" in str(each)


def test_a_bag_without_its_rig_is_named(episodes: EpisodeStore, types: Typestore) -> None:
    for rig_yaml, words in (
        ("", "expected a mapping"),
        (other_rig(), "not in the bag"),
    ):
        path = record(episodes, types, 0.2, rig_yaml=rig_yaml)
        with pytest.raises(RolloutError, match=words):
            observations(path, at(100))


def other_rig() -> str:
    text = (Path(__file__).parents[2] / "config/rigs/sim.yaml").read_text()
    return text.replace("cam_high/", "cam_low/")
