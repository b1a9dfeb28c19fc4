"""Pins that files of public recorders come in as they were meant, or are refused by name.

Colours as they were seen, cameras by their names, seconds that stay seconds, units of the rig.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from helpers.exchange import look
from helpers.hdf5 import CAMERAS, jpegs, random_images, write_hdf5
from helpers.recordings import GRIPPERS, as_recorded, moves, padded, speeds, write_recording
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.foreign_episode import ImportOptions
from cosmos_policy_ros.interop.hdf5_layout import Hdf5Source, open_hdf5
from cosmos_policy_ros.interop.importer import Imported, Importer

ROLES = {"cam_high": "primary", "cam_left_wrist": "left_wrist", "cam_right_wrist": "right_wrist"}
RIGHT = {camera: jpegs(random_images(60, camera)) for camera in CAMERAS}
HIGH = "observations/images/cam_high"
Take = Callable[..., Imported]


@pytest.fixture
def take(store: EpisodeStore, types: Typestore) -> Take:
    return lambda path, **options: Importer(store, types, ImportOptions(**options)).take(
        Hdf5Source(path)
    )


def check_colours(done: Imported, stride: int = 2) -> None:
    """Hold every image against the one that was seen: JPEG blurs, but swaps no channels."""
    _, _, seen = look(done.path)
    for camera, role in ROLES.items():
        wanted = random_images(60, camera)[::stride]
        for observation, image in zip(seen, wanted, strict=True):
            assert np.abs(observation.images[role].astype(int) - image).mean() < 4


def lengths(kind: str) -> Callable[[h5py.File], None]:
    """Write the data set of the files' lengths, in one of the ways that are found."""

    def change(file: h5py.File) -> None:
        file.attrs["compress"] = True
        rows = [[len(j) for j in as_recorded(random_images(60, camera))] for camera in CAMERAS]
        longest = np.max(rows)
        values = {
            "per camera": np.array(rows, np.float32),
            "per row": np.array(rows, np.float32).T,
            "longest": np.full((3, 60), longest, np.float32),
            "never written": np.zeros((3, 60), np.float32),
            "one number": np.float32(longest),
        }
        if kind in values:
            file["compress_len"] = values[kind]
        elif kind == "other filling":
            for camera in CAMERAS:
                content = padded(as_recorded(random_images(60, camera)), longest + 9, 0xAB)
                del file[f"observations/images/{camera}"]
                file[f"observations/images/{camera}"] = content

    return change


@pytest.mark.parametrize(
    "kind",
    ["per camera", "per row", "longest", "never written", "one number", "none", "other filling"],
)
def test_padded_rows_of_alohas_recorders_come_in_their_colours(
    tmp_path: Path, take: Take, kind: str
) -> None:
    done = take(write_recording(tmp_path / "a/e.hdf5", "padded", change=lengths(kind)), rate=50)
    assert done.quality.go
    assert (done.steps, done.seconds) == (30, 1.2)
    assert any("red and blue exchanged back" in n and "quality 95" in n for n in done.notes)
    check_colours(done)


@pytest.mark.parametrize("images", ["padded", "strings", "scattered"])
def test_jpeg_files_in_the_right_order_go_on_byte_for_byte(tmp_path: Path, images: str) -> None:
    path = write_recording(tmp_path / "e.hdf5", images, jpegs=RIGHT)
    with open_hdf5(path, colours="rgb") as source:
        assert list(source.frames["primary"].every(7)) == RIGHT["cam_high"][::7]
        assert not any("exchanged" in note for note in source.notes)


@pytest.mark.parametrize("images", ["padded", "strings", "scattered"])
def test_an_order_of_colours_is_asked_for(tmp_path: Path, take: Take, images: str) -> None:
    path = write_recording(tmp_path / "a/e.hdf5", images)
    with pytest.raises(RolloutError, match=r"images/cam_left_wrist: .*give --colours rgb .* bgr"):
        take(path, rate=50)
    check_colours(take(path, rate=50, colours="bgr"))


def test_raw_images_can_be_exchanged_too(tmp_path: Path, take: Take) -> None:
    def change(file: h5py.File) -> None:
        for camera in CAMERAS:
            file[f"observations/images/{camera}"][...] = random_images(60, camera)[..., ::-1]

    done = take(write_recording(tmp_path / "a/e.hdf5", change=change), rate=50, colours="bgr")
    _, _, seen = look(done.path)
    assert np.array_equal(seen[3].images["primary"], random_images(60, "cam_high")[6])


def test_a_preview_within_a_jpeg_does_not_end_it(tmp_path: Path) -> None:
    preview = b"\xff\xe1" + (2 + 20).to_bytes(2, "big") + b"Exif\0\0" + b"\xff\xd9" * 7
    made = [jpeg[:2] + preview + jpeg[2:] for jpeg in RIGHT["cam_high"]]
    jpeg_of = {**RIGHT, "cam_high": made}
    with open_hdf5(
        write_recording(tmp_path / "e.hdf5", "padded", jpegs=jpeg_of), colours="rgb"
    ) as source:
        assert list(source.frames["primary"].every(1)) == made


@pytest.mark.parametrize("images", ["padded", "strings"])
def test_a_row_that_cuts_its_jpeg_off_is_named(tmp_path: Path, images: str) -> None:
    spoilt = {
        **RIGHT,
        "cam_high": [j[:-3] if t == 6 else j for t, j in enumerate(RIGHT["cam_high"])],
    }
    path = write_recording(tmp_path / "e.hdf5", images, jpegs=spoilt)
    told = pytest.raises(RolloutError, match=r"images/cam_high: image 6, .* no whole JPEG")
    with open_hdf5(path, colours="rgb") as source, told:
        list(source.frames["primary"].every(2))


def test_cameras_of_two_kinds_become_one(tmp_path: Path, take: Take) -> None:
    def change(file: h5py.File) -> None:
        file.attrs["compress"] = True
        del file[HIGH]
        file[HIGH] = random_images(60, "cam_high")

    done = take(write_recording(tmp_path / "a/e.hdf5", "padded", change=change), rate=50)
    assert any("raw images became JPEG" in note for note in done.notes)
    check_colours(done)


NAMES = ("cam_left_wrist", "cam_right_wrist", "cam_high")


@pytest.mark.parametrize(
    "names",
    [
        ("left_wrist", "right_wrist", "top"),
        ("left_wrist", "right_wrist", "front"),
        ("camera_wrist_left", "camera_wrist_right", "camera_high"),
        ("hand_left", "hand_right", "head"),
        ("left_wrist_0_rgb", "right_wrist_0_rgb", "base_0_rgb"),
        ("left_camera", "right_camera", "head_camera"),
        ("wrist-left", "wrist-right", "overhead_cam"),
    ],
)
def test_cameras_are_known_by_what_recorders_call_them(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    path = write_recording(tmp_path / "e.hdf5", cameras=dict(zip(NAMES, names, strict=True)))
    with open_hdf5(path) as source:
        for camera, role in ROLES.items():
            assert np.array_equal(next(source.frames[role].every(1)), random_images(1, camera)[0])


def test_cameras_that_are_not_known_are_asked_for(tmp_path: Path) -> None:
    names = dict(zip(NAMES, ("left", "right", "angle"), strict=True))
    path = write_recording(tmp_path / "e.hdf5", cameras=names)
    asked = r"no camera is known as left_wrist; there is angle, left, right: .*"
    example = "--camera left_wrist=left --camera right_wrist=right --camera primary=angle"
    with pytest.raises(RolloutError, match=asked + example), open_hdf5(path):
        pass
    given = {"left_wrist": "left", "right_wrist": "right", "primary": "angle"}
    with open_hdf5(path, given) as source:
        assert next(source.frames["primary"].every(1))[0, 0, 2] == 0
    wrong = pytest.raises(RolloutError, match="has no camera front for primary; it has angle, left")
    with wrong, open_hdf5(path, {**given, "primary": "front"}):
        pass


def test_an_ambiguous_set_is_asked_for_and_the_rest_is_named(tmp_path: Path) -> None:
    names = dict(zip(NAMES, ("left_wrist", "right_wrist", "top"), strict=True))

    def change(file: h5py.File) -> None:
        file["observations/images/front"] = random_images(60, "cam_left_wrist")

    path = write_recording(tmp_path / "e.hdf5", cameras=names, change=change)
    with pytest.raises(RolloutError, match="2 cameras could be primary; there is"), open_hdf5(path):
        pass
    with open_hdf5(path, {"primary": "top"}) as source:
        assert "not taken: camera front" in source.notes

    def aloha(file: h5py.File) -> None:
        for name in ("cam_low", "front"):
            file[f"observations/images/{name}"] = random_images(60, "cam_high")

    with open_hdf5(write_recording(tmp_path / "b.hdf5", change=aloha)) as source:
        assert "not taken: cameras cam_low, front" in source.notes


def test_the_arms_of_aloha_2_are_doubted(tmp_path: Path) -> None:
    names = ("camera_wrist_left", "camera_wrist_right", "camera_high")
    path = write_recording(tmp_path / "e.hdf5", cameras=dict(zip(NAMES, names, strict=True)))
    with open_hdf5(path) as source:
        assert any("puts the right arm first" in note for note in source.notes)


@pytest.mark.parametrize("rate", [10, 30])
def test_videos_are_resampled_too(tmp_path: Path, take: Take, rate: float) -> None:
    done = take(write_hdf5(tmp_path / "a/e.hdf5", "video", rate=rate), videos_as="raw")
    _, _, seen = look(done.path)
    nearest = np.floor(np.minimum(np.arange(done.steps) / 25 * rate, 23) + 0.5).astype(int)
    for each, row in zip(seen, nearest, strict=True):
        assert (
            np.abs(each.images["primary"].astype(int) - random_images(24, "cam_high")[row]).mean()
            < 5
        )


@pytest.mark.parametrize("rate", [10, 24, 30, 45.5, 60])
def test_another_rate_is_resampled_by_stamps(tmp_path: Path, take: Take, rate: float) -> None:
    done = take(write_recording(tmp_path / "a/e.hdf5", rate=rate), rate=rate)
    assert f"{rate:g} Hz resampled to 25 Hz by stamps" in done.notes
    assert done.quality.go
    _, windows, seen = look(done.path)
    times = np.arange(done.steps) / 25
    assert abs(done.seconds - 60 / rate) <= max(1 / rate, 0.04)
    assert len(seen) == done.steps
    # Off the motion itself by what a chord is off its arc.
    chord = 9 * 0.45 / rate**2 / 8 + 1e-9
    states = np.stack([each.state for each in seen])
    assert np.abs(states - moves(times)).max() < chord
    assert np.abs(windows.steps.actions - moves(times + 1 / rate)).max() < chord
    nearest = np.floor(np.minimum(times * rate, 59) + 0.5).astype(int)
    for each, row in zip(seen, nearest, strict=True):
        assert np.array_equal(each.images["primary"], random_images(60, "cam_high")[row])


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        (lambda file: file.attrs.update(fps=50), 30),
        (lambda file: file.attrs.update(FPS=np.float32(25)), 60),
        (lambda file: file.attrs.update(frequency="50"), 30),
        (lambda file: file.attrs.update(dt=0.02), 30),
        (lambda file: file.create_dataset("fps", data=50), 30),
        (lambda file: file.create_dataset("timestamps", data=np.arange(60) / 50), 30),
        (lambda file: file.create_dataset("timestamps", data=1.7e9 + np.arange(60) / 50), 30),
        (
            lambda file: file.create_dataset(
                "observations/timestamp", data=10**18 + 20_000_000 * np.arange(60)[:, None]
            ),
            30,
        ),
    ],
)
def test_a_rate_is_told_by_what_recorders_write(
    tmp_path: Path, take: Take, change: Callable[[h5py.File], Any], steps: int
) -> None:
    rate = 1500 / steps
    path = write_recording(tmp_path / "a/e.hdf5", rate=rate, change=lambda f: change(f) and None)
    assert take(path).steps == steps


def test_a_task_alone_tells_no_rate(tmp_path: Path, take: Take) -> None:
    path = write_recording(tmp_path / "a/e.hdf5", attributes={"task_description": "fold"})
    with pytest.raises(
        RolloutError, match="does not tell its rate; give --rate, such as --rate 50"
    ):
        take(path)
    assert take(path, rate=50).seconds == 1.2


@pytest.mark.parametrize(("true", "given"), [(50, 25), (50, 30), (25, 30), (30, 25), (30, 50)])
def test_a_rate_that_the_motion_contradicts_is_refused(
    tmp_path: Path, take: Take, true: float, given: float
) -> None:
    def noisy(file: h5py.File) -> None:
        rng = np.random.default_rng(0)
        ticks = 2 * np.pi / 4096
        file["observations/qpos"][...] = np.round(moves(np.arange(60) / true) / ticks) * ticks
        speed = speeds(np.arange(60) / true)
        file["observations/qvel"][...] = np.round(speed / 0.024) * 0.024
        file["observations/qvel"][...] += rng.normal(0, 0.03, (60, 14))
        file["observations/qvel"][20, 3] = 900.0

    path = write_recording(tmp_path / "a/e.hdf5", rate=true, change=noisy)
    with pytest.raises(RolloutError, match=rf"{given} Hz, as given, .*give --rate {true}"):
        take(path, rate=given)
    take(path, rate=true)
    take(path, rate=true * 0.93, again=True)  # recorders are a little slower than they say


def test_speeds_that_do_not_belong_to_the_motion_refuse_nothing(tmp_path: Path, take: Take) -> None:
    def other(file: h5py.File) -> None:
        file["observations/qvel"][...] = np.degrees(speeds(np.arange(60) / 50))

    take(write_recording(tmp_path / "a/e.hdf5", change=other), rate=50)

    def still(file: h5py.File) -> None:
        file["observations/qpos"][...] = 0.1

    take(write_recording(tmp_path / "b/e.hdf5", change=still), rate=25)


def test_things_that_tell_different_rates_are_named(tmp_path: Path, take: Take) -> None:
    def change(file: h5py.File) -> None:
        file.attrs["fps"] = 30
        file["timestamps"] = np.arange(60) / 50

    path = write_recording(tmp_path / "a/e.hdf5", change=change)
    with pytest.raises(
        RolloutError, match="is of 50 Hz by its stamps, and of 30 Hz by its attribute fps; give"
    ):
        take(path)
    assert "50 Hz as given, though by its attribute fps it is 30" in take(path, rate=50).notes


def test_stamps_go_before_what_was_meant(tmp_path: Path, take: Take) -> None:
    def change(file: h5py.File) -> None:
        file.attrs["fps"] = 50
        file["timestamps"] = np.arange(60) / 47

    done = take(write_recording(tmp_path / "a/e.hdf5", rate=47, change=change))
    assert "47 Hz resampled to 25 Hz by stamps" in done.notes
    assert done.seconds == pytest.approx(60 / 47, abs=0.04)


def test_a_mean_rate_of_stamps_hides_no_uneven_ones(tmp_path: Path, take: Take) -> None:
    times = np.concatenate([0.03 * np.arange(30), 0.9 + 0.0097 * np.arange(30)])
    times *= 59 / 50 / times[-1]

    def change(file: h5py.File) -> None:
        file["observations/qpos"][...] = moves(times)
        del file["observations/qvel"]
        file["timestamps"] = times

    done = take(write_recording(tmp_path / "a/e.hdf5", change=change))
    assert "50 Hz resampled to 25 Hz by stamps" in done.notes
    _, _, seen = look(done.path)
    states = np.stack([each.state for each in seen])
    assert np.abs(states - moves(np.arange(done.steps) / 25)).max() < 0.001


def test_uneven_stamps_are_followed_and_gaps_are_not(tmp_path: Path, take: Take) -> None:
    times = np.cumsum(np.where(np.arange(60) % 3, 0.02, 0.05)) - 0.05

    def change(file: h5py.File) -> None:
        file["observations/qpos"][...] = moves(times)
        file["observations/qvel"][...] = speeds(times)
        file["action"][...] = moves(times + 0.02)
        file["timestamps"] = times + 1.7e9

    done = take(write_recording(tmp_path / "a/e.hdf5", change=change))
    assert done.seconds == pytest.approx(times[-1], abs=0.041)
    _, _, seen = look(done.path)
    states = np.stack([each.state for each in seen])
    assert np.abs(states - moves(np.arange(done.steps) / 25)).max() < 0.002

    def gap(file: h5py.File) -> None:
        change(file)
        file["timestamps"][30:] += 1.3

    with pytest.raises(RolloutError, match=r"nothing for 1\.3\d s between rows 29 and 30"):
        take(write_recording(tmp_path / "b/e.hdf5", change=gap))

    def back(file: h5py.File) -> None:
        change(file)
        file["timestamps"][30] = 0

    with pytest.raises(RolloutError, match="its /timestamps do not increase from row 29 to 30"):
        take(write_recording(tmp_path / "c/e.hdf5", change=back))


def test_what_nobody_learns_from_may_be_no_number(tmp_path: Path, take: Take) -> None:
    def change(file: h5py.File) -> None:
        file["observations/qvel"][7, 3] = np.nan
        file["observations/effort"][...] = np.inf
        file["notes"] = np.full(60, np.nan)

    done = take(write_recording(tmp_path / "a/e.hdf5", change=change), rate=50)
    assert done.quality.go
    assert done.notes[1:] == (
        "left out: /observations/qvel, where 1 values are no numbers, first row 7, column 3",
        "left out: /observations/effort, where 840 values are no numbers, first row 0, column 0",
    )
    with pytest.raises(RolloutError, match="is not what positions and velocities"):
        take(tmp_path / "a/e.hdf5", rate=25, again=True)

    def learnt(file: h5py.File) -> None:
        file["observations/qpos"][7, 3] = np.nan

    with pytest.raises(RolloutError, match="/observations/qpos: row 7, column 3 is nan"):
        take(write_recording(tmp_path / "b/e.hdf5", change=learnt), rate=50)


@pytest.mark.parametrize(
    ("number", "name"),
    [(32001, "blosc"), (32015, "zstd"), (32004, "lz4"), (32008, "bitshuffle"), (307, "bzip2")],
)
@pytest.mark.parametrize("key", ["action", HIGH])
def test_a_filter_that_needs_a_plugin_is_called_by_its_name(
    tmp_path: Path, number: int, name: str, key: str
) -> None:
    def change(file: h5py.File) -> None:
        shape, dtype = file[key].shape, file[key].dtype
        del file[key]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, *shape[1:]))
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
        space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype)
        made = h5py.h5d.create(file.id, key.encode(), kind, space, plist)
        made.write_direct_chunk((0,) * len(shape), b"packed")

    path = write_recording(tmp_path / "e.hdf5", change=change)
    told = rf"/{key}: is packed by {name} \({number}\), which needs a plugin"
    with pytest.raises(RolloutError, match=told) as raised, open_hdf5(path):
        pass
    assert "damaged" not in str(raised.value)
    assert "h5repack" in str(raised.value)


def set_columns(columns: Any, *, states: Any = None, actions: Any = None) -> Any:
    def change(file: h5py.File) -> None:
        for key, values in (("observations/qpos", states), ("action", actions)):
            if values is not None:
                content = file[key][()]
                content[:, columns] = values(content[:, columns])
                file[key][...] = content

    return change


def metres(low: float, high: float) -> Any:
    return lambda values: low + values * (high - low)


UNITS: dict[str, tuple[Any, str]] = {
    "degrees": (
        set_columns(slice(None), states=np.degrees, actions=np.degrees),
        r"qpos: left/waist is -?2\d\.\d+ at row \d+, the rig's limits are -3\.142 to 3\.142 rad; "
        r"it looks like degrees.*convert the file: joints in radians",
    ),
    "degrees in actions": (
        set_columns(slice(0, 6), actions=np.degrees),
        "/action: left/waist .* looks like degrees",
    ),
    "ticks": (
        set_columns(3, states=lambda v: 2048 + v * 4096 / 2 / np.pi),
        "left/forearm_roll .* encoder's ticks",
    ),
    "metres of ALOHA": (
        set_columns([6], states=metres(0.01844, 0.058)),
        r"qpos: left/gripper goes from 0\.03\d+ to 0\.05\d+, where 0 is closed .*finger's metres",
    ),
    "metres of Interbotix": (
        set_columns([13], states=metres(0.044, 0.0579), actions=metres(0.0185, 0.0323)),
        "right/gripper goes from .* metres",
    ),
    "angle": (
        set_columns(GRIPPERS, actions=metres(-0.6213, 1.4910)),
        "/action: right/gripper is .* the rig's limits are 0 .* angle in radians",
    ),
    "per cent": (set_columns([6], states=lambda v: v * 100), "left/gripper is .* per cent"),
    "unread": (
        lambda file: file["observations/qpos"].__setitem__((9, slice(None)), -np.pi),
        "left/shoulder is -3.142 at row 9, .* motor that could not be read.*cut these rows out",
    ),
}


@pytest.mark.parametrize("case", UNITS)
def test_another_unit_is_refused_by_joint_value_and_limit(
    tmp_path: Path, take: Take, case: str
) -> None:
    change, told = UNITS[case]
    path = write_recording(tmp_path / "a/e.hdf5", change=change)
    with pytest.raises(RolloutError, match=told):
        take(path, rate=50)


def test_what_demonstrations_have_is_no_other_unit(tmp_path: Path, take: Take) -> None:
    def change(file: h5py.File) -> None:
        file["action"][10, 1:3] = (1.99, -2.15)  # leaders turn further than followers
        file["observations/qpos"][:, 6] = np.linspace(-0.08, 1.33, 60)  # another gripper's crank
        # A gripper that stays closed on something thin.
        file["observations/qpos"][:, 13] = 0.03 + 0.005 * np.sin(np.arange(60))
        file["action"][:, 13] = 0.0

    assert take(write_recording(tmp_path / "a/e.hdf5", change=change), rate=50).steps == 30


@pytest.mark.parametrize(
    ("key", "values", "named"),
    [
        ("base_action", np.full((60, 2), [0.3, 0.1]), True),
        ("base_action", np.zeros((60, 2)), False),
        ("observations/base_vel", np.full(60, -0.2), True),
        ("observations/lift", np.linspace(0, 1, 60), True),
        ("observations/lift", np.full(60, 0.7), False),
        ("weights", np.arange(7), False),
    ],
)
def test_what_moves_and_is_not_taken_is_named(
    tmp_path: Path, take: Take, key: str, values: Any, named: bool
) -> None:
    def change(file: h5py.File) -> None:
        file[key] = values

    done = take(write_recording(tmp_path / "a/e.hdf5", change=change), rate=50)
    assert (f"not taken: /{key}, which moves" in done.notes) == named


def test_what_is_not_taken_cannot_lead_elsewhere(tmp_path: Path, take: Take) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["secret"] = np.arange(60.0)

    def change(file: h5py.File) -> None:
        file["base_action"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/secret")
        file["observations/lift"] = h5py.SoftLink("/nowhere")
        file.create_dataset("tape", (60, 2**40), np.float64, chunks=(1, 1024))

    done = take(write_recording(tmp_path / "a/e.hdf5", change=change), rate=50)
    assert not any("not taken" in note for note in done.notes)


def test_names_and_notes_give_a_terminal_no_orders(tmp_path: Path, take: Take) -> None:
    texts = {"user_name": "a\x1b[2J\nb", "user_description": "one\ntwo\x07", "policy_name": "\x1b"}
    given = {"task_description": "fold\n", "success": True, **texts}
    done = take(write_recording(tmp_path / "a/e.hdf5", attributes=given), rate=50)
    episode = read_episode(done.path)
    assert episode.score is not None
    assert (episode.metadata.prompt, episode.score.note) == ("fold", "one\ntwo\\x07")
    assert episode.metadata.operator_name == "a\\x1b[2J\\nb"
    assert episode.metadata.engine == "\\x1b"


@pytest.mark.parametrize("text", ["fold\x1b[31m", "fold\nshirt", "fold\x07"])
def test_a_prompt_that_cannot_be_shown_is_refused(tmp_path: Path, take: Take, text: str) -> None:
    path = write_recording(tmp_path / "a/e.hdf5", attributes={"task_description": text})
    with pytest.raises(RolloutError, match=r"prompt 'fold\\.*give --prompt"):
        take(path, rate=50)
    assert take(path, rate=50, prompt="fold").steps == 30


def test_images_of_a_swapped_channel_are_what_the_case_was(tmp_path: Path) -> None:
    """The files here decode with red and blue exchanged, or these tests would show nothing."""
    path = write_recording(tmp_path / "e.hdf5", "padded")
    with h5py.File(path) as file:
        bgr = cv2.imdecode(file[HIGH][0], cv2.IMREAD_COLOR)
    assert np.abs(bgr.astype(int) - random_images(1, "cam_high")[0]).mean() < 4
