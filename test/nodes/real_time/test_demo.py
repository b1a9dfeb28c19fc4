"""The README's command, as it is typed, in small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.topics import future_topic

ATTEMPTS = 5
FUTURES = {f"/{future_topic(role)}" for role in ("left_wrist", "right_wrist", "primary")}


def test_one_episode_after_the_other(tmp_path: Path) -> None:
    """The second one began where the first one's arms had been, and its chunks were refused.

    One chunk each: where a second one leads depends on what the cameras show at that moment, and
    the gate may rightly refuse it.
    """
    command = [sys.executable, "-m", "cosmos_policy_ros.cli.cosmos", "run"]
    for attempt in range(ATTEMPTS):
        root = tmp_path / str(attempt)
        done = subprocess.run(
            [*command, "--root", str(root), "--episodes", "2", "--chunks", "1"],
            capture_output=True,
            text=True,
            check=False,
        )
        # Where the machine keeps a node waiting the arms are held, as they must be.
        if "\nrun         fault: " not in done.stdout:
            break
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("chunks      1 executed, ") == 2
    bags = [path for path in sorted(root.iterdir()) if (path / "metadata.yaml").is_file()]
    episodes = [read_episode(bag) for bag in bags]
    assert [episode.outcome for episode in episodes] == ["chunk_limit"] * 2
    assert [episode.metadata.seed for episode in episodes] == [1000, 1001]
    assert [episode.metadata.engine for episode in episodes] == ["cosmos"] * 2
    assert [episode.metadata.task for episode in episodes] == ["either_cube"] * 2
    assert all(episode.score is not None for episode in episodes)
    assert all((bag / "contact_sheet.png").is_file() for bag in bags)
    # What is imagined is decoded while the arms move: for a single chunk a busy machine is late.
    imagined = [
        any(episode.topics[topic].count for topic in FUTURES & episode.topics.keys())
        for episode in episodes
    ]
    assert [(bag / "futures.png").is_file() for bag in bags] == imagined
