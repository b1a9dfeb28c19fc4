"""No query on a missing, stale, skewed, frozen or unreadable source; the message says which."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers.feeding import JOINTS, NAMES, fill, image

from cosmos_policy_ros.bags.jpeg import rig_of_bag
from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.arms import finger_from_angle
from cosmos_policy_ros.rig.clock import Receipt
from cosmos_policy_ros.rig.images import as_jpeg
from cosmos_policy_ros.rig.jpeg import from_jpeg
from cosmos_policy_ros.rig.observation import SensorBuffer, read_arm
from cosmos_policy_ros.rig.spec import CAMERA_ROLES, RigSpec, load_rig


def complaint(sources: SensorBuffer, at: float, not_before: float = 0.0) -> str:
    with pytest.raises(ObservationError) as caught:
        sources.observe(int(at * NS_PER_S), int(not_before * NS_PER_S))
    return str(caught.value)


@pytest.fixture
def sources(rig: RigSpec) -> SensorBuffer:
    return SensorBuffer(rig)


def test_fresh_sources_make_an_observation_in_policy_units(sources: SensorBuffer) -> None:
    fill(sources, 10.0)
    observation = sources.observe(int(10.02 * NS_PER_S))
    assert list(observation.images) == list(CAMERA_ROLES)
    assert observation.stamp_ns == 10 * NS_PER_S
    assert observation.ages["primary"] == pytest.approx(0.02)
    gripper = (0.038 - 0.01844) / (0.058 - 0.01844)
    np.testing.assert_allclose(observation.state, [*JOINTS[:6], gripper] * 2)


def test_the_digest_sees_every_pixel_the_state_and_the_stamp(sources: SensorBuffer) -> None:
    fill(sources, 10.0)
    one = sources.observe(10 * NS_PER_S)
    assert one.digest() == sources.observe(10 * NS_PER_S).digest()
    pixels = image(250)
    pixels.data = pixels.data[:-1] + b"\x01"
    sources.add_image("primary", pixels, 10 * NS_PER_S)
    two = sources.observe(10 * NS_PER_S)
    assert one.digest() != two.digest()


@pytest.mark.parametrize("silent", CAMERA_ROLES)
def test_a_camera_that_never_spoke_is_named(
    sources: SensorBuffer, rig: RigSpec, silent: str
) -> None:
    fill(sources, 10.0, skip=silent)
    topic = next(c.topic for c in rig.cameras if c.role == silent)
    assert complaint(sources, 10.0).startswith(f"{topic} has sent no image yet")


def test_a_camera_that_fell_silent_is_stale(sources: SensorBuffer) -> None:
    fill(sources, 10.0)
    fill(sources, 11.0, skip="left_wrist")
    said = complaint(sources, 11.0)
    assert "cam_left_wrist" in said
    assert "1.00 s old (limit 0.25 s)" in said


def test_an_arm_that_fell_silent_is_stale(sources: SensorBuffer) -> None:
    fill(sources, 10.0)
    fill(sources, 10.2, skip="right")
    said = complaint(sources, 10.2)
    assert "follower_right/joint_states: last good state is 0.20 s old (limit 0.1 s)" in said
    assert sources.state_age(int(10.2 * NS_PER_S)) == pytest.approx(0.2)


def test_skewed_cameras_are_named(sources: SensorBuffer) -> None:
    fill(sources, 10.0)
    sources.add_image("primary", image(3), int(10.08 * NS_PER_S))
    assert "is 0.080 s behind cam_high" in complaint(sources, 10.09)


def test_an_unchanging_image_under_new_stamps_is_a_frozen_camera(sources: SensorBuffer) -> None:
    for tick in range(30):
        fill(sources, 10.0 + tick * 0.04, skip="primary")
        sources.add_image("primary", image(9), int((10.0 + tick * 0.04) * NS_PER_S))
    said = complaint(sources, 11.16)
    assert "cam_high" in said
    assert "the camera is frozen" in said
    sources.add_image("primary", image(10), int(11.16 * NS_PER_S))
    sources.observe(int(11.16 * NS_PER_S))


def test_an_observation_from_before_the_chunk_ended_is_not_used(sources: SensorBuffer) -> None:
    fill(sources, 10.0)
    assert "primary has not reported since the last chunk ended" in complaint(sources, 10.1, 10.05)
    fill(sources, 10.05)
    sources.observe(int(10.1 * NS_PER_S), int(10.05 * NS_PER_S))


def test_an_encoding_outside_the_rig_file_is_refused(sources: SensorBuffer) -> None:
    fill(sources, 10.0)
    sources.add_image("primary", image(1, "bayer_rggb8"), 10 * NS_PER_S)
    assert "encoding 'bayer_rggb8' is not accepted (rig file: rgb8" in complaint(sources, 10.0)


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        ([math.nan] * 9, "'waist' is nan"),
        ([-math.pi] * 9, "joints read -pi: a failed read"),
        ([0.0, math.inf, *JOINTS[2:]], "'shoulder' is inf"),
    ],
)
def test_a_failed_bus_read_never_becomes_a_state(
    sources: SensorBuffer, positions: list[float], said: str
) -> None:
    fill(sources, 10.0)
    good = sources.measured()
    for tick in range(20):
        now = 10.0 + tick * 0.01
        fill(sources, now, skip="left")
        sources.add_joint_state("left", NAMES.split(), positions, int(now * NS_PER_S))
    np.testing.assert_array_equal(sources.measured(), good)
    message = complaint(sources, 10.2)
    assert "20 rejected" in message
    assert said in message


def test_wrong_joint_names_say_what_was_meant(sources: SensorBuffer) -> None:
    fill(sources, 10.0, skip="left")
    wrong = NAMES.replace("waist", "wasit").split()
    sources.add_joint_state("left", wrong, JOINTS, 10 * NS_PER_S)
    message = complaint(sources, 10.0)
    assert "no good joint state yet" in message
    assert "joint 'waist' is not in the message; did you mean 'wasit'?" in message


def test_joints_are_taken_by_name_whatever_their_order(rig: RigSpec) -> None:
    names, positions = NAMES.split()[::-1], JOINTS[::-1]
    forward = read_arm(rig.arms.left, NAMES.split(), JOINTS)
    np.testing.assert_array_equal(read_arm(rig.arms.left, names, positions), forward)


def test_interbotix_opening_is_recomputed_from_the_motor_angle() -> None:
    """Stock finger metres of the ALOHA driver read -0.08 closed and 1.33 open."""
    arm = load_rig("interbotix_1", config_folder("rigs")).arms.left
    for angle, opening in ((0.6197, 0.0), (1.6214, 1.0)):
        joints = [*JOINTS[:6], angle, finger_from_angle(angle, 0.0275, 0.035), 0.0]
        assert read_arm(arm, NAMES.split(), joints)[6] == pytest.approx(opening, abs=0.01)


@pytest.mark.parametrize("ahead", [0.06, 5.0, 3600.0])
@pytest.mark.parametrize("source", ["left", "primary"])
def test_a_stamp_ahead_is_refused_by_name_and_ages_its_source(
    sources: SensorBuffer, source: str, ahead: float
) -> None:
    """Stamps an hour ahead switched off every look at an age, also for dead arms."""
    fill(sources, 10.0)
    for tick in range(1, 60):
        now = 10.0 + tick * 0.02
        fill(sources, now, skip=source)
        at = round(now * NS_PER_S)
        receipt = Receipt(at, at + round(ahead * NS_PER_S))
        if source == "left":
            assert not sources.add_joint_state(source, NAMES.split(), JOINTS, at, receipt)
        else:
            assert not sources.add_image(source, image(tick), at, receipt)
    said = f"59 rejected, the last: stamped {ahead:.2f} s ahead of this machine's clock"
    assert said in complaint(sources, 11.18)
    assert said in sources.stale_source(round(11.18 * NS_PER_S))


def test_a_stamp_a_little_ahead_counts_as_of_now(sources: SensorBuffer) -> None:
    """An old image with a stamp from after the chunk counted as seen after it."""
    fill(sources, 10.0)
    at = 10 * NS_PER_S
    assert sources.add_image("primary", image(1), at, Receipt(at, at + round(0.04 * NS_PER_S)))
    assert "primary has not reported" in complaint(sources, 10.02, 10.01)


def test_an_old_stamp_is_old_when_it_comes(sources: SensorBuffer) -> None:
    fill(sources, 10.0)
    at = 10 * NS_PER_S
    assert sources.add_image("primary", image(1), at, Receipt(at, at - 30 * NS_PER_S))
    assert "last image is 30.00 s old" in complaint(sources, 10.0)


@pytest.mark.parametrize(
    ("names", "positions", "said"),
    [
        ([*NAMES.split(), "waist"], [*JOINTS, 1.0], "joint 'waist' is named 2 times"),
        (NAMES.split(), JOINTS[:7], "9 joint names with 7 positions"),
        (NAMES.split(), [*JOINTS, 7.0], "9 joint names with 10 positions"),
        (NAMES.split(), [1e6, *JOINTS[1:]], "joint 'waist' is 1000000.00 rad"),
        (NAMES.split(), [-1e6, *JOINTS[1:]], "joint 'waist' is -1000000.00 rad"),
    ],
)
def test_a_joint_state_that_contradicts_itself_is_none(
    rig: RigSpec, names: list[str], positions: list[float], said: str
) -> None:
    """Of a doubled name the last position won."""
    with pytest.raises(ObservationError, match=said):
        read_arm(rig.arms.left, names, positions)


def test_a_motion_without_a_policy_needs_no_cameras(sources: SensorBuffer) -> None:
    fill(sources, 10.0)
    fill(sources, 12.0, skip="primary")
    now_ns = int(12.01 * NS_PER_S)
    assert "cam_high/camera/color/image_rect_raw: no new image for 2.01 s" in sources.stale_source(
        now_ns
    )
    assert sources.stale_source(now_ns, cameras=False) == ""
    assert "follower_left/joint_states" in sources.stale_source(13 * NS_PER_S, cameras=False)


def test_sizes_of_the_newest_images_by_role(sources: SensorBuffer, rig: RigSpec) -> None:
    assert sources.image_sizes() == {}
    sources.add_image("left_wrist", image(0), NS_PER_S)
    pixels = cv2.imencode(".jpg", np.zeros((90, 160, 3), np.uint8))[1].tobytes()
    sources.add_image("primary", SimpleNamespace(format="jpeg", data=pixels), NS_PER_S)
    small = image(0)
    assert sources.image_sizes() == {
        "left_wrist": (small.height, small.width),
        "primary": (90, 160),
    }
    sources.add_image("primary", SimpleNamespace(format="jpeg", data=pixels[:-2]), NS_PER_S)
    with pytest.raises(ObservationError, match=r"cam_high.* no readable image"):
        sources.image_sizes()


def test_a_camera_that_sends_another_size_than_its_rig_file_says(rig: RigSpec) -> None:
    small = image(0)
    size = (small.height, small.width)
    for asked, accepted in ((size, True), ((480, 640), False)):
        cameras = tuple(replace(camera, size=asked) for camera in rig.cameras)
        sources = SensorBuffer(replace(rig, cameras=cameras))
        fill(sources, 10.0)
        if accepted:
            sources.observe(10 * NS_PER_S)
        else:
            assert "the rig file says 480x640" in complaint(sources, 10.0)


def test_a_raw_image_is_seen_as_it_is_recorded(rig: RigSpec) -> None:
    """As the JPEG that the recorder makes of it, or as it came: a digest is of what is kept."""
    raw = image(0)
    pixels = np.random.default_rng(0).integers(0, 256, (raw.height, raw.width, 3), np.uint8)
    raw.data = pixels.tobytes()
    compressed = as_jpeg(raw, "cam", rig.recording.jpeg_quality)
    of_jpeg = from_jpeg(compressed.data)
    assert not np.array_equal(of_jpeg, pixels)
    for seen_by, sent, expected in (
        (rig, raw, of_jpeg),
        (rig.with_images("raw"), raw, pixels),
        (rig_of_bag(rig, jpeg=True), compressed, of_jpeg),
        (rig_of_bag(rig, jpeg=False), raw, pixels),
    ):
        sources = SensorBuffer(seen_by)
        fill(sources, 10.0)
        for role in CAMERA_ROLES:
            sources.add_image(role, sent, 10 * NS_PER_S)
        seen = sources.observe(10 * NS_PER_S)
        for role in CAMERA_ROLES:
            np.testing.assert_array_equal(seen.images[role], expected)


def test_a_grey_camera_is_taken_only_where_the_rig_file_says_so(rig: RigSpec) -> None:
    grey = image(0)
    grey.encoding, grey.step = "mono8", grey.width
    grey.data = grey.data[: grey.height * grey.width]
    for encodings, accepted in ((rig.cameras[2].encodings, False), (("mono8",), True)):
        cameras = (*rig.cameras[:2], replace(rig.cameras[2], encodings=encodings))
        sources = SensorBuffer(replace(rig, cameras=cameras))
        fill(sources, 10.0, skip="primary")
        sources.add_image("primary", grey, 10 * NS_PER_S)
        if accepted:
            assert sources.observe(10 * NS_PER_S).images["primary"].shape[2] == 3
        else:
            assert "encoding 'mono8' is not accepted" in complaint(sources, 10.0)
