"""Images of an episode in a table, time from left to right: what was seen and predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.index import IndexedTopic, index_topics
from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.bags.video import image_reader
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.topics import find_rig, future_topic
from cosmos_policy_ros.rig.images import decode_image

TILE = (120, 160)  # px, rows and columns
MARGIN = 22  # px, for the times above
BACKGROUND, INK, INK_ON_IMAGE = 255, (40, 40, 40), (255, 255, 255)
ImageArray = NDArray[np.uint8]


def contact_sheet(bag: Path, columns: int = 8) -> ImageArray:
    """Return an RGB image (rows, columns, 3) of the cameras at even times of an episode."""
    rig = find_rig(read_episode(bag))
    with reading(bag, "a bag of images", RolloutError, VERIFY):
        seen = _read(bag, rig.cameras)
        stamps = [int(stamp) for shots in seen.values() for stamp in shots.stamps_ns]
        if not stamps:
            raise RolloutError(f"{bag}: holds no image of rig '{rig.rig.name}'")
        times = np.linspace(min(stamps), max(stamps), columns).astype(np.int64)
        rows = {role: [shots.nearest(int(t)) for t in times] for role, shots in seen.items()}
    return tabulate([f"{(time_ns - times[0]) / NS_PER_S:.1f} s" for time_ns in times], rows)


def future_sheet(bag: Path) -> ImageArray | None:
    """Return the predicted images of each chunk's end, above what the cameras then saw.

    None for an episode without predictions.
    """
    rig = find_rig(read_episode(bag))
    cameras, rates = rig.cameras, rig.rig.rates
    futures = {rig.topic(future_topic(role)): role for role in cameras.values()}
    rows: dict[str, list[ImageArray | None]] = {}
    with reading(bag, "a bag of images", RolloutError, VERIFY):
        seen, predicted = _read(bag, cameras), _read(bag, futures)
        stamps = sorted({int(stamp) for shots in predicted.values() for stamp in shots.stamps_ns})
        if not stamps:
            return None
        # The next query came when the chunk had been executed, however long the first one was
        # thought about; the last chunk has none behind it.
        chunk_ns = round(rates.chunk_steps * rates.dt * NS_PER_S)
        ends = [*stamps[1:], stamps[-1] + chunk_ns]
        for role in cameras.values():
            rows[f"{role}, imagined"] = [predicted[role].at(stamp) for stamp in stamps]
            rows[f"{role}, came"] = [seen[role].nearest(end) for end in ends]
    return tabulate([f"chunk {number}" for number in range(1, len(stamps) + 1)], rows)


def tabulate(heads: Sequence[str], rows: Mapping[str, Sequence[ImageArray | None]]) -> ImageArray:
    """Return a table of RGB images of any size, white where there is none."""
    height, width = TILE
    sheet = np.full((MARGIN + len(rows) * height, len(heads) * width, 3), BACKGROUND, np.uint8)
    for column, head in enumerate(heads):
        _write(sheet, head, column * width + 4, MARGIN - 7, INK)
    for row, (name, images) in enumerate(rows.items()):
        top = MARGIN + row * height
        for column, image in enumerate(images):
            if image is not None:
                sheet[top : top + height, column * width : (column + 1) * width] = _tile(image)
        _write(sheet, name, 4, top + 14, INK_ON_IMAGE)
    return sheet


def save_sheet(sheet: ImageArray, file: Path) -> Path:
    """Write a sheet as a PNG; returns ``file``. Raises RolloutError when the disk refuses."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(file), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise RolloutError(f"{file}: the image could not be written")
    return file


class _Shots:
    """The images of one topic, by the stamps in their headers; decoded as they are asked for."""

    def __init__(self, name: str, topic: IndexedTopic) -> None:
        self.stamps_ns = topic.stamps_ns
        self._name, self._read = name, image_reader(topic)

    def at(self, stamp_ns: int) -> ImageArray | None:
        """Return the tile of this very stamp, if there is one."""
        index = int(np.searchsorted(self.stamps_ns, stamp_ns))
        there = index < len(self.stamps_ns) and self.stamps_ns[index] == stamp_ns
        return self._tile(index) if there else None

    def nearest(self, time_ns: int) -> ImageArray | None:
        """Return the tile nearest in time, if there is any."""
        if not len(self.stamps_ns):
            return None
        return self._tile(int(np.abs(self.stamps_ns - time_ns).argmin()))

    def _tile(self, index: int) -> ImageArray:
        # A sheet shows whatever was recorded, grey images too.
        return _tile(decode_image(self._read(index), self._name, grey=True))


def _read(bag: Path, topics: Mapping[str, str]) -> dict[str, _Shots]:
    """Return the images of some topics by role."""
    indexed = index_topics(read_episode(bag).files, topics)
    return {role: _Shots(name, indexed[name]) for name, role in topics.items()}


def _tile(image: ImageArray) -> ImageArray:
    return np.asarray(cv2.resize(image, TILE[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _write(sheet: ImageArray, text: str, x: int, y: int, ink: tuple[int, int, int]) -> None:
    cv2.putText(sheet, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, ink, 1, cv2.LINE_AA)
