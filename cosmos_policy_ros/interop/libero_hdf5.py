"""Windows of episodes in HDF5 files, in the two layouts that the released LIBERO data set has.

A file of demonstrations holds many, ``data/demo_<i>``, and its name is their task; a rollout has a
file of its own that says its task and whether it succeeded. Images were turned upright and went
through JPEG before they were stored. Any image may be missing, as an empty JPEG: no window begins
or ends there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.disk_cache import DiskCache
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.core.untrusted import (
    UnreadableError,
    check_file,
    reading,
    shown,
)
from cosmos_policy_ros.dataset.checks import (
    CheckLimits,
    EpisodeReport,
    Expected,
    Finding,
    prompt_fault,
)
from cosmos_policy_ros.dataset.index_cache import digest_of_code, users_cache
from cosmos_policy_ros.dataset.motion import Motion, measure_motion
from cosmos_policy_ros.interop.hdf5_checks import attribute, find, names_in, try_apart
from cosmos_policy_ros.interop.hdf5_frames import JpegFrames, RawFrames, holds_jpeg
from cosmos_policy_ros.rig.jpeg import from_jpeg
from cosmos_policy_ros.rig.observation import Observation

SUFFIXES = (".hdf5", ".h5", ".he5")
DATA, DEMO = "data", "demo_"
MAX_DEMOS = 10_000
"""Demonstrations of a file; the published ones have 50."""
_DEMONSTRATIONS = "_demo"  # how the name of a file of demonstrations ends
_SCENE = "SCENE"  # in the word of a file's name that stands before the task
_SUCCESS, _SCORE, _TASK = "success", "success_score", "task_description"
_RAW, _JPEG = "", "_jpeg"


@dataclass(frozen=True)
class _Layout:
    """Where one kind of file keeps what, below an episode's group."""

    actions: str
    states: str
    images: Mapping[str, str]

    @property
    def keys(self) -> tuple[str, ...]:
        images = [name + ending for name in self.images.values() for ending in (_RAW, _JPEG)]
        return self.actions, self.states, *images


_OF_DEMONSTRATIONS = _Layout(
    "actions",
    "robot_states",
    {"wrist": "obs/eye_in_hand_rgb", "primary": "obs/agentview_rgb"},
)
_OF_ROLLOUTS = _Layout("actions", "proprio", {"wrist": "wrist_images", "primary": "primary_images"})


@dataclass(frozen=True)
class Hdf5Windows:
    """Random access to the windows of one episode; has what :class:`Windows` asks for.

    Attributes:
        file: that it is in.
        group: below which it is, "" for the whole file.
        prompt: the task in words.
        success: whether it succeeded; None where the file does not say.
        score: in [0, 1], of a rollout; None likewise.
        actions: (n, action) float64, as stored: what was done at each step.
        states: (n, proprio) float64, as stored: the proprioception before that.
        images: path of each camera's images below the group, by role.
        has_images: (n,) whether there is an image of every camera.
        dt: seconds per step.
    """

    file: Path
    group: str
    prompt: str
    success: bool | None
    score: float | None
    actions: Array
    states: Array
    images: Mapping[str, str]
    has_images: NDArray[np.bool_]
    dt: float

    @property
    def id(self) -> str:
        """The file's name and the episode's in it: unique within a data set."""
        return self.path.name

    @property
    def path(self) -> Path:
        """The file, and behind it the episode in there, for messages."""
        inside = self.group.removeprefix(f"{DATA}/")
        return self.file.with_name(f"{self.file.name}:{inside}") if inside else self.file

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 (hex) over what was done and measured."""
        return hashlib.sha256(self.actions.tobytes() + self.states.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.actions)

    def state(self, step: int) -> Array:
        """Return the (proprio,) state at a step."""
        row: Array = self.states[step]
        return row

    def chunk(self, step: int, chunk_steps: int) -> Array:
        """Return the (K, action) actions from a step on; the last one is repeated past the end."""
        return self.actions[np.minimum(np.arange(step, step + chunk_steps), len(self) - 1)]

    def future(self, step: int, chunk_steps: int) -> int:
        """Return the step of s': K steps later, or the episode's last one."""
        return min(step + chunk_steps, len(self) - 1)

    def usable(self, chunk_steps: int) -> NDArray[np.bool_]:
        """Return per step (n,) whether there are images there and at the window's end."""
        last = np.minimum(np.arange(len(self)) + chunk_steps, len(self) - 1)
        return self.has_images & self.has_images[last]

    def at(self, step: int) -> Observation:
        """Return the observation at a step, its images upright.

        Raises:
            ObservationError: there is no image.
            RolloutError: the file is damaged there.
        """
        if not self.has_images[step]:
            raise ObservationError(f"{self.path}: step {step} has no image")
        images = {}
        with _opened(self.file) as file:
            for role, key in self.images.items():
                path = f"{self.group}/{key}".lstrip("/")
                frames = _frames(file, path, os.fstat(file.id.get_vfd_handle()).st_size)
                (image,) = frames.rows([step])
                images[role] = from_jpeg(image) if isinstance(image, bytes) else image
        stamp_ns = round(step * self.dt * NS_PER_S)
        return Observation(stamp_ns, images, self.states[step], {}, stored=True)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    with reading(path, "HDF5", RolloutError, "copy it again, or leave it out"):
        check_file(path)
        with h5py.File(path, "r") as file:
            yield file


def find_files(folder: Path) -> list[Path]:
    """Return the HDF5 files below a folder, by name."""
    return sorted(
        Path(place, name)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES)
    )


def digest_of_file(path: Path) -> str:
    """Return a sha256 (hex) of a file, as far as name, size and time of change tell, and of code.

    Raises:
        RolloutError: it is not there, or no file.
    """
    with reading(path, "HDF5", RolloutError):
        check_file(path)
        status = path.stat()
    about = [str(path.resolve()), status.st_size, status.st_mtime_ns, digest_of_code("interop")]
    return hashlib.sha256(json.dumps(about).encode(errors="surrogateescape")).hexdigest()


def read_windows(
    path: Path, dt: float, cache: DiskCache | None = None
) -> list[tuple[Path, Hdf5Windows | RolloutError]]:
    """Read all but the images of every episode of a file.

    Args:
        path: of the file.
        dt: seconds per step; the layouts do not say.
        cache: by default the user's; it holds which files were read to their end before.

    Returns:
        Each episode, or why it cannot be read, behind the path that names it.

    Raises:
        RolloutError: the file cannot be read, or holds no episode.
    """
    digest = digest_of_file(path)
    with reading(path, "HDF5", RolloutError, "copy it again, or leave it out"):
        _try(path, digest, cache or users_cache())
        with h5py.File(path, "r") as file:
            size = os.fstat(file.id.get_vfd_handle()).st_size
            if isinstance(find(file, DATA), h5py.Group):
                groups, layout = _demonstrations(file), _OF_DEMONSTRATIONS
                prompt = task_of(path.name)
            else:
                groups, layout = [""], _OF_ROLLOUTS
                prompt = ""
            found: list[tuple[Path, Hdf5Windows | RolloutError]] = []
            for group in groups:
                inside = group.removeprefix(f"{DATA}/")
                name = path.with_name(f"{path.name}:{inside}") if inside else path
                try:
                    with reading(name, "an episode", RolloutError, "leave it out"):
                        found.append((name, _read(file, path, group, layout, prompt, dt, size)))
                except RolloutError as error:
                    found.append((name, error))
    return found


def _try(path: Path, digest: str, cache: DiskCache) -> None:
    """Read a file once where it can do no harm, unless it was before and has not changed."""
    if cache.find(digest) is not None:
        return
    keys = [*_OF_ROLLOUTS.keys, f"{DATA}/*"]
    below = [f"{DATA}/*/{key}" for key in _OF_DEMONSTRATIONS.keys]
    try_apart(path, path.stat().st_size, [*keys, *below], (_SUCCESS, _SCORE, _TASK))
    with suppress(OSError), cache.making(digest) as draft:
        draft.write_text("read to its end\n", encoding="utf-8")


def _demonstrations(file: h5py.File) -> list[str]:
    names = list(file[DATA])
    numbers = {
        int(name[len(DEMO) :])
        for name in names
        if name.startswith(DEMO) and name[len(DEMO) :].isdecimal() and len(name) < 20
    }
    if not numbers:
        raise UnreadableError(f"/{DATA} holds no {DEMO}0, {DEMO}1 …, but {names_in(file[DATA])}")
    if len(numbers) > MAX_DEMOS:
        raise UnreadableError(
            f"/{DATA} holds {len(numbers)} episodes, at most {MAX_DEMOS} are read"
        )
    return [f"{DATA}/{DEMO}{number}" for number in sorted(numbers)]


def task_of(name: str) -> str:
    """Return the task that the name of a file of demonstrations spells.

    "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5" is "turn on the stove".
    """
    words = Path(name).stem.removesuffix(_DEMONSTRATIONS).split("_")
    scene = max((index for index, word in enumerate(words) if _SCENE in word), default=-1)
    return " ".join(words[scene + 1 :])


def _read(
    file: h5py.File, path: Path, group: str, layout: _Layout, prompt: str, dt: float, size: int
) -> Hdf5Windows:
    def full(key: str) -> str:
        return f"{group}/{key}".lstrip("/")

    actions = _numbers(file, full(layout.actions))
    states = _numbers(file, full(layout.states))
    success: bool | None = None
    score: float | None = None
    if not group:
        prompt = _text(file, _TASK)
        if _SUCCESS in file.attrs:
            success = bool(_number(file, _SUCCESS))
            score = _number(file, _SCORE) if _SCORE in file.attrs else float(success)
            if not 0 <= score <= 1:
                raise UnreadableError(f"attribute {_SCORE}: is {score:g}, expected 0 to 1")
    images, present = {}, np.ones(len(actions), bool)
    for role, name in layout.images.items():
        keys = [name + ending for ending in (_RAW, _JPEG) if find(file, full(name + ending))]
        if not keys:
            raise UnreadableError(
                f"has neither /{full(name)} nor /{full(name)}{_JPEG}, which {role} images are "
                f"read from; it holds {names_in(find(file, full(name).rpartition('/')[0]) or file)}"
            )
        images[role] = keys[0]
        frames = _frames(file, full(keys[0]), size)
        lengths = {
            f"/{full(layout.actions)}": len(actions),
            f"/{full(layout.states)}": len(states),
            f"/{full(keys[0])}": frames.count,
        }
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{key} has {rows}" for key, rows in lengths.items())
            raise UnreadableError(f"rows differ: {listed}; each step needs one of each")
        if isinstance(frames, JpegFrames) and frames.dataset.dtype.kind == "O":
            for row in range(frames.count):
                present[row] &= len(frames.dataset[row]) > 0
    return Hdf5Windows(path, group, prompt, success, score, actions, states, images, present, dt)


def _numbers(file: h5py.File, key: str) -> Array:
    """Return a data set of rows, as the released trainer takes it: through float32."""
    found = find(file, key)
    if not isinstance(found, h5py.Dataset):
        above = find(file, key.rpartition("/")[0]) if "/" in key else file
        raise UnreadableError(f"has no /{key}; it holds {names_in(above)}")
    if found.ndim != 2 or found.dtype.kind not in "fiu" or 0 in found.shape:
        raise UnreadableError(f"/{key}: is {found.dtype} {found.shape}, expected numbers (T, n)")
    values: Array = found[()].astype(np.float32).astype(np.float64)
    return values


def _text(file: h5py.File, name: str) -> str:
    value = attribute(file, name) if name in file.attrs else ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _number(file: h5py.File, name: str) -> float:
    value = np.asarray(attribute(file, name))
    if value.size != 1 or value.dtype.kind not in "biuf" or not np.isfinite(value).all():
        raise UnreadableError(f"attribute {name}: is '{shown(str(value))}', expected one number")
    return float(value.item())


def _frames(file: h5py.File, key: str, size: int) -> JpegFrames | RawFrames:
    dataset = find(file, key)
    where = f"{file.filename}: /{key}"
    if not isinstance(dataset, h5py.Dataset):
        raise UnreadableError(f"has no /{key}")
    return JpegFrames(dataset, where, size) if holds_jpeg(dataset) else RawFrames(dataset, where)


# ---------------------------------------------------------------- what the checks find


def judge(windows: Hdf5Windows, limits: CheckLimits, expected: Expected) -> EpisodeReport:
    """Hold an episode against a checkpoint, as far as it can be without a rig's description.

    Raises:
        RolloutError: the file is damaged.
    """
    reasons: list[Finding] = []
    if fault := prompt_fault(windows.prompt, expected):
        reasons.append(Finding("prompt", fault))
    for what, values, dims in (
        ("actions", windows.actions, expected.action_dims),
        ("states", windows.states, expected.proprio_dims),
    ):
        if values.shape[1] != dims:
            text = f"its {what} have {values.shape[1]} numbers, the checkpoint takes {dims}"
            reasons.append(Finding("finite", text))
        elif not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            reasons.append(Finding("finite", f"its {what} are not finite at step {row}"))
    absent = [role for role in expected.cameras if role not in windows.images]
    if absent:
        text = f"has no images of camera {', '.join(absent)}, which the checkpoint takes"
        reasons.append(Finding("windows", text))
    count = len(windows)
    if count < expected.chunk_steps:
        text = f"is {count} steps long, which is less than one chunk of {expected.chunk_steps}"
        reasons.append(Finding("length", text))
    elif not windows.usable(expected.chunk_steps).any():
        text = f"has no usable window among its {count} steps"
        reasons.append(Finding("windows", text))
    sizes: dict[str, tuple[tuple[int, ...], ...]] = {}
    if not reasons:
        sizes, faults = _look(windows, limits)
        reasons += faults
    states = actions = None
    if not any(each.check == "finite" for each in reasons):
        times_ns = np.round(np.arange(count) * windows.dt * NS_PER_S).astype(np.int64)
        motion = Motion(times_ns, windows.states, windows.actions, windows.dt)
        states = measure_motion(motion, windows.states)
        actions = measure_motion(motion, windows.actions)
    return EpisodeReport(
        prompt=windows.prompt,
        steps=count,
        seconds=count * windows.dt,
        joints=(),
        tick=(),
        reasons=tuple(reasons),
        states=states,
        actions=actions,
        sizes=sizes,
    )


def _look(
    windows: Hdf5Windows, limits: CheckLimits
) -> tuple[dict[str, tuple[tuple[int, ...], ...]], list[Finding]]:
    """Decode some images; return each camera's sizes, and what is wrong with them."""
    there = np.flatnonzero(windows.has_images)
    chosen = there[np.linspace(0, len(there) - 1, min(limits.images, len(there))).astype(int)]
    sizes: dict[str, dict[tuple[int, ...], None]] = {role: {} for role in windows.images}
    unusable: dict[str, int] = dict.fromkeys(windows.images, 0)
    for step in chosen:
        seen = windows.at(int(step))
        for role, image in seen.images.items():
            sizes[role][image.shape[:2]] = None
            unusable[role] += float(image.std()) < limits.least_contrast
    faults = [
        Finding(
            "images", f"{role}: {bad} of {len(chosen)} images that were looked at are of one colour"
        )
        for role, bad in unusable.items()
        if bad > limits.most_unusable * len(chosen)
    ]
    return {role: tuple(found) for role, found in sizes.items()}, faults
