"""Pins where an imported bag's sensors are found, when what they saw was, and what is refused.

Cameras of another kind or name, namespaces, stamps that are missing or of another clock, units, and
what moves beside the arms and would be lost without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.episodes import MS, RIG
from helpers.foreign_bags import Made, Message, renamed, stamped, write_bag
from helpers.foreign_episode import (
    Ours,
    Take,
    check_equal,
    goals,
    ns,
    rig_file,
    teleoperated,
    windows_of,
)

from cosmos_policy_ros.bags import bounds
from cosmos_policy_ros.bags.jpeg import SUFFIX, is_jpeg, to_compressed
from cosmos_policy_ros.bags.messages import header_stamp
from cosmos_policy_ros.core.errors import RolloutError

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINT_STATE = "sensor_msgs/msg/JointState"
CAMERAS = {camera.role: f"/{camera.topic}" for camera in RIG.cameras}


def as_jpeg(make: Made, messages: list[Message], topic: str) -> list[Message]:
    """Return the messages with one camera's images as its compressed topic has them."""
    return [
        Message(topic + SUFFIX, COMPRESSED, m.received_ns, to_compressed(make.types, m.cdr, 95))
        if m.topic == topic
        else m
        for m in messages
    ]


def test_a_camera_may_be_of_another_kind_than_the_rig_file_says(take: Take, ours: Ours) -> None:
    topic = CAMERAS["primary"]
    sent = as_jpeg(take.make, ours.messages, topic)
    done = take(sent)
    assert "unlike the rig file, cameras are primary compressed" in done.notes
    windows = windows_of(done)
    kinds = {camera.role: camera.transport for camera in windows.rig.rig.cameras}
    assert kinds == {"left_wrist": "raw", "right_wrist": "raw", "primary": "compressed"}
    at = int(windows.steps.times_ns[3])
    seen, wanted = windows.observe(at), ours.windows.observe(at)
    assert np.array_equal(seen.images["left_wrist"], wanted.images["left_wrist"])
    kept = windows.topics[topic + SUFFIX].read(5)
    assert is_jpeg(bytes(kept.data))
    # The other way round: a rig file of compressed cameras, a bag of raw ones.
    path = write_bag(take.folder / "raw", ours.messages, take.make.types)
    rig = windows.rig.rig
    done = take.bag(path, rig=rig_file(take.folder / "rigs", rig))
    assert "unlike the rig file, cameras are primary raw" in done.notes
    check_equal(windows_of(done), ours.windows)


def test_of_both_kinds_the_rigs_own_is_taken(take: Take, ours: Ours) -> None:
    topic = CAMERAS["primary"]
    both = [
        *ours.messages,
        *(m for m in as_jpeg(take.make, ours.messages, topic) if SUFFIX in m.topic),
    ]
    done = take(both)
    check_equal(windows_of(done), ours.windows)
    assert not any("camera" in note for note in done.notes)


@pytest.mark.parametrize("form", ["mcap", "sqlite3"])
def test_a_topic_on_which_nothing_was_sent_is_none(take: Take, ours: Ours, form: str) -> None:
    topic = CAMERAS["primary"]
    sent = as_jpeg(take.make, ours.messages, topic)
    done = take([Message(topic, IMAGE, ns(0), b""), *sent], form)
    assert "unlike the rig file, cameras are primary compressed" in done.notes


def test_a_namespace_and_other_names_of_cameras(take: Take, ours: Ours) -> None:
    odd = {CAMERAS["primary"]: "/top/image", CAMERAS["left_wrist"]: "/l/image/compressed"}
    sent = as_jpeg(take.make, ours.messages, CAMERAS["left_wrist"])
    sent = [m._replace(topic=m.topic.replace(CAMERAS["left_wrist"] + SUFFIX, "/x")) for m in sent]
    names = {CAMERAS["primary"]: "/top/image", "/x": odd[CAMERAS["left_wrist"]]}
    sent = [
        m._replace(topic=names[m.topic]) if m.topic in names else renamed([m], "/lab/a")[0]
        for m in sent
    ]
    given = {"primary": "/top/image", "left_wrist": "/l/image"}
    windows = windows_of(take(sent, cameras=given))
    assert np.array_equal(windows.steps.actions, ours.windows.steps.actions)
    assert set(windows.rig.cameras) == {
        CAMERAS["left_wrist"] + SUFFIX,
        CAMERAS["right_wrist"],
        CAMERAS["primary"],
    }
    at = int(windows.steps.times_ns[7])
    wanted = ours.windows.observe(at)
    assert np.array_equal(windows.observe(at).images["primary"], wanted.images["primary"])


@pytest.mark.parametrize(
    ("rename", "told"),
    [
        (
            {CAMERAS["primary"]: "/top/image"},
            "camera primary is not in it; it has images on /cam_left_wrist.*, /top/image: give "
            "--camera primary=TOPIC",
        ),
        (
            {"/follower_left/joint_states": "/l/joint_states"},
            "/follower_left/joint_states and /follower_right/joint_states of rig 'sim' is not in "
            "it; it has joint states on /follower_right/joint_states, /l/joint_states: give --rig",
        ),
        (
            {CAMERAS["primary"]: f"{CAMERAS['primary']}/theora"},
            r"camera primary is not in it \(but .*theora, which is not read\); it has images on ",
        ),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    take: Take, ours: Ours, rename: dict[str, str], told: str
) -> None:
    sent = [m._replace(topic=rename.get(m.topic, m.topic)) for m in ours.messages]
    with pytest.raises(RolloutError) as refused:
        take(sorted(sent, key=lambda m: (m.received_ns, m.topic)))
    assert re.search(told, str(refused.value)), refused.value


def test_two_rigs_in_one_bag_are_not_told_apart(take: Take, ours: Ours) -> None:
    sent = [*renamed(ours.messages, "/a"), *renamed(ours.messages, "/b")]
    with pytest.raises(RolloutError, match="has rig 'sim' under /a, /b; write the topics of one"):
        take(sent)


def test_images_that_no_policy_could_see_are_refused(take: Take, ours: Ours) -> None:
    topic = CAMERAS["primary"]
    (first, *_) = (m for m in ours.messages if m.topic == topic)
    message: Any = take.make.types.deserialize_cdr(first.cdr, IMAGE)
    depth = replace(message, encoding="16UC1", step=16, data=message.data[:128])
    bad = first._replace(cdr=bytes(take.make.types.serialize_cdr(depth, IMAGE)))
    others = [m for m in ours.messages if m is not first]
    with pytest.raises(RolloutError, match="its images are '16UC1', the rig file takes rgb8, bgr8"):
        take([bad, *others])
    cut = replace(message, data=message.data[:-1])
    bad = first._replace(cdr=bytes(take.make.types.serialize_cdr(cut, IMAGE)))
    path = write_bag(take.folder / "cut", [bad, *others], take.make.types)
    with pytest.raises(RolloutError, match=r"its first image cannot be used: .* carries 191 bytes"):
        take.bag(path)


# Stamps.


def of_sensors(change: Callable[[Message], Message], messages: list[Message]) -> list[Message]:
    return [change(m) if m.msgtype in (IMAGE, JOINT_STATE) else m for m in messages]


def test_what_bears_no_stamp_has_that_of_its_receipt(take: Take, ours: Ours) -> None:
    topic = CAMERAS["primary"]
    late = [
        stamped(m, 0)._replace(received_ns=m.received_ns + 3 * MS) if m.topic == topic else m
        for m in ours.messages
    ]
    done = take(late)
    assert (
        f"60 of 60 messages on {topic} bear no stamp and were given that of their receipt"
        in done.notes
    )
    windows = windows_of(done)
    assert set(np.diff(windows.topics[topic].stamps_ns)) == {40 * MS}
    assert windows.topics[topic].stamps_ns[0] == ns(3)


@pytest.mark.parametrize("ahead", [3600.0, -86_400.0])
def test_a_bag_that_was_played_and_recorded_anew_has_its_first_stamps(
    take: Take, ours: Ours, ahead: float
) -> None:
    later = [m._replace(received_ns=m.received_ns + round(ahead * 1e9)) for m in ours.messages]
    done = take(later)
    check_equal(windows_of(done), ours.windows)
    assert f"all is stamped {ahead:.6g} s before its receipt" in "; ".join(done.notes)
    assert done.quality.go


def test_a_simulations_time_begins_at_nought(take: Take, ours: Ours) -> None:
    start = ns(-20)
    sent = [stamped(m, max(header_stamp(m.cdr) - start, 0)) for m in ours.messages]
    done = take(sent)
    windows = windows_of(done)
    assert np.array_equal(windows.steps.actions, ours.windows.steps.actions)
    assert np.array_equal(windows.steps.times_ns, ours.windows.steps.times_ns - start)
    assert windows.episode.id.startswith("19700101-")


def back(message: Message) -> Message:
    """Set the clock of all sensors back by a second in the middle."""
    at = header_stamp(message.cdr)
    return stamped(message, at - 10**9 if at > ns(1200) else at)


def apart(message: Message) -> Message:
    """Let the cameras' clock be an hour behind."""
    hour = 3600 * 10**9 if message.msgtype == IMAGE else 0
    return stamped(message, header_stamp(message.cdr) - hour)


def slow(message: Message) -> Message:
    """Let all be stamped by a simulation at half speed."""
    return stamped(message, (header_stamp(message.cdr) - ns(0)) // 2 + 10**9)


def half(message: Message) -> Message:
    """Let one camera bear no stamps, the others old ones."""
    old = header_stamp(message.cdr) - 3600 * 10**9
    return stamped(message, 0 if message.topic == CAMERAS["primary"] else old)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (back, "stamps go back by 0.96 s (at most 0.25): a clock was set while it was recorded"),
        (apart, "3600 s before its receipt and /follower_left/joint_states 0 s: their clocks do"),
        (slow, "s at last: two clocks run apart, or a simulation was slower than the recorder"),
        (half, "and the others one 3600 s before their receipt; which of the two clocks is right"),
    ],
)
def test_clocks_that_cannot_be_true_are_refused(
    take: Take, ours: Ours, change: Callable[[Message], Message], told: str
) -> None:
    with pytest.raises(RolloutError) as refused:
        take(of_sensors(change, ours.messages))
    assert told in str(refused.value)
    assert take.store.episodes() == {}


# Units, and what is left.


@pytest.mark.parametrize(
    ("factor", "told"),
    [(180 / np.pi, "it looks like degrees"), (4096 / 2 / np.pi, "looks like an encoder's ticks")],
)
def test_goals_in_another_unit_are_refused(
    take: Take, ours: Ours, named: str, factor: float, told: str
) -> None:
    sent = []
    for message in goals(take.make, teleoperated(), range(100, 2200, 20)):
        if "Group" in message.msgtype:
            values: Any = take.make.types.deserialize_cdr(message.cdr, message.msgtype)
            side = message.topic.split("/")[1]
            at = (message.received_ns - ns(0)) / MS
            assert len(values.cmd) == 6
            row = [(0.5 + at / 1000) * factor] * 6
            message = take.make.group(
                f"/{side}/commands/joint_group", message.received_ns, "arm", row
            )
        sent.append(message)
    with pytest.raises(RolloutError, match=f"run: actions: left/waist is .* at row .*{told}"):
        take([*ours.sensors, *sent], rig=named)


def test_readings_in_another_unit_are_refused_and_failed_ones_passed_over(
    take: Take, ours: Ours
) -> None:
    def joints(message: Message, change: Callable[[Any], Any]) -> Message:
        state: Any = take.make.types.deserialize_cdr(message.cdr, JOINT_STATE)
        new = replace(state, position=change(state.position))
        return message._replace(cdr=bytes(take.make.types.serialize_cdr(new, JOINT_STATE)))

    def failed(message: Message) -> Message:
        if message.msgtype == JOINT_STATE and message.received_ns in (ns(500), ns(510)):
            return joints(message, lambda p: np.full(len(p), -np.pi))
        return message

    done = take(list(map(failed, ours.messages)))
    assert "4 joint states are no readings of the arms" in done.notes

    def degrees(message: Message) -> Message:
        if message.msgtype != JOINT_STATE:
            return message
        at = message.received_ns - ns(0)
        return joints(message, lambda p: np.append(np.full(7, 40 + at / MS / 100), p[7:]))

    path = write_bag(take.folder / "degrees", map(degrees, ours.messages), take.make.types)
    with pytest.raises(RolloutError, match=r"joint states: left/waist is 6\d.* looks like degrees"):
        take.bag(path)


def test_a_joint_that_is_not_in_the_joint_states_is_named(take: Take, ours: Ours) -> None:
    rig = teleoperated()
    gripper = replace(rig.arms.left.gripper, finger_joint="thumb")
    rig = replace(rig, arms=replace(rig.arms, left=replace(rig.arms.left, gripper=gripper)))
    with pytest.raises(RolloutError, match="joint 'thumb' is not in the message; it has waist, sh"):
        take(ours.messages, rig=rig_file(take.folder / "rigs", rig))


def test_what_moves_and_is_not_taken_is_named(take: Take, ours: Ours) -> None:
    make, sent = take.make, list(ours.messages)
    vector = make.types.types["geometry_msgs/msg/Vector3"]
    for at in range(0, 2400, 50):
        still, fast = vector(x=0.0, y=0.0, z=0.0), vector(x=at / 1e4, y=0.0, z=0.0)
        kind = "geometry_msgs/msg/Twist"
        sent.append(make("/cmd_vel", kind, ns(at), linear=fast, angular=still))
        sent.append(make("/idle/cmd_vel", kind, ns(at), linear=still, angular=still))
        sent.append(make.joints("/head/joint_states", ns(at), ["pan"], [at / 1e4]))
        sent.append(make.joints("/torso/joint_states", ns(at), ["lift"], [0.4]))
    sent += [
        m._replace(topic="/cam_low/image") for m in ours.messages if m.topic == CAMERAS["primary"]
    ]
    done = take(sent)
    assert "not taken: camera /cam_low/image" in done.notes
    assert "not taken: /cmd_vel, /head/joint_states, which move" in done.notes
    assert not any("idle" in note or "torso" in note for note in done.notes)
    check_equal(windows_of(done), ours.windows)


def test_a_bag_needs_a_prompt_or_a_task(take: Take, ours: Ours) -> None:
    with pytest.raises(RolloutError, match="run: a bag tells no prompt; give --prompt, or --task"):
        take(ours.messages, prompt=None)
    done = take.bag(take.folder / "run", prompt=None, task="transfer_cube")
    assert windows_of(done).episode.metadata.prompt == "transfer the red cube"
    with pytest.raises(RolloutError, match=r"its prompt 'a\\x1b' has characters that cannot be"):
        take.bag(take.folder / "run", prompt="a\x1b", again=True)


def test_an_episode_of_this_package_is_no_bag_of_others(take: Take, ours: Ours) -> None:
    with pytest.raises(RolloutError, match="is an episode of this package already: copy its"):
        take.bag(ours.windows.episode.path)


def test_a_type_of_the_same_name_and_other_fields_is_refused(
    take: Take, ours: Ours, tmp_path: Path
) -> None:
    path = write_bag(tmp_path / "run", ours.messages, take.make.types)
    (file,) = path.glob("*.mcap")
    content = file.read_bytes()
    assert content.count(b"float64[] effort") > 1
    file.write_bytes(content.replace(b"float64[] effort", b"float32[] effort"))
    with pytest.raises(RolloutError, match="defines sensor_msgs/msg/JointState otherwise than ROS"):
        take.bag(path)


def test_a_chunk_that_unpacks_without_end_is_refused(
    take: Take, ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a ROS 1 bag; 200 bytes of bz2 are two hundred megabytes."""
    monkeypatch.setattr(bounds, "LARGEST_CHUNK", 10_000)
    for form in ("ros1 bz2", "ros1 lz4"):
        with pytest.raises(RolloutError, match="a chunk has more than 10000 unpacked bytes"):
            take(ours.messages, form)
        (take.folder / "run.bag").unlink()
