"""A recorder that will be killed: records numbered messages and labels, and tells each on stdout.

    doomed_recorder.py ROOT IMAGE_BYTES

A line "message N SECONDS" is written before message N is taken, "label N" after label N was taken;
seconds are the monotonic clock's, which the killer shares.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata
from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore

ROOT = Path(__file__).parents[2]
PERIOD = 0.004  # s
EVERY_LABEL = 150  # messages; more often their flushes would hide the timer's
EVERY_IMAGE = 3


def tell(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def main() -> None:
    store = EpisodeStore(Path(sys.argv[1]), load_types(ROOT / "msg"))
    image = bytes(int(sys.argv[2]))
    metadata = EpisodeMetadata(task="drill", prompt="p", rig="sim")
    topics = [Topic(name, "std_msgs/msg/String") for name in ("/image", "/joints")]
    recording = store.begin(metadata, topics)
    number = labels = 0
    while True:
        topic, rest = ("/image", image) if number % EVERY_IMAGE == 0 else ("/joints", b"")
        tell(f"message {number} {time.monotonic()}")
        recording.write(topic, time.time_ns(), number.to_bytes(8, "little") + rest)
        number += 1
        if number % EVERY_LABEL == 0:
            store.score(OperatorScore(float(labels % 101)))
            tell(f"label {labels}")
            labels += 1
        time.sleep(PERIOD)


if __name__ == "__main__":
    main()
