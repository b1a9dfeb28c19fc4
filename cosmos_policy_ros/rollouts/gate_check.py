"""Old episodes before the safety gate: the live one, on what was decided or demonstrated then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import ObservationError
from cosmos_policy_ros.rig.arms import STATE_DIM
from cosmos_policy_ros.rig.chunk import NS
from cosmos_policy_ros.rig.gate import SafetyGate, Situation, Verdict
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rollouts.episode import read_episode, read_messages
from cosmos_policy_ros.rollouts.replay import stamp_ns
from cosmos_policy_ros.rollouts.steps import targets
from cosmos_policy_ros.rollouts.topics import POLICY_NODE
from cosmos_policy_ros.rollouts.windows import EpisodeWindows

Array = NDArray[np.float64]


@dataclass
class Checked:
    """What the gate said of one episode.

    Attributes:
        path: of the episode.
        decided: True for a policy's decisions, False for chunks cut from a demonstration.
        judged: how many.
        refused: how many per rule.
        first: the first refusal, in the gate's words.
        changed: verdicts that are not the recorded ones, in words.
        skipped: chunks that could not be judged, since an arm had not reported.
    """

    path: Path
    decided: bool
    judged: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first: str = ""
    changed: list[str] = field(default_factory=list)
    skipped: int = 0

    def add(self, verdict: Verdict) -> None:
        """Count a verdict."""
        self.judged += 1
        if not verdict.accepted:
            self.refused[verdict.rule] += 1
            self.first = self.first or verdict.message


def check_episode(path: Path, rig: RigSpec | None = None) -> Checked:
    """Judge an episode's decisions; of one without, what was demonstrated, chunk by chunk.

    Args:
        path: a finished episode.
        rig: whose limits count; by default those of the episode's own rig.

    Raises:
        RolloutError: the bag is unfinished, unreadable, damaged, or no episode.
    """
    windows = EpisodeWindows(read_episode(path))
    gate = SafetyGate(rig or windows.rig.rig)
    pairs = list(_decisions(windows, path))
    if not pairs:
        return _check_steps(windows, gate, path)
    found = Checked(path, decided=True)
    for decision, recorded, commanded in pairs:
        now_ns = stamp_ns(recorded)
        try:
            measured, age = windows.measured(now_ns)
        except ObservationError:
            found.skipped += 1
            continue
        held = measured if commanded is None else commanded
        now = Situation(held, measured, age, (now_ns - stamp_ns(decision)) / NS)
        positions = np.asarray(decision.positions).reshape(decision.steps, -1)
        verdict = gate.judge(positions, decision.dt, now)
        found.add(verdict)
        if rig is None and (verdict.accepted, verdict.rule) != (recorded.accepted, recorded.rule):
            found.changed.append(
                f"chunk {recorded.chunk_id}: was {_says(recorded)}, is {_says(verdict)}"
            )
    return found


def _check_steps(windows: EpisodeWindows, gate: SafetyGate, path: Path) -> Checked:
    found, steps = Checked(path, decided=False), windows.steps
    rates = windows.rig.rig.rates
    for first in range(0, len(steps), rates.chunk_steps):
        try:
            measured, age = windows.measured(int(steps.times_ns[first]))
        except ObservationError:
            found.skipped += 1
            continue
        follows = first > 0 and steps.stretch[first - 1] == steps.stretch[first]
        held = steps.actions[first - 1] if follows else measured
        chunk = windows.chunk(first, rates.chunk_steps)
        found.add(gate.judge(chunk, rates.dt, Situation(held, measured, age)))
    return found


def _decisions(windows: EpisodeWindows, path: Path) -> Iterator[tuple[Any, Any, Array | None]]:
    """Yield each decision, its recorded verdict, and what was commanded before it, if known."""
    rig = windows.rig
    told, judged = (rig.topic(f"{POLICY_NODE}/{name}") for name in ("decision", "verdict"))
    outputs = rig.outputs
    topics = [name for name in (told, judged, *outputs) if name in windows.episode.topics]
    decisions, verdicts = [], []
    sent: dict[str, list[tuple[int, str, Array]]] = {name: [] for name in outputs}
    for topic, received_ns, message in read_messages(path, topics):
        if topic == told:
            decisions.append((received_ns, message))
        elif topic == judged:
            verdicts.append(message)
        elif message.points:
            last = targets(outputs[topic], message)[-1]
            sent[topic].append((received_ns, message.header.frame_id, last))
    # Each decision is told before its verdict, so they belong together by their order.
    for (received_ns, decision), verdict in zip(decisions, verdicts, strict=False):
        commanded = np.full((1, STATE_DIM), np.nan)
        for name, output in outputs.items():
            for at, chunk_id, row in sent[name]:
                if at < received_ns and chunk_id != decision.chunk_id:
                    commanded[0, output.columns] = row
        known = not np.isnan(commanded).any()
        yield decision, verdict, rig.rig.commanded(commanded)[0] if known else None


def _says(verdict: Any) -> str:
    return "accepted" if verdict.accepted else f"refused by {verdict.rule}"
