"""One episode held against its rig and a checkpoint before anything is learnt from it.

GO, or NO-GO with every reason, and what is odd about it. Training leaves out what is NO-GO, and
``cosmos dataset check`` tells it beforehand; both see what :class:`EpisodeWindows` would teach.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.core.config import from_mapping, load_config
from cosmos_policy_ros.core.errors import ConfigError, ObservationError, RolloutError
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.core.untrusted import parse_json, reading, shown
from cosmos_policy_ros.dataset.motion import Measures, Motion, measure_motion
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.quality import PRIMARY
from cosmos_policy_ros.model.statistics import ASPECT_TOLERANCE, check_images
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, ARMS, GRIPPER_INDICES, STATE_DIM
from cosmos_policy_ros.rig.images import decode_image
from cosmos_policy_ros.rig.spec import Camera, RigSpec
from cosmos_policy_ros.rig.unit_check import describe_faults, unit_faults

JOINTS = np.setdiff1d(np.arange(STATE_DIM), GRIPPER_INDICES)
"""Columns of the 14-vector that are angles."""
CANNOT_BE_LEARNED = frozenset(("prompt", "windows", "finite"))
"""Checks whose reasons leave nothing to learn from, whatever a training is told to take."""
_WIDEST_LAG = 1.5  # s before and after the admissible lags that are tried
_LEAST_PAIRS = 25  # of steps; fewer tell no lag
_LEAST_OVERLAP = 0.5  # fraction of an episode's steps; a lag that leaves less is not tried
_MOST_ODD = 1e-3  # fraction of an image's pixels that may be unlike the rest: a lamp, a dead pixel
_MOST_COLOURED = 1e-4  # of a grey image's; a small object far away is of few
_MOST_BRIGHT = 1e-2
_STANDS = 0.2  # fraction of its action's range; an arm's joint that moves less does not follow
_NOT_TAKEN = ("not taken", "left out")  # how an import's notes of what it dropped begin


@dataclass(frozen=True)
class CheckLimits:
    """``config/checks.yaml``.

    Attributes:
        images: looked at per camera and episode.
        most_unusable: fraction of them that may be black, uniform, frozen or unreadable.
        black_level: brightness, 0 to 255, that 99 % of a black image's pixels do not exceed.
        least_contrast: standard deviation of the brightness, 0 to 255, below which an image is
            uniform.
        grey_level: difference between a pixel's colours, 0 to 255, up to which it has none.
        frozen_level: difference of two images, 0 to 255, up to which they are the same.
        moving: rad that a joint must turn to be seen to move.
        state_speed: times the rig's ``max_velocity`` that a state may change by from step to step.
        action_speed: times the same that an action may.
        most_error: rad between a state and its action, median over an episode.
        most_unlike: what the states of a joint that moves by more than ``most_error`` are off their
            actions, without a constant offset, in the actions' own mean deviations.
        most_lag: s by which a state may follow its action.
        lag_gain: fraction to which the error falls at another lag that is believed.
        least_range: ticks of an encoder; a dimension that moves less is named, and widened to it in
            statistics from demonstrations.
        least_episodes: below which nothing is an outlier.
        outlier: robust standard deviations of the logarithm beyond which an episode is one.
        outlier_factor: times the median that it is at least.
    """

    images: int
    most_unusable: float
    black_level: int
    least_contrast: float
    grey_level: int
    frozen_level: int
    moving: float
    state_speed: float
    action_speed: float
    most_error: float
    most_unlike: float
    most_lag: float
    lag_gain: float
    least_range: float
    least_episodes: int
    outlier: float
    outlier_factor: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}: {value} must be above 0")
        for name in ("most_unusable", "lag_gain"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be below 1")
        if self.outlier_factor <= 1:
            raise ValueError(f"outlier_factor: {self.outlier_factor} must be above 1")


def load_check_limits() -> CheckLimits:
    """Read the package's ``checks.yaml``. Raises ConfigError when it is wrong."""
    return load_config(CheckLimits, package_share() / "config" / "checks.yaml")


@dataclass(frozen=True)
class Expected:
    """What a checkpoint takes.

    Attributes:
        chunk_steps: rows of an action chunk.
        camera_size: rows and columns of its training images.
        image_size: pixels per side of the model's square images.
        prompts: that it has an embedding of.
        source: the file that has them, for messages.
        action_dims, proprio_dims: numbers of an action and of a state.
        cameras: roles whose images it takes.
    """

    chunk_steps: int
    camera_size: tuple[int, int]
    image_size: int
    prompts: Collection[str]
    source: str
    action_dims: int = STATE_DIM
    proprio_dims: int = STATE_DIM
    cameras: Collection[str] = ()


@dataclass(frozen=True)
class Finding:
    """One thing about an episode: which check found it, and a sentence."""

    check: str
    text: str


@dataclass(frozen=True)
class EpisodeReport:
    """What the checks found; a plain value, kept as JSON.

    Attributes:
        prompt: the episode's.
        steps: that were executed.
        seconds: that they take.
        joints: (14,) names such as "left/waist"; none where no rig's description says them.
        tick: (14,) one count of each motor's encoder, policy units; none likewise.
        reasons: why it is NO-GO; none is GO.
        warnings: what is odd about it.
        notes: what an import did to it.
        states, actions: None where there is none, or one is not finite.
        sizes: rows and columns of each camera's images, in the order in which they came.
    """

    prompt: str
    steps: int
    seconds: float
    joints: tuple[str, ...]
    tick: tuple[float, ...]
    reasons: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    states: Measures | None = None
    actions: Measures | None = None
    sizes: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    @property
    def go(self) -> bool:
        """Whether it may be learned from."""
        return not self.reasons

    @property
    def text(self) -> str:
        """One line for people: GO, or NO-GO and why."""
        return "GO" if self.go else f"NO-GO: {'; '.join(each.text for each in self.reasons)}"

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EpisodeReport:
        """Read it back. Raises ValueError when it is none."""
        try:
            return from_mapping(cls, parse_json(text), "report")
        except (ConfigError, TypeError, RolloutError) as error:
            raise ValueError(str(error)) from error


def judge_episode(
    windows: EpisodeWindows,
    motion: Motion,
    limits: CheckLimits,
    *,
    expected: Expected | None = None,
    rig: RigSpec | None = None,
) -> EpisodeReport:
    """Judge an episode.

    Args:
        windows: of the episode.
        motion: read from them.
        limits: of ``checks.yaml``.
        expected: of the checkpoint that is to learn from it; None for none.
        rig: whose limits count; by default the episode's own.

    Raises:
        RolloutError: the bag is damaged.
    """
    # The bag defines its messages itself, and may have put anything into them.
    with reading(windows.episode.path, "an episode", RolloutError, VERIFY):
        return _judge(windows, motion, limits, expected, rig or windows.rig.rig)


def _judge(
    windows: EpisodeWindows,
    motion: Motion,
    limits: CheckLimits,
    expected: Expected | None,
    rig: RigSpec,
) -> EpisodeReport:
    episode, prompt = windows.episode, windows.episode.metadata.prompt
    reasons: list[Finding] = []
    warnings: list[Finding] = []
    if not episode.quality.go:
        reasons += [Finding("recording", reason) for reason in episode.quality.reasons]
    if fault := prompt_fault(prompt, expected):
        reasons.append(Finding("prompt", fault))
    notes = [note for note in episode.source_notes.split("; ") if note]
    warnings += [Finding("source", note) for note in notes if note.startswith(_NOT_TAKEN)]
    chunk_steps = expected.chunk_steps if expected else rig.rates.chunk_steps
    reasons += _length(windows, motion, chunk_steps)
    measured = motion.states[np.isfinite(motion.states).all(axis=1)]
    finite = bool(np.isfinite(motion.actions).all())
    states = actions = None
    if not finite:
        row = int(np.flatnonzero(~np.isfinite(motion.actions).all(axis=1))[0])
        reasons.append(Finding("finite", f"the action of step {row} is not finite"))
    if len(motion) and not len(measured):
        reasons.append(Finding("windows", _no_state(windows)))
    elif len(motion) and finite:
        states, actions = (
            measure_motion(motion, motion.states),
            measure_motion(motion, motion.actions),
        )
        units = describe_faults(unit_faults(rig, {"state": measured, "action": motion.actions}))
        reasons += [Finding("units", units)] if units else []
        reasons += [Finding("jump", text) for text in _jumps(motion, rig, limits)]
        # Values of another unit follow nothing, jump anyhow, and stand or move by other measures.
        if not units:
            reasons += [Finding("following", text) for text in _unfollowed(motion, rig, limits)]
            if idle := describe_idle(rig.joint_names, rig.tick, states, actions, limits):
                warnings.append(Finding("idle", idle))
    looks = _look(windows, motion, limits)
    for check, text, refused in _judge_images(looks, motion, rig, limits):
        (reasons if refused else warnings).append(Finding(check, text))
    sizes = {
        role: tuple(dict.fromkeys(each.size for each in seen if each.size is not None))
        for role, seen in looks.items()
    }
    for text, refused in _judge_sizes(sizes, rig, expected):
        (reasons if refused else warnings).append(Finding("size", text))
    return EpisodeReport(
        prompt=prompt,
        steps=len(motion),
        seconds=len(motion) * motion.dt,
        joints=rig.joint_names,
        tick=tuple(rig.tick.tolist()),
        reasons=tuple(reasons),
        warnings=tuple(warnings),
        notes=tuple(note for note in notes if not note.startswith(_NOT_TAKEN)),
        states=states,
        actions=actions,
        sizes=sizes,
    )


def prompt_fault(prompt: str, expected: Expected | None) -> str:
    """Return what is wrong with a prompt, "" for nothing."""
    if not prompt.strip():
        return "its prompt is empty: nothing tells the policy what to do; import it with --prompt"
    if not prompt.isprintable():
        return f"its prompt '{shown(prompt)}' has characters that cannot be shown"
    if expected is not None and prompt not in expected.prompts:
        return (
            f"its prompt '{shown(prompt)}' has no embedding in {expected.source}; "
            f"'cosmos embed-prompts' adds one"
        )
    return ""


def describe_idle(
    joints: Sequence[str],
    tick: Array,
    states: Measures,
    actions: Measures,
    limits: CheckLimits,
) -> str:
    """Name the dimensions that hardly move in state and action, "" for none."""
    moved = np.maximum(states.range, actions.range) / tick
    idle = moved < limits.least_range
    if not idle.any():
        return ""
    named = []
    for index, side in enumerate(ARMS):
        part = slice(index * ARM_DIM, (index + 1) * ARM_DIM)
        if idle[part].all():
            named.append(f"the {side} arm (at most {moved[part].max():.0f})")
        else:
            which = (np.flatnonzero(idle[part]) + part.start).tolist()
            named += [f"{joints[at]} ({moved[at]:.0f})" for at in which]
    return f"hardly moved, in ticks of the encoder: {', '.join(named)}"


# ---------------------------------------------------------------- motion


def _length(windows: EpisodeWindows, motion: Motion, chunk_steps: int) -> Iterator[Finding]:
    if not len(motion):
        yield Finding("windows", "holds no executed step")
    elif len(motion) < chunk_steps:
        yield Finding(
            "length",
            f"is {len(motion)} steps long ({len(motion) * motion.dt:.1f} s), which is less than "
            f"one chunk of {chunk_steps}",
        )
    elif not windows.usable(chunk_steps).any():
        yield Finding("windows", f"has no usable window among its {len(motion)} steps")


def _no_state(windows: EpisodeWindows) -> str:
    """Say why no state could be read, in the words of the moment in the middle."""
    try:
        windows.observe(int(windows.steps.times_ns[len(windows) // 2]))
    except ObservationError as error:
        return f"has no usable state at any step: {error}"
    return "has no usable state at any step"


def _jumps(motion: Motion, rig: RigSpec, limits: CheckLimits) -> Iterator[str]:
    """Name the largest change between two steps, of states and of actions, that no arm can make."""
    steps = motion.pairs(1)
    for what, values, factor in (
        ("state", motion.states, limits.state_speed),
        ("action", motion.actions, limits.action_speed),
    ):
        change = np.nan_to_num(np.abs(values[steps + 1] - values[steps])[:, JOINTS])
        most = factor * rig.max_velocity[JOINTS] * motion.dt
        too_far = change > most
        if not too_far.any():
            continue
        row, joint = np.unravel_index(int((change / most).argmax()), change.shape)
        others = int(too_far.any(axis=1).sum()) - 1
        yield (
            f"{what}: {rig.joint_names[JOINTS[joint]]} jumps by {change[row, joint]:.3g} rad at "
            f"step {steps[row] + 1}, where no arm gets further than {most[joint]:.2g} in "
            f"{motion.dt:g} s{f', and at {others} more steps' if others else ''}"
        )


def _unfollowed(motion: Motion, rig: RigSpec, limits: CheckLimits) -> Iterator[str]:
    """Say where the arms do not go where they are told to, or at another time."""
    states, actions = motion.states[:, JOINTS], motion.actions[:, JOINTS]
    names = [rig.joint_names[at] for at in JOINTS]
    goes, told = (np.nanmax(each, axis=0) - np.nanmin(each, axis=0) for each in (states, actions))
    moving = (told > limits.moving) & (goes > limits.moving)

    def errors_at(lag: int) -> tuple[float, Array, Array]:
        """Return the error of most moving joints, offsets apart; per joint that, and with offsets.

        An action is due a step after its state was seen; ``lag`` counts from there.
        """
        first = motion.pairs(lag + 1)
        off = states[first + lag + 1] - actions[first]
        off = off[np.isfinite(off).all(axis=1)]
        if len(off) < max(_LEAST_PAIRS, _LEAST_OVERLAP * len(motion)):
            return np.inf, np.zeros(len(JOINTS)), np.zeros(len(JOINTS))
        # A constant offset is no matter of time, nor is a single joint that does something else.
        timed = np.abs(off - np.median(off, axis=0)).mean(axis=0)
        together = float(np.median(timed[moving])) if moving.any() else 0.0
        return together, timed, np.median(np.abs(off), axis=0)

    most, widest = (round(each / motion.dt) for each in (limits.most_lag, _WIDEST_LAG))
    errors = {lag: errors_at(lag) for lag in range(-widest, most + widest + 1)}
    within = {lag: errors[lag][0] for lag in range(most + 1)}
    best = min(within, key=lambda lag: within[lag])
    anywhere = min(errors, key=lambda lag: errors[lag][0])
    least = limits.lag_gain * within[best]
    if errors[anywhere][0] < least and within[best] > 3 * rig.tick[0] and moving.any():
        when = f"{abs(anywhere) * motion.dt:.2f} s {'before' if anywhere < 0 else 'after'}"
        yield (
            f"the states do what the actions say {when} these are due (0 to {limits.most_lag:g} s "
            f"after is expected): states and actions are paired wrongly, or stamped by two clocks"
        )
        return  # at a wrong lag all errors are large
    still = (told > limits.most_error) & (goes < _STANDS * told)
    if still.any():
        listed = ", ".join(
            f"{names[at]} {goes[at]:.2g} of {told[at]:.2g}" for at in np.flatnonzero(still)
        )
        yield f"joints do not do what they are told; rad moved, of those in the actions: {listed}"
    _, timed, off = errors[best]
    far = np.flatnonzero((off > limits.most_error) & ~still)
    if len(far):
        listed = ", ".join(f"{names[at]} {off[at]:.2f}" for at in far)
        yield (
            f"the states are off their actions by more than {limits.most_error:g} rad for half of "
            f"the time: {listed}; are these the same arms, in the same order and unit?"
        )
    own = np.abs(actions - np.median(actions, axis=0)).mean(axis=0)
    large = (told > limits.most_error) & (goes > limits.most_error)
    other = np.flatnonzero(large & (timed > limits.most_unlike * own))
    if len(other):
        yield (
            f"the states are no more like their actions than any others: "
            f"{', '.join(names[at] for at in other)}; are these the same arms, in the same order?"
        )


# ---------------------------------------------------------------- images


class _Seen(NamedTuple):
    """One image that was looked at.

    Attributes:
        step: at which it is the newest.
        size: rows and columns; None where it cannot be read.
        fault: "black", "of one colour" or "unreadable"; "" for none.
        error: of one that cannot be read.
        grey: whether it has no colours.
        same: as the one looked at before.
    """

    step: int
    size: tuple[int, int] | None
    fault: str
    error: str = ""
    grey: bool = False
    same: bool = False


_Looks = Mapping[str, Sequence[_Seen]]


def _look(windows: EpisodeWindows, motion: Motion, limits: CheckLimits) -> _Looks:
    """Decode some images of each camera, as a training would; returns them by role."""
    count = min(limits.images, len(motion))
    steps = np.unique(np.linspace(0, len(motion) - 1, count).astype(int)).tolist() if count else []
    cameras: dict[str, Camera] = {camera.role: camera for camera in windows.rig.rig.cameras}
    found: dict[str, list[_Seen]] = {}
    for name, role in windows.rig.cameras.items():
        topic, camera, seen = windows.topics[name], cameras[role], found.setdefault(role, [])
        before, last = np.zeros((0, 0, 3), np.uint8), -1
        for step in steps:
            index = topic.newest(int(motion.times_ns[step]))
            if index == last:
                continue
            last = index
            message = windows.image(name, index)
            try:
                if (encoding := getattr(message, "encoding", "")) not in ("", *camera.encodings):
                    accepted = ", ".join(camera.encodings)
                    raise ObservationError(
                        f"{name}: encoding '{shown(encoding)}' is not accepted (rig file: "
                        f"{accepted})"
                    )
                pixels = decode_image(message, name, grey=camera.grey, size=camera.size)
            except ObservationError as error:
                seen.append(_Seen(step, None, "unreadable", str(error)))
                continue
            seen.append(_describe(step, pixels, before, limits))
            before = pixels
    return found


def _describe(
    step: int, pixels: NDArray[np.uint8], before: NDArray[np.uint8], limits: CheckLimits
) -> _Seen:
    """Tell what is wrong with (H, W, 3) RGB; ``before`` is the image looked at before."""
    brightness = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    fault = ""
    if (brightness > limits.black_level).mean() <= _MOST_BRIGHT:
        fault = "black"
    elif brightness.std() < limits.least_contrast:
        fault = "of one colour"
    red, green, blue = cv2.split(pixels)
    spread = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    grey = bool((spread > limits.grey_level).mean() <= _MOST_COLOURED)
    same = False
    if before.shape == pixels.shape:
        changed = (cv2.absdiff(pixels, before) > limits.frozen_level).any(axis=-1)
        same = bool(changed.mean() <= _MOST_ODD)
    return _Seen(step, (pixels.shape[0], pixels.shape[1]), fault, "", grey, same)


def _judge_images(
    looks: _Looks, motion: Motion, rig: RigSpec, limits: CheckLimits
) -> Iterator[tuple[str, str, bool]]:
    """Yield the check, a text, and whether it is a reason, of everything wrong with cameras."""
    greys = {camera.role for camera in rig.cameras if camera.grey}
    colourless = []
    for role, seen in looks.items():
        for fault in ("black", "of one colour", "unreadable"):
            faulty = [each for each in seen if each.fault == fault]
            if faulty:
                why = f", the first: {faulty[0].error}" if faulty[0].error else ""
                text = f"{role}: {len(faulty)} of {len(seen)} images looked at are {fault}{why}"
                yield "images", text, len(faulty) > limits.most_unusable * len(seen)
        good = [each for each in seen if not each.fault]
        if good and all(each.grey for each in good) and role not in greys:
            colourless.append(role)
        yield from _judge_frozen(role, seen, motion, limits)
    if colourless:
        text = f"{', '.join(colourless)}: all images looked at are grey, without any colour"
        # What a wrist camera sees may have none; the whole scene has some.
        yield "images", text, PRIMARY in colourless


def _judge_frozen(
    role: str, seen: Sequence[_Seen], motion: Motion, limits: CheckLimits
) -> Iterator[tuple[str, str, bool]]:
    """Compare each image with the one before it; of a wrist, only its own arm must have moved."""
    sides = [side for side in ARMS if role.startswith(side)] or list(ARMS)
    columns = [ARMS.index(side) * ARM_DIM + joint for side in sides for joint in range(ARM_JOINTS)]
    pairs = [
        (one, two)
        for one, two in pairwise(seen)
        if one.size is not None and one.size == two.size and two.fault != "black"
    ]
    turned = [np.abs(motion.states[b.step] - motion.states[a.step])[columns] for a, b in pairs]
    # NaN, where an arm had not reported, is not above the limit.
    moved = [pair for pair, way in zip(pairs, turned, strict=True) if (way > limits.moving).any()]
    if same := sum(later.same for _, later in moved):
        whose = "the arms move" if len(sides) > 1 else f"the {sides[0]} arm moves"
        text = (
            f"{role}: {same} of {len(moved)} images looked at are the ones before them, while "
            f"{whose}: the camera was frozen"
        )
        yield "images", text, same > limits.most_unusable * len(moved)
    elif pairs and not moved and all(later.same for _, later in pairs):
        yield (
            "images",
            f"{role}: shows the same image throughout, while nothing moves in front of it",
            False,
        )


def _judge_sizes(
    sizes: Mapping[str, tuple[tuple[int, ...], ...]], rig: RigSpec, expected: Expected | None
) -> Iterator[tuple[str, bool]]:
    """Yield a text, and whether it is a reason, of several sizes, or another aspect ratio."""
    known = {role: found for role, found in sizes.items() if found}
    for role, found in known.items():
        if len(found) > 1:
            listed = ", then ".join(f"{rows}x{columns}" for rows, columns in found)
            text = f"{role}: its images change their size: {listed} (rows x columns)"
            yield text, differ_in_aspect(found)
    firsts = {role: (found[0][0], found[0][1]) for role, found in known.items()}
    free = {camera.role for camera in rig.cameras if camera.any_aspect}
    shapes = {role: size for role, size in firsts.items() if role not in free}
    if differ_in_aspect(list(shapes.values())):
        listed = ", ".join(f"{role} {rows}x{columns}" for role, (rows, columns) in shapes.items())
        yield f"cameras of several aspect ratios: {listed} (rows x columns)", False
    if expected is None:
        return
    square = (expected.image_size, expected.image_size)
    cameras = {role: size for role, size in firsts.items() if size != square}  # squeezed before
    if cameras:
        check = check_images(cameras, expected.camera_size, rig)
        if not check.passed:
            yield check.found, False


def differ_in_aspect(sizes: Sequence[Sequence[int]]) -> bool:
    """Return whether images of such (rows, columns) are squeezed differently into a square."""
    aspects = [columns / rows for rows, columns in sizes]
    return bool(aspects) and max(aspects) / min(aspects) > 1 + ASPECT_TOLERANCE
