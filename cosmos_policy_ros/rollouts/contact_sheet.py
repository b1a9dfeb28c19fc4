"""One picture of an episode: a row per camera, time from left to right."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.images import decode_image
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rollouts.episode import read_messages

TILE = (120, 160)  # px, rows and columns
MARGIN = 22  # px, for the times above and the names at the left
BACKGROUND, INK = 255, (40, 40, 40)
NS = 1_000_000_000
Picture = NDArray[np.uint8]


def contact_sheet(bag: Path, rig: RigSpec, namespace: str = "/", columns: int = 8) -> Picture:
    """Return an RGB picture (rows, columns, 3) of the cameras at even times of an episode.

    Raises:
        RolloutError: the bag is unreadable or holds no image.
    """
    topics = {namespace.rstrip("/") + "/" + c.topic: c.role for c in rig.cameras}
    frames: dict[str, list[tuple[int, Picture]]] = {role: [] for role in topics.values()}
    for topic, stamp_ns, message in read_messages(bag, topics):
        image = decode_image(message, topic)
        tile = cv2.resize(image, TILE[::-1], interpolation=cv2.INTER_AREA)
        frames[topics[topic]].append((stamp_ns, np.asarray(tile, np.uint8)))
    stamps = [stamp for row in frames.values() for stamp, _ in row]
    if not stamps:
        raise RolloutError(f"{bag}: holds no image of rig '{rig.name}'")
    times = np.linspace(min(stamps), max(stamps), columns).astype(np.int64)
    height, width = TILE
    sheet = np.full((MARGIN + len(frames) * height, columns * width, 3), BACKGROUND, np.uint8)
    for column, time_ns in enumerate(times):
        _write(sheet, f"{(time_ns - times[0]) / NS:.1f} s", column * width + 4, MARGIN - 7)
    for row, (role, shots) in enumerate(frames.items()):
        top = MARGIN + row * height
        for column, time_ns in enumerate(times):
            if shots:
                _, tile = min(shots, key=lambda shot: abs(shot[0] - int(time_ns)))
                left = column * width
                sheet[top : top + height, left : left + width] = tile
        _write(sheet, role, 4, top + 14, (255, 255, 255))
    return sheet


def save_contact_sheet(bag: Path, rig: RigSpec, file: Path) -> Path:
    """Write the contact sheet as a PNG; returns ``file``."""
    sheet = contact_sheet(bag, rig)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(file), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise RolloutError(f"{file}: the picture could not be written")
    return file


def _write(sheet: Picture, text: str, x: int, y: int, ink: tuple[int, int, int] = INK) -> None:
    cv2.putText(sheet, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, ink, 1, cv2.LINE_AA)
