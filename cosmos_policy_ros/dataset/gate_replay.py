"""Old episodes before the safety gate: the live one, on what was decided or demonstrated then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.dataset.playback import stamp_ns
from cosmos_policy_ros.dataset.windows import EpisodeWindows, Sent
from cosmos_policy_ros.episodes.episode import read_episode, read_messages
from cosmos_policy_ros.episodes.topics import POLICY_NODE
from cosmos_policy_ros.rig.chunk import Blend, TimedChunk
from cosmos_policy_ros.rig.run import LATE
from cosmos_policy_ros.rig.safety_gate import GateContext, GateResult, SafetyGate
from cosmos_policy_ros.rig.spec import RigSpec


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
        closest: least distance [m] of two links, or a link and the table, over all that was judged;
            empty where the rig tells no geometry.
    """

    path: Path
    decided: bool
    judged: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first: str = ""
    changed: list[str] = field(default_factory=list)
    skipped: int = 0
    closest: dict[tuple[str, str], float] = field(default_factory=dict)

    def add(self, verdict: GateResult, closest: dict[tuple[str, str], float]) -> None:
        """Count a verdict, and how close the chunk's links come."""
        for names, distance in closest.items():
            self.closest[names] = min(distance, self.closest.get(names, distance))
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
    # The bag defines its messages itself, and may have put anything into them.
    with reading(path, "an episode", RolloutError, VERIFY):
        return _check(path, rig)


def _check(path: Path, rig: RigSpec | None) -> Checked:
    windows = EpisodeWindows(read_episode(path))
    gate = SafetyGate(rig or windows.rig.rig)
    pairs = list(_decisions(windows, path))
    if not pairs:
        return _check_steps(windows, gate, path)
    found = Checked(path, decided=True)
    for decision, recorded in pairs:
        if recorded.rule == LATE:
            continue  # nobody judged it
        try:
            verdict, closest = _judge(windows, gate, decision, recorded)
        except ObservationError:
            found.skipped += 1
            continue
        found.add(verdict, closest)
        if rig is None and (verdict.accepted, verdict.rule) != (recorded.accepted, recorded.rule):
            found.changed.append(
                f"chunk {recorded.chunk_id}: was {_says(recorded)}, is {_says(verdict)}"
            )
    return found


def _judge(
    windows: EpisodeWindows, gate: SafetyGate, decision: Any, recorded: Any
) -> tuple[GateResult, dict[tuple[str, str], float]]:
    """Judge a recorded decision, in the context of then; raises ObservationError."""
    now_ns, seen_ns = stamp_ns(recorded), stamp_ns(decision)
    measured, age = windows.measured(now_ns)
    before = [s for s in windows.sent if s.start_ns < now_ns and s.chunk_id != decision.chunk_id]
    positions = np.asarray(decision.positions).reshape(decision.steps, -1)
    result_age = (now_ns - seen_ns) / NS_PER_S
    if not before or not len(getattr(decision, "committed_weights", ())):
        held = before[-1].positions[-1] if before else measured
        now = GateContext(held, measured, age, result_age)
        verdict = gate.judge(positions, decision.dt, now)
        return verdict, _closest(gate, verdict, now)
    path = _path(before[-1], windows.rig.rig)
    seen = path.sample(seen_ns)
    decided = replace(
        path, start_ns=seen_ns, dt=decision.dt, start=seen, positions=positions, sent_after_ns=0
    )
    blend = Blend(path, decided, now_ns, int(recorded.blend_rows))
    steps = windows.steps
    since_ns = now_ns - round(windows.rig.rig.tracking.lag * NS_PER_S)
    late = (steps.times_ns >= since_ns) & (steps.times_ns <= now_ns)
    commanded = path.sample(now_ns)
    trail = np.vstack([steps.actions[late], commanded])
    now = GateContext(commanded, measured, age, result_age, trail)
    verdict = gate.judge_splice(blend, Blend.blended, now)
    return verdict, _closest(gate, verdict, now)


def _closest(
    gate: SafetyGate, verdict: GateResult, now: GateContext
) -> dict[tuple[str, str], float]:
    """Of what would move the arms: a refused chunk would not."""
    return {} if verdict.positions is None else gate.closest(verdict.positions, now)


def _path(sent: Sent, rig: RigSpec) -> TimedChunk:
    """Return what the arms were following; where it began no blend looks at."""
    return TimedChunk(
        chunk_id=sent.chunk_id,
        start_ns=sent.start_ns,
        dt=rig.rates.dt,
        start=sent.positions[0],
        positions=sent.positions,
        max_velocity=rig.max_velocity,
    )


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
        now = GateContext(held, measured, age)
        found.add(gate.judge(chunk, rates.dt, now), gate.closest(chunk, now))
    return found


def _decisions(windows: EpisodeWindows, path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield each decision and its recorded verdict."""
    told, judged = (windows.rig.topic(f"{POLICY_NODE}/{name}") for name in ("decision", "verdict"))
    topics = [name for name in (told, judged) if name in windows.episode.topics]
    decisions: list[Any] = []
    verdicts: list[Any] = []
    for topic, _, message in read_messages(path, topics):
        (decisions if topic == told else verdicts).append(message)
    # Each decision is told before its verdict, so they belong together by their order.
    yield from zip(decisions, verdicts, strict=False)


def _says(verdict: Any) -> str:
    return "accepted" if verdict.accepted else f"refused by {verdict.rule}"
