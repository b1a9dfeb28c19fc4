"""An episode that is kept as rows at a rate, whatever the format: what it must have to be imported.

A format's reader makes one, and :mod:`to_bag` makes messages of its rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.jpeg import ImageArray
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.interop.foreign_episode import SourceMetadata
from cosmos_policy_ros.interop.source_rate import Grid, Pace, control_grid

Floats = NDArray[np.float64]
Kind = Literal["raw", "jpeg", "video"]

MAX_ROWS = 100_000
"""Steps of an episode; half an hour at 50 Hz."""
LEAST_ROWS = 2
MAX_PIXELS = 1 << 24
"""An image's most pixels; twice those of a 4K camera."""
_STANDS = 1e-3  # what moves by less stands still, in any unit of a robot's
_SPEED_NAMES = ("base", "vel", "twist")  # of things whose numbers are speeds: those but 0 move


class Frames(Protocol):
    """All images of one camera; none is kept longer than it is asked for.

    Attributes:
        count: images.
        where: names the camera in messages.
        kind: how they are kept. Of "raw" and "video" each image is (H, W, 3) RGB; of "jpeg" it is
            a whole JPEG file, or pixels where it was none or its colours were put right.
    """

    @property
    def count(self) -> int: ...  # noqa: D102

    @property
    def where(self) -> str: ...  # noqa: D102

    @property
    def kind(self) -> Kind: ...  # noqa: D102

    def rows(self, rows: Iterable[int]) -> Iterator[ImageArray]:
        """Yield the images of these rows, ascending, and look at the rest of a video before ending.

        Raises:
            RolloutError: an image is damaged, or a video is not as long as it should be.
        """


@dataclass(frozen=True)
class RowEpisode(ABC):
    """An open episode, checked but for the images' content, which is read when it is asked for.

    Attributes:
        where: names it in messages.
        keys: of ``qpos`` and ``action`` in the source, for messages.
        qpos, action: (T, 14) float64: left arm, right arm, six joints [rad] and the gripper
            (0 closed, 1 open) each.
        qvel, effort: (T, 14), or None where they were not measured or are no numbers.
        frames: T images per role.
        pace: what the source tells of its rate.
        simulated: no real arm moved.
        notes: what was done to its content, and what is not taken, for a report.
    """

    where: str
    keys: tuple[str, str]
    qpos: Floats
    action: Floats
    qvel: Floats | None
    effort: Floats | None
    frames: Mapping[str, Frames]
    pace: Pace
    simulated: bool = field(default=False, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def digest(self) -> str:
        """Return a sha256 (hex) by which the same episode is known again."""

    @abstractmethod
    def metadata(self, prompts: Iterable[str], prompt: str | None) -> SourceMetadata:
        """Return what the source tells of the episode.

        Args:
            prompts: those of the known tasks.
            prompt: in place of the source's own.

        Raises:
            RolloutError: something in it is of a wrong type or outside its range, or no prompt is
                told, or several.
        """

    def grid(self, rate: float | None, control: float) -> Grid:
        """Return the control steps, see :func:`source_rate.control_grid`, which also raises."""
        try:
            return control_grid(self.pace, len(self.action), rate, control)
        except RolloutError as error:
            raise RolloutError(f"{self.where}: {error}") from error


def repeated(frames: Frames, rows: Sequence[int]) -> Iterator[ImageArray]:
    """Yield the image of each row, where one row may come several times in succession.

    The iterator goes on to the end of a video before it ends. Raises as ``frames.rows`` does.
    """
    images = frames.rows(dict.fromkeys(rows))
    row, image = -1, None
    for wanted in rows:
        if wanted != row or image is None:
            row, image = wanted, next(images)
        yield image
    for _ in images:
        pass


def check_finite(where: str, values: Floats) -> None:
    """Refuse (T, D) values of which one is no number. Raises RolloutError."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise RolloutError(
            f"{where}: row {row}, column {column} is {values[row, column]} and {len(bad) - 1} more "
            f"are no numbers either; nothing can be learnt from them"
        )


def measured(values: Floats | None, key: str, notes: list[str]) -> Floats | None:
    """Return (T, D) values if they were measured: zeros stand for "not measured".

    No training reads velocities and efforts, so a note is enough for those that are no numbers.
    """
    if values is None or not values.any():
        return None
    bad = np.argwhere(~np.isfinite(values))
    if not len(bad):
        return values
    row, column = bad[0]
    notes.append(
        f"left out: {key}, where {len(bad)} values are no numbers, first row {row}, column {column}"
    )
    return None


def moves(key: str, values: Floats) -> bool:
    """Return whether something with a row per step, (T, D), is no constant."""
    values = np.where(np.isfinite(values), values, 0.0)
    if any(word in key.lower() for word in _SPEED_NAMES) and (np.abs(values) > _STANDS).any():
        return True
    return bool((np.ptp(values, axis=0) > _STANDS).any()) if values.size else False


def not_taken(moving: Sequence[str]) -> list[str]:
    """Return the note that names what moves and is not taken; none where nothing does."""
    return [f"not taken: {', '.join(moving)}, which move{'' if len(moving) > 1 else 's'}"] * bool(
        moving
    )
