"""Images of an episode: what was seen when, and what was imagined beside what came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.episodes import CAMERA_PERIOD, MS, RIG, START_NS, Writing
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.messages import RigMessages
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.dataset.contact_sheet import MARGIN, TILE, contact_sheet, future_sheet
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import future_topic

HEIGHT, WIDTH = TILE
SECONDS = 5


def grey(level: int) -> np.ndarray:
    return np.full((8, 8, 3), level, np.uint8)


@pytest.fixture
def writing(tmp_path: Path, types: Typestore) -> Writing:
    """Five seconds in which every camera's image gets brighter by one with each frame."""
    writing = Writing(EpisodeStore(tmp_path, types), types)
    for frame in range(SECONDS * 1000 // CAMERA_PERIOD):
        for camera in RIG.cameras:
            writing.image(camera.role, frame * CAMERA_PERIOD, grey(frame))
    return writing


def tile(sheet: np.ndarray, row: int, column: int) -> int:
    """Return the level in the middle of a tile, where nothing is written."""
    return int(sheet[MARGIN + row * HEIGHT + HEIGHT // 2, column * WIDTH + WIDTH // 2, 0])


def test_cameras_at_even_times(writing: Writing) -> None:
    sheet = contact_sheet(writing.recording.finish("stopped"), columns=5)
    assert sheet.shape == (MARGIN + 3 * HEIGHT, 5 * WIDTH, 3)
    last = SECONDS * 1000 // CAMERA_PERIOD - 1
    for row in range(3):
        assert [tile(sheet, row, column) for column in range(5)] == pytest.approx(
            np.linspace(0, last, 5), abs=1
        )


def test_what_was_imagined_stands_above_what_came(writing: Writing, types: Typestore) -> None:
    """What was imagined at second 1 is held against the next query's moment, second 3."""
    messages = RigMessages(types)
    for at, level in ((1000, 200), (3000, 210)):
        for camera in RIG.cameras:
            cdr = messages.image(grey(level), START_NS + at * MS)
            # Decoded while the arms move: it comes later than its stamp.
            received = START_NS + (at + 700) * MS
            writing.recording.write(writing.topic(future_topic(camera.role)), received, cdr)
    sheet = future_sheet(writing.recording.finish("stopped"))
    assert sheet is not None
    assert sheet.shape == (MARGIN + 6 * HEIGHT, 2 * WIDTH, 3)
    for camera in range(3):
        assert [tile(sheet, 2 * camera, column) for column in range(2)] == [200, 210]
        came = [tile(sheet, 2 * camera + 1, column) for column in range(2)]
        assert came == [3000 // CAMERA_PERIOD, 5000 // CAMERA_PERIOD - 1]


def test_an_episode_without_futures_or_images(
    writing: Writing, types: Typestore, tmp_path: Path
) -> None:
    assert future_sheet(writing.recording.finish("stopped")) is None
    empty = Writing(EpisodeStore(tmp_path / "empty", types), types)
    with pytest.raises(RolloutError, match="holds no image of rig 'sim'"):
        contact_sheet(empty.recording.finish("stopped"))
