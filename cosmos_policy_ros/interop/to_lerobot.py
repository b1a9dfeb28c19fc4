"""Bags become a LeRobot v3 data set, written by LeRobot's own library.

The library is an optional extra and the only one here that brings torch, so it is imported when a
data set is made and not before.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.task import FULL_SCORE
from cosmos_policy_ros.dataset.windows import ExecutedEpisode
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.interop.camera_names import ALOHA
from cosmos_policy_ros.interop.lerobot_episode import ACTION, IMAGES, SCORE, STATE, SUCCESS
from cosmos_policy_ros.rig.arms import STATE_DIM

Images = Literal["video", "image"]


@dataclass(frozen=True)
class Exported:
    """What became of an episode: its number, its frames, and why steps are missing."""

    index: int
    frames: int
    left_out: tuple[str, ...]


def load_library() -> Any:
    """Return the class ``LeRobotDataset``.

    Raises:
        RolloutError: LeRobot is not installed, cannot be imported, or is too old for v3.
    """
    advice = "install this package with the extra 'lerobot', best in an environment of its own"
    try:
        found = import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    except ModuleNotFoundError as error:
        raise RolloutError(
            f"LeRobot's library is not installed here (no module '{error.name}'); {advice}"
        ) from error
    except Exception as error:  # an installation that does not fit may raise anything
        raise RolloutError(f"LeRobot's library cannot be imported: {error}; {advice}") from error
    if not hasattr(found, "finalize"):
        raise RolloutError(f"LeRobot's library is too old to write v3 data sets; {advice}")
    return found


class LibraryError(RolloutError):
    """LeRobot's library refused something; its data set is not whole and takes nothing more."""


class LeRobotExport:
    """One data set, to which episodes of one rig and one size of images are added.

    As a context it is closed at the end; one without an episode is removed again.
    """

    def __init__(
        self, folder: Path, first: Episode, *, repo_id: str = "", images: Images, scored: bool
    ) -> None:
        """Make the data set.

        Args:
            folder: for it; must not exist.
            first: like those to be added; its rig and images tell the features.
            repo_id: its name on a hub; "" for "local/<folder>".
            images: as videos, or as single images.
            scored: with every episode's score and success in each frame.

        Raises:
            RolloutError: no library, the folder exists, or the episode cannot be looked at.
            LibraryError: the library refused.
        """
        library = load_library()
        source = ExecutedEpisode(first)
        step = next(iter(source), None)
        if step is None:
            raise RolloutError(f"{first.path}: no step can be looked at: {source.left_out[0]}")
        self._folder, self._scored, self._count = folder, scored, 0
        self._rate = source.rig.rates.control
        self._shapes = {role: step.images[role].shape for role in ALOHA}
        names = list(source.rig.joint_names)
        features: dict[str, dict[str, Any]] = {
            key: {"dtype": "float32", "shape": (STATE_DIM,), "names": names}
            for key in (STATE, ACTION)
        }
        for role, camera in ALOHA.items():
            features[IMAGES + camera] = {
                "dtype": images,
                "shape": self._shapes[role],
                "names": ["height", "width", "channels"],
            }
        if scored:
            features[SCORE] = {"dtype": "float32", "shape": (1,), "names": None}
            features[SUCCESS] = {"dtype": "bool", "shape": (1,), "names": None}
        if folder.exists():
            raise RolloutError(f"{folder}: exists already; give a new folder")
        with self._library():
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._data: Any = library.create(
                repo_id=repo_id or f"local/{folder.name}",
                fps=round(self._rate),
                features=features,
                root=folder,
                robot_type="aloha",
                use_videos=images == "video",
                video_backend="pyav",  # by default it looks for torchcodec, which needs an FFmpeg
            )

    def __enter__(self) -> LeRobotExport:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, LibraryError):
            return
        with self._library():
            self._data.finalize()
        if not self._count:
            # Made by this object in a place where nothing was before.
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, episode: Episode) -> Exported:
        """Add an episode; of one that fails nothing stays in the data set.

        Raises:
            RolloutError: it is damaged or unscored, its rate or images are not the first's, or
                no step of it can be looked at.
            LibraryError: the library refused.
        """
        source = ExecutedEpisode(episode)
        try:
            frames = self._add_frames(source)
        except LibraryError:
            raise
        except BaseException:
            with self._library():
                self._data.clear_episode_buffer()
            raise
        with self._library():
            self._data.save_episode()
        self._count += 1
        return Exported(self._count - 1, frames, tuple(source.left_out))

    def _add_frames(self, source: ExecutedEpisode) -> int:
        bag, score = source.episode.path, source.episode.score
        labels: dict[str, Any] = {"task": source.episode.metadata.prompt}
        if self._scored:
            if score is None:
                raise RolloutError(f"{bag}: has no score, and the data set has one per frame")
            labels[SCORE] = np.array([score.points / FULL_SCORE], np.float32)
            labels[SUCCESS] = np.array([score.success])
        rate, wanted = source.rig.rates.control, self._rate
        if rate != wanted:
            raise RolloutError(
                f"{bag}: has {rate:g} steps per second, the data set {wanted:g}; export it into "
                f"another"
            )
        frames = 0
        for step in source:
            for role, shape in self._shapes.items():
                height, width, _ = step.images[role].shape
                if step.images[role].shape != shape:
                    raise RolloutError(
                        f"{bag}: camera {role} has {width}x{height} pixels, the data set "
                        f"{shape[1]}x{shape[0]}; export it into another"
                    )
            images = {IMAGES + camera: step.images[role] for role, camera in ALOHA.items()}
            state, action = step.state.astype(np.float32), step.action.astype(np.float32)
            with self._library():
                self._data.add_frame({STATE: state, ACTION: action, **images, **labels})
            frames += 1
        if not frames:
            raise RolloutError(f"{bag}: no step can be looked at: {source.left_out[0]}")
        return frames

    @contextmanager
    def _library(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library's own checks, the disk, the video encoder
            raise LibraryError(
                f"{self._folder}: LeRobot's library refused: {type(error).__name__}: {error}; the "
                f"data set is not whole: delete it and export again"
            ) from error
