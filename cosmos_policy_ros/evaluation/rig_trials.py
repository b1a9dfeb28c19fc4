"""Trials at a rig, as their bags tell them: what has been made, what waits, and what comes next.

Nothing else is kept: an evaluation stops for the night, or with a program that is killed, and goes
on from the episodes' folder and the protocol alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from cosmos_policy_ros.bags.messages import DECISION_TYPE
from cosmos_policy_ros.core.config import to_plain
from cosmos_policy_ros.core.errors import ConfigError, RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import choose_prompt, load_task
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.episodes.episode import Episode, read_episode, read_messages
from cosmos_policy_ros.episodes.folders import EpisodeFolder, State, scan
from cosmos_policy_ros.episodes.labels import LABEL_LOG
from cosmos_policy_ros.episodes.topics import GATE_RESULT_TYPE
from cosmos_policy_ros.episodes.trial_info import TrialInfo, read_trial, seal, unseal
from cosmos_policy_ros.evaluation.contenders import DIRECT, Contender
from cosmos_policy_ros.evaluation.plan import Job, Key, remaining
from cosmos_policy_ros.evaluation.protocol import TrialProtocol
from cosmos_policy_ros.evaluation.results import Result
from cosmos_policy_ros.inference.remote_config import DEFAULTS
from cosmos_policy_ros.rig.run import LATE

FAULT = "fault"  # outcome of a run that something else than the policy's skill has ended
UNCOUNTED = (FAULT, "refused")  # nothing of the policy was seen, unless the gate refused it
FAULTS = 3  # in a row: no accident any more, a person has to look
SETTINGS = "settings"  # within a seal: the contender's, as the protocol had them


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is.

    Attributes:
        results: of trials that are over: those that count, and those that are to be repeated.
        waiting: episodes that have ended and wait for their score, oldest first.
        left: trials still to be made or scored, in order; the first one is next.
        total: trials in all.
    """

    results: tuple[Result, ...]
    waiting: tuple[Episode, ...]
    left: tuple[Job, ...]
    total: int

    @property
    def number(self) -> int:
        """The next trial's, from 1."""
        return self.total - len(self.left) + 1

    @property
    def complete(self) -> bool:
        """Whether every trial has a result that counts."""
        return not self.left


class RigTrials:
    """A protocol and the folder that its episodes are recorded into."""

    def __init__(self, protocol: TrialProtocol, root: Path) -> None:
        """Take a checked protocol; ``root`` is the recorder's folder, which need not be there."""
        self.protocol, self._root = protocol, root
        self._jobs = protocol.jobs()
        self._by_key = {job.key[:4]: job for job in self._jobs}  # a bag does not say the noise
        self._read: dict[tuple[str, int, int], Result | Episode | None] = {}

    def progress(self) -> Progress:
        """Look through the episodes.

        Raises:
            RolloutError: the folder cannot be listed.
            ConfigError: an episode is of the same evaluation, but not of this protocol.
        """
        found = [self._look(folder) for folder in scan(self._root)] if self._root.is_dir() else []
        results: list[Result] = []
        counted: set[Key] = set()
        for each in found:
            # A trial that was made twice all the same counts once, the first time.
            if isinstance(each, Result) and (each.crashed or each.key not in counted):
                results.append(each)
                counted |= set() if each.crashed else {each.key}
        waiting = tuple(each for each in found if isinstance(each, Episode))
        return Progress(
            tuple(results), waiting, tuple(remaining(self._jobs, results)), len(self._jobs)
        )

    def episode_fields(self, job: Job, operator_name: str) -> dict[str, Any]:
        """Return the fields of ``StartEpisode`` for a trial."""
        protocol, state = self.protocol, job.state
        trial = TrialInfo(protocol.name, state.condition, state.number)
        told = _told(protocol.contender(job.contender))
        trial = (
            replace(trial, sealed=seal(told))
            if protocol.blind
            else replace(trial, contender=job.contender)
        )
        return {
            "task": state.task,
            "prompt": self.prompt(job),
            "operator_name": operator_name,
            "seed": job.noise_seed,
            "trial": trial.text(),
        }

    def goal_fields(self, job: Job) -> dict[str, Any]:
        """Return the fields of ``RunTask``'s goal for a trial."""
        return {
            "task": job.state.task,
            "prompt": self.prompt(job),
            "seed": job.noise_seed,
            "time_limit": self.protocol.time_limit,
        }

    def prompt(self, job: Job) -> str:
        """Return what the policy is told. Raises ConfigError: the task has no such prompt."""
        task = load_task(job.state.task, config_folder("tasks"))
        return choose_prompt(task, job.state.prompt)

    def _look(self, folder: EpisodeFolder) -> Result | Episode | None:
        """Return a trial's result, the episode where it waits for a score, None if it is none."""
        if folder.state not in (State.FINISHED, State.DISCARDED) or folder.metadata is None:
            return None
        log = folder.path / LABEL_LOG
        try:
            stamps = folder.path.stat().st_mtime_ns, log.stat().st_mtime_ns if log.exists() else 0
        except OSError:
            return None
        key = (folder.path.name, *stamps)
        if key not in self._read:
            self._read[key] = self._judge(folder)
        return self._read[key]

    def _judge(self, folder: EpisodeFolder) -> Result | Episode | None:
        metadata = folder.metadata
        assert metadata is not None
        try:
            trial = read_trial(metadata)
            if trial is None or trial.evaluation != self.protocol.name:
                return None
            told = unseal(trial.sealed) if trial.sealed else {"contender": trial.contender}
            episode = read_episode(folder.path, folder)
        except RolloutError:
            return None  # such an episode is told of by `cosmos episodes list`
        job = self._job(folder, trial, told)
        facts = _RunFacts.read(episode)
        score = episode.score
        # A policy whose chunks the gate refuses has not crashed: it is scored for what it did.
        crashed = episode.discarded or (
            score is None and episode.outcome in UNCOUNTED and not facts.refused
        )
        if score is None and not crashed:
            return episode
        return Result(
            contender=job.contender,
            task=job.state.task,
            condition=job.state.condition,
            state=job.state.number,
            noise_seed=job.noise_seed,
            outcome=episode.outcome,
            message=(episode.discard_reason or episode.outcome) if crashed else "",
            crashed=crashed,
            score=0.0 if score is None else score.points,
            success=score is not None and score.success,
            chunks=facts.chunks,
            refused=facts.refused,
            seconds=episode.duration_ns / NS_PER_S,
            thinking=facts.thinking,
            episode=str(episode.path),
        )

    def _job(self, folder: EpisodeFolder, trial: TrialInfo, told: Mapping[str, str]) -> Job:
        """Return the trial that an episode is. Raises ConfigError: it is not in the protocol."""
        assert folder.metadata is not None
        task, contender = folder.metadata.task, told.get("contender", "")
        job = self._by_key.get((contender, task, trial.condition, trial.state))
        same = job is not None and told.get(SETTINGS) in (None, self._settings(contender))
        if job is None or not same:
            raise ConfigError(
                f"{folder.path}: is a trial of '{self.protocol.name}' with another protocol "
                f"({'another setting of a contender' if job else 'no such state or contender'}): "
                "give the protocol it was made with, another name, or another --root"
            )
        return job

    def _settings(self, contender: str) -> str:
        return _told(self.protocol.contender(contender))[SETTINGS]


def _told(contender: Contender) -> dict[str, str]:
    return {"contender": contender.name, SETTINGS: json.dumps(to_plain(contender), sort_keys=True)}


@dataclass(frozen=True)
class _RunFacts:
    """What a bag tells of its run: chunks executed and refused, median seconds of a decision."""

    chunks: int
    refused: int
    thinking: float

    @classmethod
    def read(cls, episode: Episode) -> _RunFacts:
        kinds = {DECISION_TYPE, GATE_RESULT_TYPE}
        topics = [name for name, each in episode.topics.items() if each.msgtype in kinds]
        accepted: list[bool] = []
        seconds: list[float] = []
        try:
            for _, _, message in read_messages(episode.path, topics):
                if not hasattr(message, "accepted"):
                    seconds.append(float(sum(message.phase_seconds)))
                elif message.rule != LATE:
                    accepted.append(bool(message.accepted))
        except RolloutError:
            pass  # a damaged bag's score counts all the same
        thinking = median(seconds) if seconds else 0.0
        return cls(sum(accepted), len(accepted) - sum(accepted), thinking)


def node_parameters(contender: Contender) -> dict[str, bool | int | float | str]:
    """Return the policy node's parameters that make it a contender; the others stay as they are."""
    values: dict[str, bool | int | float | str] = {
        "engine": contender.engine,
        "checkpoint": contender.checkpoint or "default",
        "planning": "none" if contender.planning == DIRECT else contender.planning,
        "world_model": contender.world_model or "default",
        "remote": contender.remote or "none",
        "remote_config": contender.remote_config or "default",
        "numerics": contender.numerics or "default",
    }
    if contender.denoising_steps is not None:
        values["denoising_steps"] = contender.denoising_steps
    return values


def telling(protocol: TrialProtocol) -> re.Pattern[str]:
    """Return what finds the words of a message that name a contender, with folders before them."""
    words: set[str | None] = set()
    for each in protocol.contenders:
        words |= {each.name, each.checkpoint, each.world_model, each.remote, each.remote_config}
        words |= {each.planning} - {DIRECT}
        if each.remote:
            words |= {name for _, _, name in DEFAULTS.values()}
    words |= {Path(each).name for each in words if each}
    # "cosmos" is the package's own name, too, and in every command that a message tells.
    words |= {each.engine for each in protocol.contenders} - {"cosmos"}
    known = sorted(filter(None, words), key=len, reverse=True)
    # A checkpoint is named by its files' paths as well.
    return re.compile(
        rf"[\w./~-]*(?<!\w)(?:{'|'.join(map(re.escape, known))})(?!\w)[\w./-]*", re.IGNORECASE
    )
