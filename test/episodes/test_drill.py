"""The drill: recorders killed at random moments, and every message and label counted afterwards.

``pytest test/rollouts/test_drill.py -s`` prints the figures.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mcap.stream_reader import StreamReader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore, Recovered

HELPER = Path(__file__).parents[1] / "helpers" / "doomed_recorder.py"
KILLS = 30
PROMISE = 1.0  # s; what was received longer ago survives
IMAGE_BYTES = 60_000
TOPICS = ("/image", "/joints")


@dataclass
class RubricScore:
    """What one killed recorder took, and what of it was found again."""

    sent: int
    found: int
    old: int
    old_found: int
    labels: int
    labels_found: int
    newest_lost: float  # s before the kill


def drill(root: Path, types: Typestore, seconds: float) -> RubricScore:
    """Let a recorder live for ``seconds`` from its first message on, kill it, and count."""
    process = subprocess.Popen(
        [sys.executable, str(HELPER), str(root), str(IMAGE_BYTES)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    lines = [first]
    reader_end = time.monotonic() + seconds
    while time.monotonic() < reader_end:
        lines.append(process.stdout.readline())
    killed = time.monotonic()
    process.kill()
    lines += process.stdout.readlines()
    process.wait()

    words = [line.decode().split() for line in lines if line.endswith(b"\n")]
    sent = {int(w[1]): float(w[2]) for w in words if w[0] == "message"}
    labels = {int(w[1]) for w in words if w[0] == "label"}
    (recovered,) = EpisodeStore(root, types).recover()
    assert isinstance(recovered, Recovered), recovered
    found = numbers(recovered.path)
    episode = read_episode(recovered.path)
    kept = {round(label.points) for label in episode.labels}
    assert all(label.kind == "score" for label in episode.labels)
    old = {number for number, at in sent.items() if at < killed - PROMISE}
    lost = [killed - sent[number] for number in sent.keys() - found]
    # Out of the next recorder's sight, who then counts from 1 again: within one second two episodes
    # have the same id.
    recovered.path.rename(root / f"done-{len(list(root.iterdir()))}-{recovered.path.name}")
    return RubricScore(
        len(sent),
        len(found & sent.keys()),
        len(old),
        len(old & found),
        len(labels),
        len(labels & kept),
        max(lost, default=0.0),
    )


def numbers(folder: Path) -> set[int]:
    """Return the numbers of all messages of a bag, scanned with its checksums."""
    (file,) = folder.glob("*_0.mcap")
    stream = StreamReader(io.BytesIO(file.read_bytes()), validate_crcs=True)
    channels, found = {}, set()
    for record in stream.records:
        if type(record).__name__ == "Channel":
            channels[record.id] = record.topic
        elif type(record).__name__ == "Message" and channels[record.channel_id] in TOPICS:
            found.add(int.from_bytes(record.data[:8], "little"))
    return found


@pytest.mark.timeout(300)
def test_killed_recorders_keep_their_promise(tmp_path: Path, types: Typestore) -> None:
    draw = np.random.default_rng(4)
    tallies = [drill(tmp_path, types, draw.uniform(0.05, 2.0)) for _ in range(KILLS)]
    total = {name: sum(getattr(t, name) for t in tallies) for name in vars(tallies[0])}
    share = total["found"] / total["sent"]
    print(
        f"\n{KILLS} kills: {total['sent']} messages taken, {total['found']} readable "
        f"({share:.1%}), "
        f"{total['old_found']} of {total['old']} older than {PROMISE:g} s; "
        f"{total['labels_found']} of {total['labels']} labels; newest loss reached back "
        f"{max(t.newest_lost for t in tallies):.2f} s"
    )
    assert total["old"] > 500, "the drill must have something to lose"
    assert total["old_found"] == total["old"]
    assert total["labels_found"] == total["labels"] > 0
