"""Pins what an episode is refused for before it is learned from, and what is only said of it.

Joints in degrees, an arm that stood still, frozen cameras and images of another shape were trained
on without a word. Every kind is a real bag here; what is sound must stay GO.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.episodes import MS, RIG, START_NS, Writing, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.dataset import checks
from cosmos_policy_ros.dataset.checks import (
    EpisodeReport,
    Expected,
    Finding,
    judge_episode,
    load_check_limits,
)
from cosmos_policy_ros.dataset.motion import Measures, Motion, measure_motion, read_motion
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.rig.chunk import TimedChunk

Array = NDArray[np.float64]
Image = Callable[[str, int], NDArray[np.uint8]]
LIMITS = load_check_limits()
ROWS, DT, BEGIN, LAG = 60, 0.04, 200, 100  # rows, s, ms, ms
EXPECTED = Expected(50, (480, 640), 224, ("transfer the red cube",), "text.safetensors")


def wave(rows: int = ROWS, phase: float = 0.0) -> Array:
    """Return (rows, 14) targets that never rest, every joint at another pace."""
    at = np.arange(rows)[:, None] / 25
    return np.sin(at * np.linspace(1.0, 2.5, 14) + np.arange(14) + phase) / 4 + 0.5


def judged(
    store: EpisodeStore,
    types: Typestore,
    actions: Array | None = None,
    states: Array | None = None,
    image: Image = noise,
    *,
    lag: int = LAG,
    expected: Expected | None = EXPECTED,
    **of_writing: Any,
) -> EpisodeReport:
    """Record arms that are at row t of ``states`` ``lag`` ms after it was due; judge that."""
    actions = wave() if actions is None else actions
    states = actions if states is None else states
    writing = Writing(store, types, **of_writing)
    speeds = np.full(14, 9.0)
    chunk = TimedChunk("run/0", START_NS + BEGIN * MS, DT, actions[0], actions, speeds)
    writing.trajectory(chunk)
    times = BEGIN + 40 + lag + 40 * np.arange(len(states))

    def pose(at: int) -> Array:
        return np.array([np.interp(at, times, column) for column in states.T])

    writing.follow((BEGIN + 40 * len(actions)) / 1000 + 0.2, pose, image)
    windows = EpisodeWindows(read_episode(writing.recording.finish("stopped")), DT)
    return judge_episode(windows, read_motion(windows, DT), LIMITS, expected=expected)


def texts(findings: tuple[Finding, ...], check: str) -> str:
    return "; ".join(finding.text for finding in findings if finding.check == check)


def only(findings: tuple[Finding, ...], check: str) -> str:
    """Return the one text, which must be of that check."""
    ((found, text),) = ((finding.check, finding.text) for finding in findings)
    assert found == check, text
    return text


@pytest.mark.parametrize("jpeg", [False, True])
def test_a_sound_episode_is_go(store: EpisodeStore, types: Typestore, jpeg: bool) -> None:
    report = judged(store, types, expected=replace(EXPECTED, camera_size=(8, 8)), jpeg=jpeg)
    assert (report.reasons, report.warnings, report.text) == ((), (), "GO")
    assert report.steps == ROWS
    assert report.seconds == pytest.approx(2.4)
    assert report.sizes == dict.fromkeys(("left_wrist", "right_wrist", "primary"), ((8, 8),))
    assert report.states is not None and report.actions is not None
    assert report.actions.rows == ROWS
    np.testing.assert_allclose(report.actions.max, wave().max(axis=0), atol=1e-6)
    np.testing.assert_allclose(report.states.max, wave().max(axis=0), atol=0.05)
    assert EpisodeReport.from_json(report.to_json()) == report


# ---------------------------------------------------------------- units and numbers


def with_grippers(values: Array, low: float, high: float) -> Array:
    """Return targets whose grippers go from ``low`` to ``high``, for 0.25 and 0.75."""
    changed = values.copy()
    changed[:, [6, 13]] = low + (values[:, [6, 13]] - 0.25) * 2 * (high - low)
    return changed


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.degrees(wave()), "looks like degrees"),
        (with_grippers(wave(), 0.018, 0.058), "looks like a finger's metres"),
        (with_grippers(wave(), -0.6213, 1.4910), "looks like a motor's angle"),
        (with_grippers(wave(), 0.0, 100.0), "per cent of its stroke"),
        (wave() * 4096 / 6.28, "looks like an encoder's ticks"),
    ],
)
def test_another_unit_is_refused(
    store: EpisodeStore, types: Typestore, actions: Array, words: str
) -> None:
    text = texts(judged(store, types, actions, wave()).reasons, "units")
    assert text.startswith("action: left/")
    assert words in text
    assert "convert the file" in text


def test_an_action_that_is_no_number_is_refused(store: EpisodeStore, types: Typestore) -> None:
    actions = wave()
    actions[7, 3] = np.nan
    report = judged(store, types, actions, wave())
    assert only(report.reasons, "finite") == "the action of step 7 is not finite"
    assert report.states is None


# ---------------------------------------------------------------- motion


def test_what_hardly_moves_is_named(store: EpisodeStore, types: Typestore) -> None:
    actions = wave()
    actions[:, 7:] = [0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5]
    actions[:, 3] = 0.2
    states = actions.copy()
    ticks = np.random.default_rng(0).integers(0, 2, (ROWS, 7))
    states[:, 7:] += ticks * RIG.tick[7:]
    report = judged(store, types, actions, states)
    assert report.go
    said = texts(report.warnings, "idle")
    assert "the right arm (at most 1)" in said
    assert "left/forearm_roll (0)" in said
    assert "left/waist" not in said


@pytest.mark.parametrize("rows", [3, 49])
def test_less_than_a_chunk_is_refused(store: EpisodeStore, types: Typestore, rows: int) -> None:
    text = only(judged(store, types, wave(rows)).reasons, "length")
    assert text.startswith(f"is {rows} steps long")
    assert "one chunk of 50" in text


def test_an_episode_in_which_nothing_was_done_is_refused(
    store: EpisodeStore, types: Typestore
) -> None:
    writing = Writing(store, types)
    writing.follow(1.0, lambda at: wave(1)[0])
    windows = EpisodeWindows(read_episode(writing.recording.finish("stopped")), DT)
    report = judge_episode(windows, read_motion(windows, DT), LIMITS)
    assert only(report.reasons, "windows") == "holds no executed step"


def jumping(column: int, by: float) -> Array:
    values = wave()
    values[30:, column] += by
    return values


@pytest.mark.parametrize("column", [0, 5, 10])
def test_a_state_that_no_arm_can_reach_in_time_is_refused(
    store: EpisodeStore, types: Typestore, column: int
) -> None:
    glitch = wave()
    glitch[30, column] -= 1.0
    text = texts(judged(store, types, wave(), glitch).reasons, "jump")
    assert text.startswith(f"state: {RIG.joint_names[column]} jumps by ")


def test_an_action_that_no_hand_can_give_is_refused(store: EpisodeStore, types: Typestore) -> None:
    """Such as a leader's joint that turned past half a turn and came back on the other side."""
    text = texts(judged(store, types, jumping(3, -2.0), wave()).reasons, "jump")
    assert text.startswith("action: left/forearm_roll jumps by ")
    assert "at step 30" in text


@pytest.mark.parametrize(
    ("lag", "words"),
    [(-400, "0.40 s before"), (-120, "s before these"), (900, "s after these")],
)
def test_states_at_another_time_than_their_actions_are_refused(
    store: EpisodeStore, types: Typestore, lag: int, words: str
) -> None:
    assert words in texts(judged(store, types, wave(100), lag=lag).reasons, "following")


def test_arms_that_do_something_else_are_refused(store: EpisodeStore, types: Typestore) -> None:
    actions = wave()
    actions[:, 0] = np.linspace(-0.8, 0.8, ROWS)
    swapped = np.hstack([actions[:, 7:] - 0.6, actions[:, :7]])
    text = texts(judged(store, types, actions, swapped).reasons, "following")
    assert "the same arms, in the same order" in text
    mirrored = wave()[:, [*range(7), *range(7)]]  # the right arm goes where the left one does
    text = texts(judged(store, types, wave(), mirrored).reasons, "following")
    assert "no more like their actions than any others: right/shoulder" in text
    assert "left/" not in text
    still = actions.copy()
    still[:, 2] = 0.5
    text = texts(judged(store, types, actions, still).reasons, "following")
    assert "left/elbow 0 of 0." in text


Paces = st.lists(st.floats(0.3, 3.0), min_size=12, max_size=12)


def motion_of(paces: list[float], seed: int, lag: int, noise_: float, offset: float) -> Motion:
    """Return 12 s of arms that follow sums of two waves, ``lag`` steps behind."""
    draw = np.random.default_rng(seed)
    at = np.arange(-60, 360)[:, None] * DT
    path = np.full((420, 14), 0.5)
    for index, column in enumerate(checks.JOINTS):
        pace, phase = paces[index], draw.uniform(0, 6, 2)
        path[:, column] = 0.4 * np.sin(at[:, 0] * pace + phase[0])
        path[:, column] += 0.2 * np.sin(at[:, 0] * pace * 1.7 + phase[1])
    actions = path[60:360]
    # An action is due one step after its state.
    states = path[59 - lag : 359 - lag] + draw.normal(0, noise_, (300, 14)) + offset
    return Motion(np.arange(300) * round(DT * 1e9), states, actions, DT)


@given(Paces, st.integers(0, 99), st.integers(0, 11), st.floats(0, 3e-3), st.floats(-0.1, 0.1))
def test_what_follows_within_half_a_second_is_never_refused(
    paces: list[float], seed: int, lag: int, noise_: float, offset: float
) -> None:
    motion = motion_of(paces, seed, lag, noise_, offset)
    assert not [*checks._unfollowed(motion, RIG, LIMITS), *checks._jumps(motion, RIG, LIMITS)]


@given(Paces, st.integers(0, 99), st.integers(-30, -4) | st.integers(24, 36))
def test_what_follows_at_another_time_always_is(paces: list[float], seed: int, lag: int) -> None:
    (text,) = checks._unfollowed(motion_of(paces, seed, lag, 1e-3, 0.02), RIG, LIMITS)
    when = float(text.split(" s ")[0].rpartition(" ")[2])
    assert when == pytest.approx(abs(lag) * DT, abs=DT)


def test_across_a_pause_nothing_jumps() -> None:
    """A policy that thinks between its chunks leaves gaps, and other arms stand behind each."""
    motion = motion_of([1.0] * 12, 0, 2, 0.0, 0.0)
    kept = np.r_[0:50, 120:170, 250:300]
    cut = Motion(motion.times_ns[kept], motion.states[kept], motion.actions[kept], DT)
    assert not [*checks._jumps(cut, RIG, LIMITS), *checks._unfollowed(cut, RIG, LIMITS)]
    assert len(cut.pairs(1)) == 147
    assert max(measure_motion(cut, cut.actions).jerk) < 10


# ---------------------------------------------------------------- images


def shades(role: str, at: int) -> NDArray[np.uint8]:
    """Return (24, 32, 3) of colours that differ at every moment."""
    y, x = np.mgrid[0:24, 0:32]
    moved = at // 40
    return np.stack([x * 5 + moved, y * 7, (x + y + 9 * moved) % 200], axis=-1).astype(np.uint8)


def of(role: str, change: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]) -> Image:
    """Return images of which one camera's are changed, "" for all cameras'."""

    def image(camera: str, at: int) -> NDArray[np.uint8]:
        pixels = shades(camera, at)
        return change(pixels, at) if role in ("", camera) else pixels

    return image


def black(pixels: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
    return (pixels // 32).astype(np.uint8)


def uniform(pixels: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
    """Return a blue image, with the noise of a sensor."""
    noisy = np.random.default_rng(at).normal(0, 1.5, pixels.shape)
    return (np.array([10, 40, 220]) + noisy).clip(0, 255).astype(np.uint8)


def grey(pixels: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
    return np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=-1)


def frozen(pixels: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
    """Return an old image that was coded anew: off by a level here and there."""
    again = np.random.default_rng(at).integers(0, 2, pixels.shape, np.uint8)
    return shades("", 0) + again


@pytest.mark.parametrize("role", ["", "primary", "left_wrist"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (black, "8 of 8 images looked at are black"),
        (uniform, "8 of 8 images looked at are of one colour"),
        (grey, "are grey, without any colour"),
        (frozen, "images looked at are the ones before them"),
    ],
)
def test_a_camera_that_shows_nothing_is_refused(
    store: EpisodeStore, types: Typestore, role: str, change: Any, words: str
) -> None:
    report = judged(store, types, image=of(role, change))
    if change is grey and role == "left_wrist":  # a wrist may see nothing that has a colour
        assert report.go
        assert texts(report.warnings, "images").startswith("left_wrist: all images")
        return
    text = texts(report.reasons, "images")
    assert words in text
    assert text.count(words) == (1 if role or change is grey else 3)
    assert text.startswith(role)


def test_a_camera_is_allowed_a_dark_moment_and_to_be_grey_where_the_rig_says_so(
    store: EpisodeStore, types: Typestore
) -> None:
    moment = of("primary", lambda pixels, at: black(pixels, at) if at < 400 else pixels)
    report = judged(store, types, image=moment)
    assert report.go
    assert "primary: 1 of 8 images looked at are black" in texts(report.warnings, "images")
    cameras = tuple(replace(camera, encodings=("rgb8", "mono8")) for camera in RIG.cameras)
    grey_rig = replace(RIG, cameras=cameras)
    looks = {"primary": [checks._Seen(0, (24, 32), "", grey=True)]}
    motion = motion_of([1.0] * 12, 0, 2, 0.0, 0.0)
    assert not list(checks._judge_images(looks, motion, grey_rig, LIMITS))


def test_a_small_thing_that_has_a_colour_is_enough(store: EpisodeStore, types: Typestore) -> None:
    """A cube on a grey table under grey arms, 64 pixels wide, is four of them."""

    def cube(role: str, at: int) -> NDArray[np.uint8]:
        pixels = cv2.resize(grey(shades(role, at), at), (64, 64)).astype(np.uint8)
        pixels[20:22, 30:32] = [180, 30, 30]
        return pixels

    assert judged(store, types, image=cube).go


def test_a_camera_frozen_from_the_middle_on_is_refused(
    store: EpisodeStore, types: Typestore
) -> None:
    late = of("primary", lambda pixels, at: frozen(pixels, at) if at > 1400 else pixels)
    text = texts(judged(store, types, image=late).reasons, "images")
    assert text.startswith("primary: 3 of 7 images looked at are the ones before them")


def test_a_wrist_of_an_arm_at_rest_may_see_the_same(store: EpisodeStore, types: Typestore) -> None:
    """In a simulator it does, to the last bit."""
    actions = wave()
    actions[:, 7:] = 0.5
    still = of("right_wrist", lambda pixels, at: shades("", 0))
    report = judged(store, types, actions, image=still)
    assert report.go
    assert "right_wrist: shows the same image" in texts(report.warnings, "images")


def resized(rows: int, columns: int, after: int = 0) -> Callable[..., NDArray[np.uint8]]:
    def change(pixels: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
        return pixels if at < after else cv2.resize(pixels, (columns, rows)).astype(np.uint8)

    return change


def test_images_that_change_their_shape_are_refused(store: EpisodeStore, types: Typestore) -> None:
    report = judged(store, types, image=of("primary", resized(18, 32, after=1400)))
    assert "primary: its images change their size: 24x32, then 18x32" in only(
        report.reasons, "size"
    )
    report = judged(store, types, image=of("primary", resized(48, 64, after=1400)))
    assert report.go
    assert "24x32, then 48x64" in texts(report.warnings, "size")


def test_another_aspect_ratio_is_said(store: EpisodeStore, types: Typestore) -> None:
    """The model sees squares: what was round for it is none any more."""
    report = judged(store, types, image=of("primary", resized(18, 32)))
    said = texts(report.warnings, "size")
    assert "several aspect ratios: left_wrist 24x32, right_wrist 24x32, primary 18x32" in said
    assert "primary 18x32, +33% in width against the checkpoint's 480x640" in said
    wide = judged(store, types, image=of("", resized(18, 32)))
    assert "several aspect ratios" not in texts(wide.warnings, "size")
    assert "checkpoint's 480x640" in texts(wide.warnings, "size")
    assert not texts(judged(store, types, image=shades).warnings, "size")
    squeezed = replace(EXPECTED, image_size=16)
    report = judged(store, types, image=of("", resized(16, 16)), expected=squeezed)
    assert not texts(report.warnings, "size")


# ---------------------------------------------------------------- what else it says


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "its prompt is empty"),
        (" \t", "its prompt is empty"),
        ("fold\x1b[31m it", "its prompt 'fold\\x1b[31m it' has characters"),
        ("juggle", "'juggle' has no embedding in text.safetensors; 'cosmos embed-prompts'"),
    ],
)
def test_a_prompt_that_teaches_nothing_is_refused(
    store: EpisodeStore, types: Typestore, prompt: str, words: str
) -> None:
    assert words in only(judged(store, types, prompt=prompt).reasons, "prompt")


def test_without_a_checkpoint_any_prompt_will_do(store: EpisodeStore, types: Typestore) -> None:
    assert judged(store, types, prompt="juggle", expected=None).go


def test_the_recorders_verdict_counts(tmp_path: Path, types: Typestore) -> None:
    writing = Writing(EpisodeStore(tmp_path, types), types)
    writing.trajectory(
        TimedChunk("run/0", START_NS + BEGIN * MS, DT, wave()[0], wave(), np.full(14, 9.0))
    )
    for at in range(0, 2800, 10):
        if not 1000 < at < 1800:  # the cameras go on without the arms
            writing.follow_once(at, wave()[max(0, min(ROWS - 1, (at - 300) // 40))])
    windows = EpisodeWindows(read_episode(writing.recording.finish("stopped")), DT)
    report = judge_episode(windows, read_motion(windows, DT), LIMITS)
    assert "was silent for" in texts(report.reasons, "recording")


numbers = st.lists(st.floats(-1e6, 1e6), min_size=14, max_size=14).map(tuple)
measures = st.builds(
    Measures,
    rows=st.integers(1, 10**6),
    min=numbers,
    max=numbers,
    mean=numbers,
    std=numbers,
    median=numbers,
    jerk=numbers,
)
findings = st.lists(st.builds(Finding, st.text(), st.text())).map(tuple)


@settings(max_examples=30)
@given(
    st.builds(
        EpisodeReport,
        prompt=st.text(),
        steps=st.integers(0, 10**6),
        seconds=st.floats(0, 1e6),
        joints=st.lists(st.text()).map(tuple),
        tick=numbers,
        reasons=findings,
        warnings=findings,
        notes=st.lists(st.text()).map(tuple),
        states=st.none() | measures,
        actions=st.none() | measures,
        sizes=st.dictionaries(
            st.text(), st.lists(st.tuples(st.integers(1), st.integers(1))).map(tuple)
        ),
    )
)
def test_a_report_is_kept_as_json(report: EpisodeReport) -> None:
    assert EpisodeReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"prompt": 3}', "\ud800"])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        EpisodeReport.from_json(text)
