"""An imported episode, looked at once for many tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cosmos_policy_ros.dataset.playback import observations
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.rig.observation import Observation

DT = 0.04
ROWS = 60  # more than a chunk


@dataclass(frozen=True)
class Shared:
    """An episode and the file it is made of; only to be read."""

    source: Path
    episode: Episode
    windows: EpisodeWindows
    seen: tuple[Observation, ...]


def look(bag: Path) -> tuple[Episode, EpisodeWindows, tuple[Observation, ...]]:
    """Return an episode, its steps, and the observation at each of them."""
    episode = read_episode(bag)
    windows = EpisodeWindows(episode, DT)
    found = tuple(observations(bag, [int(t) for t in windows.steps.times_ns]))
    assert all(isinstance(each, Observation) for each in found), found[0]
    return episode, windows, tuple(each for each in found if isinstance(each, Observation))
