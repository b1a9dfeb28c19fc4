"""Which episodes and windows a training run learns from, and why not the others."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cosmos_policy_ros.bags.writer import DISCARDED, METADATA, RECORDING
from cosmos_policy_ros.core.errors import RolloutError, TrainingError
from cosmos_policy_ros.core.task import FULL_SCORE
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.training.config import DataConfig

Pool = Literal["demonstration", "success", "failure"]


@dataclass(frozen=True)
class EpisodeEntry:
    """An episode to learn from.

    Attributes:
        windows: random access to it.
        pool: what it teaches; a half-done task is a failure here, as in the released code, and
            keeps its score.
        score: in [0, 1]; 1 for a demonstration.
        starts: steps at which a usable window begins.
    """

    windows: EpisodeWindows
    pool: Pool
    score: float
    starts: NDArray[np.int64]

    @property
    def prompt(self) -> str:
        """The task in words."""
        return self.windows.episode.metadata.prompt


@dataclass(frozen=True)
class DatasetIndex:
    """What there is.

    Attributes:
        sources: to learn from.
        held_out: demonstrations to judge by.
        left_out: folder and reason of every episode that is not used.
        windows_left_out: windows of used episodes with a gap or a brake in them.
    """

    sources: tuple[EpisodeEntry, ...]
    held_out: tuple[EpisodeEntry, ...]
    left_out: tuple[tuple[Path, str], ...]
    windows_left_out: int

    def pool(self, name: Pool) -> list[int]:
        """Return the indices of a pool's sources."""
        return [i for i, source in enumerate(self.sources) if source.pool == name]

    def digest(self) -> str:
        """Return a sha256 (hex) over what is learned from: episodes, scores and windows."""
        sha = hashlib.sha256()
        for source in self.sources:
            episode = source.windows.episode
            metadata = [episode.id, source.pool, source.score, episode.metadata.prompt]
            sha.update(json.dumps(metadata).encode())
            sha.update(source.starts.tobytes())
        return sha.hexdigest()

    def lines(self) -> list[str]:
        """Return it for people, a line each."""
        lines = []
        for name in ("demonstration", "success", "failure"):
            chosen = [self.sources[i] for i in self.pool(name)]
            count = sum(len(source.starts) for source in chosen)
            lines.append(
                f"{name + 's' if name != 'success' else 'successes':14} "
                f"{len(chosen):6} episodes {count:9} windows"
            )
        lines.append(
            f"held out       {len(self.held_out):6} episodes "
            f"{sum(len(source.starts) for source in self.held_out):9} windows"
        )
        lines.append(f"windows left out (a gap or a brake in them): {self.windows_left_out}")
        lines.append(f"episodes left out: {len(self.left_out)}")
        lines += [f"  {path.name}: {reason}" for path, reason in self.left_out]
        return lines


def take_census(
    config: DataConfig,
    chunk_steps: int,
    dt: float,
    check_prompt: Callable[[str], str],
) -> DatasetIndex:
    """Look at every episode.

    Args:
        config: names the folders.
        chunk_steps: K.
        dt: seconds per step.
        check_prompt: returns what speaks against a prompt, "" for nothing.

    Raises:
        TrainingError: a folder is missing, or nothing is left to learn from.
    """
    sources: list[EpisodeEntry] = []
    left_out: list[tuple[Path, str]] = []
    missing = 0
    every = [(path, True) for path in _episodes(config.demonstrations)]
    every += [(path, False) for path in _episodes(config.rollouts)]
    for path, demonstration in tqdm(every, "episodes", unit="", leave=False, disable=None):
        try:
            source, lost = _look(path, demonstration, config, chunk_steps, dt, check_prompt)
            sources.append(source)
            missing += lost
        except RolloutError as error:
            left_out.append((path, str(error).removeprefix(f"{path}: ")))
    if not sources:
        raise TrainingError(_nothing(config, left_out))
    kept, held_out = _hold_out(sources, config.held_out)
    return DatasetIndex(tuple(kept), tuple(held_out), tuple(left_out), missing)


def _episodes(folders: Iterable[str]) -> list[Path]:
    found = []
    for name in folders:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise TrainingError(
                f"{folder}: is no folder of episodes; fix data.demonstrations or data.rollouts"
            )
        found += sorted(p for p in folder.iterdir() if p.is_dir() and _looks_like_a_bag(p))
    return found


def _looks_like_a_bag(path: Path) -> bool:
    return (path / METADATA).exists() or path.name.endswith(RECORDING)


def _look(
    path: Path,
    demonstration: bool,
    config: DataConfig,
    chunk_steps: int,
    dt: float,
    check_prompt: Callable[[str], str],
) -> tuple[EpisodeEntry, int]:
    """Return a source and how many of its windows cannot be used."""
    if path.name.endswith(DISCARDED):
        raise RolloutError("was discarded")
    episode = read_episode(path)
    if not episode.quality.go and not config.use_no_go:
        raise RolloutError(episode.quality.text)
    if complaint := check_prompt(episode.metadata.prompt):
        raise RolloutError(complaint)
    pool, score = _judged(episode, demonstration)
    windows = EpisodeWindows(episode, dt)
    if not np.isfinite(windows.steps.actions).all():
        row = int(np.flatnonzero(~np.isfinite(windows.steps.actions).all(axis=1))[0])
        raise RolloutError(f"the action of step {row} is not finite")
    usable = windows.usable(chunk_steps)
    if not usable.any():
        raise RolloutError(f"has no usable window among its {len(windows)} steps")
    return EpisodeEntry(windows, pool, score, np.flatnonzero(usable)), int((~usable).sum())


def _judged(episode: Episode, demonstration: bool) -> tuple[Pool, float]:
    label = episode.score
    if demonstration:
        if label is not None and not label.success:
            raise RolloutError(f"is a demonstration that failed: scored {label.points:g}")
        return "demonstration", 1.0
    if label is None:
        raise RolloutError("has no score; 'cosmos score' gives it one")
    return ("success" if label.success else "failure"), label.points / FULL_SCORE


def _hold_out(
    sources: Sequence[EpisodeEntry], fraction: float
) -> tuple[list[EpisodeEntry], list[EpisodeEntry]]:
    """Set demonstrations aside, the same ones in every run: by their ids, not by their order."""
    demonstrations = [s for s in sources if s.pool == "demonstration"]
    count = min(-int(-fraction * len(demonstrations) // 1), len(demonstrations) - 1)
    by_hash = sorted(demonstrations, key=lambda s: _hash(s.windows.episode.id))
    held_out = by_hash[: max(count, 0)]
    chosen = {id(source) for source in held_out}
    return [source for source in sources if id(source) not in chosen], held_out


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _nothing(config: DataConfig, left_out: Sequence[tuple[Path, str]]) -> str:
    folders = ", ".join((*config.demonstrations, *config.rollouts))
    if not left_out:
        return f"{folders}: no episode in there; give the folder that the recorder wrote"
    reasons = Counter(reason for _, reason in left_out).most_common(3)
    told = "; ".join(f"{count} times '{reason}'" for reason, count in reasons)
    return f"{folders}: none of the {len(left_out)} episodes can be learned from: {told}"
