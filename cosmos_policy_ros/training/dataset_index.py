"""Which windows of which episodes a run learns from, why not from others, and the order of batches.

No draw depends on an earlier one: a resumed run, or one on more processes, sees the same samples.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cosmos_policy_ros.bags.writer import DISCARDED
from cosmos_policy_ros.core.errors import RolloutError, TrainingError
from cosmos_policy_ros.core.task import FULL_SCORE
from cosmos_policy_ros.core.untrusted import escaped
from cosmos_policy_ros.dataset.checks import (
    CANNOT_BE_LEARNED,
    CheckLimits,
    EpisodeReport,
    Expected,
    load_check_limits,
    prompt_fault,
)
from cosmos_policy_ros.dataset.index_cache import IndexedEpisode, users_cache
from cosmos_policy_ros.dataset.review import (
    Ranges,
    learned_ranges,
    set_warnings,
    with_outliers,
)
from cosmos_policy_ros.dataset.windows import Windows, before_takeover
from cosmos_policy_ros.episodes.folders import candidates
from cosmos_policy_ros.interop.libero_hdf5 import (
    SUFFIXES,
    digest_of_file,
    find_files,
    judge,
    read_windows,
)
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.layout import LAYOUTS
from cosmos_policy_ros.model.text import TextTable
from cosmos_policy_ros.rig.arms import STATE_DIM
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.rig.teleoperation import TELEOPERATION
from cosmos_policy_ros.training.batch import WindowRef
from cosmos_policy_ros.training.config import DataConfig, MixtureConfig, Role

Pool = Literal["demonstration", "correction", "success", "failure"]


@dataclass(frozen=True)
class EpisodeEntry:
    """An episode to learn from.

    Attributes:
        windows: random access to it.
        pool: a half-done task is a failure, as in the released code, and keeps its score; a
            correction is what a person did in the episode of a run.
        score: in [0, 1]; 1 for a demonstration.
        starts: steps at which a usable window begins.
        digest: sha256 (hex) of the episode's files and of the code that reads them.
        report: what the checks found.
        led: (n,) per step whether a person led the arms there; None where that is not known.
        worthless: (n,) per step whether it has no return, since it led to a takeover; None: none.
    """

    windows: Windows
    pool: Pool
    score: float
    starts: NDArray[np.int64]
    digest: str
    report: EpisodeReport
    led: NDArray[np.bool_] | None = None
    worthless: NDArray[np.bool_] | None = None

    @property
    def prompt(self) -> str:
        """The task in words."""
        return self.windows.prompt

    @property
    def correction(self) -> EpisodeEntry | None:
        """What a person did in the episode of a run, to learn from as shown; None if nothing."""
        if self.led is None or self.pool == "demonstration":
            return None
        starts = self.starts[self.led[self.starts]]
        return replace(self, pool="correction", starts=starts) if len(starts) else None

    def observe(self, step: int) -> Observation:
        """Return the observation at a step; ObservationError or RolloutError if it has none."""
        return self.windows.at(step)


@dataclass(frozen=True)
class DatasetIndex:
    """All episodes of a run.

    Attributes:
        entries: to learn from.
        held_out: demonstrations for the validation.
        left_out: folder and reason of every episode that is not used.
        windows_left_out: windows of used episodes with a gap or a brake in them, or without images.
        warnings: what is odd about the used episodes, a line each.
        ranges: of the demonstrations, for statistics; None where there is none.
    """

    entries: tuple[EpisodeEntry, ...]
    held_out: tuple[EpisodeEntry, ...]
    left_out: tuple[tuple[Path, str], ...]
    windows_left_out: int
    warnings: tuple[str, ...] = ()
    ranges: Ranges | None = None

    def pool(self, name: Pool) -> list[int]:
        """Return the indices of a pool's entries."""
        return [i for i, entry in enumerate(self.entries) if entry.pool == name]

    def digest(self) -> str:
        """Return a sha256 (hex) over what is learned from: episodes, scores and windows."""
        sha = hashlib.sha256()
        for entry in self.entries:
            metadata = [entry.windows.id, entry.pool, entry.score, entry.prompt]
            sha.update(json.dumps(metadata).encode())
            sha.update(entry.starts.tobytes())
            if entry.worthless is not None:
                sha.update(entry.worthless.tobytes())
        return sha.hexdigest()

    def lines(self, statistics: str = "checkpoint") -> list[str]:
        """Return counts, reasons and warnings for a person to read.

        ``statistics`` is the key of ``start``: with "demonstrations", also what was widened.
        """
        warnings = list(self.warnings)
        if statistics == "demonstrations" and self.ranges is not None and self.ranges.text:
            warnings.append(self.ranges.text)
        chosen = {
            "demonstrations": self.pool("demonstration"),
            "successes": self.pool("success"),
            "failures": self.pool("failure"),
        }
        groups = {name: [self.entries[i] for i in found] for name, found in chosen.items()}
        if corrections := self.pool("correction"):
            groups["corrections"] = [self.entries[i] for i in corrections]
        groups["held out"] = list(self.held_out)
        return [
            *(
                f"{name:14} {len(group):6} episodes {sum(len(e.starts) for e in group):9} windows"
                for name, group in groups.items()
            ),
            f"windows left out (a gap or a brake in them, no image): {self.windows_left_out}",
            f"episodes left out: {len(self.left_out)}",
            *(f"  {escaped(f'{path.name}: {reason}')}" for path, reason in self.left_out),
            *(f"warning: {text}" for text in warnings),
        ]


def index_episodes(data: DataConfig, model: CheckpointConfig, text: TextTable) -> DatasetIndex:
    """Read every episode's index, and hold each against its rig and the checkpoint.

    Args:
        data: names the folders.
        model: of the checkpoint: the length of a chunk, the images' shape.
        text: the prompts that the checkpoint knows; episodes with others are left out.

    Raises:
        TrainingError: a folder is missing, or no episode can be learned from.
    """
    entries: list[EpisodeEntry] = []
    left_out: list[tuple[Path, str]] = []
    windows_left_out, limits = 0, load_check_limits()
    expected = expected_of(model, text)
    _check_prompts(data, expected)
    known: dict[tuple[str, str], Path] = {}
    folders = [(Path(name).expanduser(), True) for name in data.demonstrations]
    folders += [(Path(name).expanduser(), False) for name in data.rollouts]
    places = [
        (place, demonstration)
        for folder, demonstration in folders
        for place in (*_bags(folder), *find_files(folder))
    ]
    found: list[tuple[Path, EpisodeEntry | RolloutError]] = []
    for place, demonstration in tqdm(places, "episodes", unit="", leave=False, disable=None):
        read = _read_file if place.suffix.lower() in SUFFIXES else _read_bag
        try:
            found += read(place, demonstration, data, model.dt, expected, limits)
        except RolloutError as error:
            found.append((place, error))
    for path, entry in found:
        if isinstance(entry, RolloutError):
            left_out.append((path, str(entry).removeprefix(f"{path}: ")))
            continue
        if (first := known.setdefault(_content(entry), path)) is not path:
            left_out.append((path, f"is the same episode as {first}; delete one of the copies"))
            continue
        entries.append(entry)
        windows_left_out += len(entry.windows) - len(entry.starts)
    users_cache().make_room(0)
    if not entries:
        named = ", ".join((*data.demonstrations, *data.rollouts))
        if not left_out:
            raise TrainingError(
                f"{named}: no episode in there; give the folder that the recorder wrote, or one "
                f"with {', '.join(SUFFIXES)} files"
            )
        reasons = Counter(reason for _, reason in left_out).most_common(3)
        listed = "; ".join(f"{count} times '{reason}'" for reason, count in reasons)
        raise TrainingError(
            f"{named}: none of the {len(left_out)} episodes can be learned from: {listed}"
        )
    reports = with_outliers({str(e.windows.path): e.report for e in entries}, limits)
    entries = [replace(e, report=reports[str(e.windows.path)]) for e in entries]
    # By the hash of their ids: the same demonstrations are held out in every run.
    demonstrations = [entry for entry in entries if entry.pool == "demonstration"]
    ranges = learned_ranges([entry.report for entry in demonstrations], limits)
    demonstrations.sort(key=lambda entry: hashlib.sha256(entry.windows.id.encode()).hexdigest())
    count = min(-int(-data.held_out * len(demonstrations) // 1), len(demonstrations) - 1)
    held_out = demonstrations[: max(count, 0)]
    chosen = {id(entry) for entry in held_out}
    kept = tuple(entry for entry in entries if id(entry) not in chosen)
    if data.hg_dagger:
        kept += tuple(each for entry in kept if (each := entry.correction) is not None)
    warnings = tuple(_warnings(entries, limits))
    return DatasetIndex(kept, tuple(held_out), tuple(left_out), windows_left_out, warnings, ranges)


def _check_prompts(data: DataConfig, expected: Expected) -> None:
    for own, others in data.prompt_augmentation.items():
        for prompt in (own, *others):
            if fault := prompt_fault(prompt, expected):
                raise TrainingError(f"data.prompt_augmentation: {fault.removeprefix('its ')}")


def expected_of(model: CheckpointConfig, text: TextTable) -> Expected:
    """Return what a checkpoint expects of an episode."""
    return Expected(
        chunk_steps=model.chunk_steps,
        camera_size=model.trained_on,
        image_size=model.image_size,
        prompts=text.embeddings,
        source=str(text.path),
        action_dims=model.action_dims,
        proprio_dims=model.proprio_dims,
        cameras=LAYOUTS[model.layout].cameras,
    )


def _warnings(entries: Sequence[EpisodeEntry], limits: CheckLimits) -> Iterator[str]:
    """Yield what is odd about all episodes together, then how many have which oddity."""
    for finding in set_warnings([entry.report for entry in entries], limits):
        yield finding.text
    odd: dict[str, list[tuple[str, str]]] = {}
    for entry in entries:
        report = entry.report  # of one that is used though it is NO-GO, its reasons, too
        for finding in (*report.reasons, *report.warnings):
            odd.setdefault(finding.check, []).append((entry.windows.id, finding.text))
    for check, found in odd.items():
        (first, text), episodes = found[0], len({name for name, _ in found})
        yield f"{check}: {episodes} of {len(entries)} episodes, such as {first}: {text}"


def _bags(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise TrainingError(
            f"{folder}: is no folder of episodes; fix data.demonstrations or data.rollouts"
        )
    try:
        return candidates(folder)
    except RolloutError as error:
        raise TrainingError(str(error)) from error


def _content(entry: EpisodeEntry) -> tuple[str, str]:
    """Return what tells an episode from others: ids are unique among those of one recorder."""
    return entry.windows.id, entry.windows.fingerprint


def _read_file(
    path: Path,
    demonstration: bool,
    data: DataConfig,
    dt: float,
    expected: Expected,
    limits: CheckLimits,
) -> list[tuple[Path, EpisodeEntry | RolloutError]]:
    """Read an HDF5 file's episodes, or the reason why one cannot be learned from.

    Raises:
        RolloutError: the reason is the file's.
    """
    found: list[tuple[Path, EpisodeEntry | RolloutError]] = []
    digest = digest_of_file(path)
    for name, windows in read_windows(path, dt):
        try:
            if isinstance(windows, RolloutError):
                raise windows
            success, score = windows.success, windows.score
            pool: Pool
            if demonstration:
                if success is False:
                    raise RolloutError("is a demonstration that failed: add it to data.rollouts")
                pool, score = "demonstration", 1.0
            elif windows.group and success is None:  # a file of demonstrations: it has no others
                pool, score = "success", 1.0
            elif success is None or score is None:
                raise RolloutError("does not say whether it succeeded: has no attribute success")
            else:
                pool = "success" if success else "failure"
            report = judge(windows, limits, expected)
            _refuse(report, data)
            starts = np.flatnonzero(windows.usable(expected.chunk_steps))
            own = hashlib.sha256(f"{digest} {windows.group}".encode()).hexdigest()
            entry = EpisodeEntry(windows, pool, score, starts, own, report)
            found.append((name, entry))
        except RolloutError as error:
            found.append((name, error))
    return found


def _read_bag(
    path: Path,
    demonstration: bool,
    data: DataConfig,
    dt: float,
    expected: Expected,
    limits: CheckLimits,
) -> list[tuple[Path, EpisodeEntry | RolloutError]]:
    """Read an episode; raise RolloutError with the reason if it cannot be learned from."""
    if {expected.action_dims, expected.proprio_dims} != {STATE_DIM}:
        raise RolloutError(
            f"is a bag, whose states and actions have {STATE_DIM} numbers; the checkpoint takes "
            f"{expected.proprio_dims} and {expected.action_dims}"
        )
    if path.name.endswith(DISCARDED):  # whatever else is wrong with it
        raise RolloutError("was discarded")
    indexed = IndexedEpisode(path)
    episode = indexed.episode
    if episode.discarded:
        raise RolloutError("was discarded")
    if not episode.quality.go and not data.use_no_go:
        raise RolloutError(episode.quality.text)
    if fault := prompt_fault(episode.metadata.prompt, expected):
        raise RolloutError(fault)
    label = episode.score
    led = episode.metadata.engine == TELEOPERATION and (label is None or label.success)
    pool: Pool
    if demonstration or led:  # what a person has shown is a demonstration wherever it lies
        if label is not None and not label.success:
            raise RolloutError(f"is a demonstration that failed: scored {label.points:g}")
        pool, score = "demonstration", 1.0
    elif label is None:
        raise RolloutError("has no score; 'cosmos score' gives it one")
    else:
        pool = "success" if label.success else "failure"
        score = label.points / FULL_SCORE
    windows = indexed.windows(dt)
    report = indexed.report(windows, dt, limits, expected)
    _refuse(report, data)
    starts = np.flatnonzero(windows.usable(expected.chunk_steps))
    entry = EpisodeEntry(windows, pool, score, starts, indexed.digest, report, windows.steps.led)
    if data.recap_seconds and pool != "demonstration":
        entry = replace(entry, worthless=before_takeover(windows.steps, data.recap_seconds))
    return [(path, entry)]


def _refuse(report: EpisodeReport, data: DataConfig) -> None:
    if refused := [
        each.text
        for each in report.reasons
        if each.check in CANNOT_BE_LEARNED or not data.use_no_go
    ]:
        raise RolloutError(f"NO-GO: {'; '.join(refused)}")


# ---------------------------------------------------------------- the order of samples


class Mixture:
    """Draws windows in the configured proportions of roles, successes and failures."""

    def __init__(self, dataset_index: DatasetIndex, config: MixtureConfig, seed: int) -> None:
        """Divide the roles' fractions of a batch among the pools.

        Raises:
            TrainingError: a role has a fraction, and no episode to learn it from.
        """
        self._seed, self._exact = seed, config.draw == "exact"
        parts = list(_divide(dataset_index, config))
        self._roles = [role for role, _, _ in parts]
        fractions = np.array([fraction for _, fraction, _ in parts])
        self._edges = np.cumsum(fractions / fractions.sum())
        self._windows = []
        for _, _, pools in parts:
            chosen = [index for pool in pools for index in dataset_index.pool(pool)]
            starts = [dataset_index.entries[index].starts for index in chosen]
            owners = np.repeat(np.array(chosen), [len(each) for each in starts])
            self._windows.append((owners, np.concatenate(starts)))
        self.fractions: dict[Role, float] = {
            role: float(sum(f for r, f, _ in parts if r == role) / fractions.sum())
            for role in dict.fromkeys(self._roles)
        }

    def draw(self, step: int, place: int, batch: int, attempt: int = 0) -> WindowRef:
        """Return the sample at ``place`` of ``batch`` in a step.

        Args:
            step: of the optimiser, from 0.
            place: 0 to ``batch`` - 1, over all processes.
            batch: samples per step.
            attempt: counts the windows of the same role that could not be read.
        """
        random = np.random.default_rng([self._seed, step, place, attempt])
        at = random.random()
        if self._exact:
            # Evenly spread over the fractions; shifted anew in each step, so that a fraction of
            # half a sample has one in every second batch.
            shift = np.random.default_rng([self._seed, step]).random()
            at = (place + shift) / batch
        part = min(int(np.searchsorted(self._edges, at, side="right")), len(self._roles) - 1)
        owners, starts = self._windows[part]
        chosen = int(random.integers(len(starts)))
        seed = int(random.integers(2**63 - 1))
        return WindowRef(self._roles[part], int(owners[chosen]), int(starts[chosen]), seed)

    def describe(self, batch: int) -> str:
        """Return what a batch consists of, in a line."""
        roles = ", ".join(f"{role} {part:.0%}" for role, part in self.fractions.items())
        return f"a batch of {batch}: {roles}"


def _divide(
    dataset_index: DatasetIndex, config: MixtureConfig
) -> Iterator[tuple[Role, float, Sequence[Pool]]]:
    """Yield each role's fractions of a batch, and the pools that they come from."""
    present = {entry.pool for entry in dataset_index.entries}
    missing = (
        "mixture.{0} asks for a fraction of the batch, but there are no {1} to learn it "
        "from; add some to data.{1}, or set mixture.{0}: 0"
    )
    if config.policy:
        shown: tuple[Pool, ...] = ("demonstration", "correction")
        if not present.intersection(shown):
            raise TrainingError(missing.format("policy", "demonstrations"))
        yield "policy", config.policy, shown
    succeeded: tuple[Pool, ...] = ("success",)
    if config.demonstrations_as_rollouts:
        succeeded = ("success", "demonstration")
    halves: list[tuple[float, tuple[Pool, ...]]] = [
        (config.success_fraction, succeeded),
        (1 - config.success_fraction, ("failure",)),
    ]
    # One half that is empty leaves all to the other.
    filled = [(part, pools) for part, pools in halves if part and present.intersection(pools)]
    whole = sum(part for part, _ in filled)
    roles: tuple[tuple[Role, float], ...] = (
        ("world_model", config.world_model),
        ("value", config.value),
    )
    for role, fraction in roles:
        if fraction and not filled:
            raise TrainingError(missing.format(role, "rollouts"))
        if fraction:
            for part, pools in filled:
                yield role, fraction * part / whole, pools
