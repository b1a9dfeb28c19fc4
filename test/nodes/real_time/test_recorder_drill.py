"""The drill on the node: recorders killed at random moments under a rig that goes on publishing.

``pytest test/nodes/real_time/test_recorder_drill.py -s`` prints the figures.

What the middleware had not yet handed over when the recorder died was not received, and a busy
machine may let it wait. So the promise is held against what the recorder itself had told of: the
counts in a ``~/state`` that reached us more than a second before the kill. It is asked all the
time: a state that comes once a second is too coarse to see a flush that comes too late.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cosmos_policy_ros.msg import RecorderState
from cosmos_policy_ros.srv import EndEpisode, ScoreEpisode
from helpers.graph import NOT_FOUND_YET, start
from helpers.numbered_rig import NumberedRig, Sent
from helpers.waiting import shared_memory_of, wait_for
from rclpy.qos import QoSDurabilityPolicy, QoSProfile

from cosmos_policy_ros.bags.check import CheckedFile
from cosmos_policy_ros.bags.messages import decode_label
from cosmos_policy_ros.bags.types import load_types, types_of_definition
from cosmos_policy_ros.bags.writer import LABEL_TOPIC
from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.episodes.labels import read_log
from cosmos_policy_ros.episodes.store import EpisodeStore, Recovered
from cosmos_policy_ros.episodes.topics import RECORDER_NODE
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import NodeProcess, NodeProcesses
from cosmos_policy_ros.nodes.shell import stamp_to_ns
from cosmos_policy_ros.rig.spec import RigSpec

KILLS = 4  # two in each half of the time that they live: without labels, and with
PROMISE = 1.0  # s; what was received longer ago survives
SHORTEST, LONGEST = 0.3, 2.5  # s of recording
# Discovery after a SIGKILL fails now and then for good: the middleware's, not the recorder's. Such
# a recorder is ended and another one started, and the figures tell of it.
DEAF, MOST_DEAF = 20.0, 2  # s without a state; recorders
ANSWER = 5.0  # s after which a request, which may have gone to the dead one, is sent again
ASK = 0.05  # s between two questions how things stand
Label = tuple[int, float]  # revision, points


@dataclass
class Life:
    """One recorder, as seen from outside.

    Attributes:
        episode: its id.
        sent: from the answer that it records to the kill.
        killed: monotonic seconds.
        confirmed: messages written by topic, as told longer than the promise before the kill.
        confirmed_ns: when it told so, by its clock.
        answers: of the score service, as far as they came.
    """

    episode: str
    sent: list[Sent] = field(default_factory=list)
    killed: float = 0.0
    confirmed: dict[str, int] = field(default_factory=dict)
    confirmed_ns: int = 0
    answers: tuple[Any, ...] = ()

    @property
    def labels(self) -> set[Label]:
        """Those that it said it had taken."""
        answers = [future.result() for future in self.answers if future.done()]
        return {(answer.revision, answer.score) for answer in answers if answer.success}


@dataclass
class RubricScore:
    """What one killed recorder was sent and told of, and what of it was found again."""

    sent: int
    found: int
    old: int
    old_found: int
    confirmed: int
    confirmed_found: int
    labels: int
    labels_found: int
    newest_lost: float  # s before the kill


class Drill:
    """An operator who records and labels on a rig that never stops, and kills recorders."""

    def __init__(self, root: Path, rig: RigSpec) -> None:
        self._root, self._draw = root, np.random.default_rng(4)
        self._rig = NumberedRig(rig)
        self._client = GraphClient("operator")
        self.unanswered: list[str] = []
        self.deaf = 0
        self._episodes: set[str] = set()
        self._left: set[Path] = set()
        self._states: list[tuple[float, Any]] = []
        self._answers: list[Any] = []
        node = self._client.node
        qos = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(RecorderState, f"{RECORDER_NODE}/state", self._keep, qos)
        self._scoring = node.create_client(ScoreEpisode, f"{RECORDER_NODE}/score_episode")
        self._ending = node.create_client(EndEpisode, f"{RECORDER_NODE}/stop_episode")

    def close(self) -> None:
        self._client.close()
        self._rig.close()
        remove_orphans(self._left)

    def live(self, number: int) -> Life:
        """Let a recorder, which begins with recovering the last one's episode, live and die."""
        with self._start(self._root / "log" / str(number)) as processes:
            life = Life(self._start_episode(processes))
            started = time.monotonic()
            part = (number // 2 + self._draw.random()) / (KILLS // 2)
            end = started + SHORTEST + part * (LONGEST - SHORTEST)
            # Every label is written out at once, and hides whether the rest would have been.
            self._record(end, labelling=number % 2 == 1, episode=life.episode)
            pid = processes.pid("recorder_node")
            self._left |= shared_memory_of(pid)
            life.killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
        assert processes.exit_code("recorder_node") == -signal.SIGKILL
        life.sent = self._rig.between(started, life.killed)
        life.answers = tuple(self._answers)
        self._note_told(life)
        return life

    def _start(self, logs: Path) -> NodeProcesses:
        file = config_folder("params") / "recorder_node.yaml"
        node = NodeProcess("recorder_node", file, {"root": str(self._root)})
        while True:
            self._states.clear()
            processes = start((node,), logs)
            patience = time.monotonic() + DEAF
            while time.monotonic() < patience:
                if self._is_up(processes):
                    return processes
                time.sleep(0.02)
            processes.close()
            self.deaf += 1
            assert self.deaf <= MOST_DEAF, (
                f"recorders that nobody hears: {processes.log(node.executable)}"
            )

    def _is_up(self, processes: NodeProcesses) -> bool:
        processes.check()
        # The dead one's last states, which may come late, are of an episode.
        return any(not state.episode_id for _, state in tuple(self._states))

    def _start_episode(self, processes: NodeProcesses) -> str:
        answers: list[Any] = []

        def settled() -> bool:
            processes.check()
            try:
                answers.append(self._client.start_episode(timeout=ANSWER, task="transfer_cube"))
            except CosmosPolicyError as error:
                # The dead recorder's service is seen for some time yet, and does not answer.
                self.unanswered.append(str(error))
                return bool(self._recording())
            not_yet = (*NOT_FOUND_YET, "is being recorded", "is being started")
            answer = answers[-1]
            if answer.success or self._recording():
                return True
            return not any(x in answer.message for x in not_yet)

        wait_for(settled, lambda: f"the recorder to record; it said {answers[-1:]}")
        # An answer may be lost where the request was not: then the state tells of the episode.
        episode = (answers[-1].episode_id if answers else "") or self._recording()
        assert episode, answers[-1:]
        self._episodes.add(episode)
        return str(episode)

    def _recording(self) -> str:
        """Return the episode that this recorder tells of, or nothing."""
        told = (state.episode_id for _, state in reversed(tuple(self._states)))
        return next((x for x in told if x and x not in self._episodes), "")

    def _record(self, until: float, *, labelling: bool, episode: str) -> None:
        """Wait; label now and then, the last time so late that the kill may overtake it."""
        self._answers.clear()
        now = time.monotonic()
        due = [*self._draw.uniform(now, until, 2), until - self._draw.uniform(0, 0.02)]
        due = sorted(due) if labelling else []
        while now < until:
            if due and due[0] <= now:
                due.pop(0)
                score = float(self._draw.integers(101))
                request = ScoreEpisode.Request(score=score, episode_id=episode)
                self._answers.append(self._scoring.call_async(request))
            # It refuses, reports how things stand, and has written nothing out for it.
            self._ending.call_async(EndEpisode.Request(episode_id="another one"))
            time.sleep(max(0.0, min(now + ASK, until, *due[:1]) - time.monotonic()))
            now = time.monotonic()

    def _note_told(self, life: Life) -> None:
        old = [
            state
            for at, state in tuple(self._states)
            if state.episode_id == life.episode and at < life.killed - PROMISE
        ]
        if old:
            life.confirmed = dict(zip(old[-1].topics, old[-1].counts, strict=True))
            life.confirmed_ns = stamp_to_ns(old[-1].header.stamp)

    def _keep(self, state: RecorderState) -> None:
        self._states.append((time.monotonic(), state))


def count(folder: Path, life: Life) -> RubricScore:
    """Read a recovered bag, with its checksums, and hold it against what is known of its life."""
    (path,) = folder.glob("*.mcap")
    file = CheckedFile(path)
    found: set[tuple[str, int]] = set()
    by_then: Counter[str] = Counter()
    in_bag: set[Label] = set()
    topics = {message.topic for message in life.sent}
    for topic, schema, stamp_ns, cdr in file.messages():
        # Not all of them: what came later must not stand in for one that is missing.
        by_then[topic] += stamp_ns <= life.confirmed_ns
        if topic == LABEL_TOPIC.name:
            label = decode_label(types_of_definition(schema.name, schema.data.decode()), cdr)
            in_bag.add((label.revision, label.points))
        elif topic in topics:
            found.add((topic, frame_number(cdr)))
    assert not file.problems
    in_journal = {(label.revision, label.points) for label in read_log(folder)[0]}
    old = [m for m in life.sent if m.at < life.killed - PROMISE]
    lost = [life.killed - m.at for m in life.sent if (m.topic, m.number) not in found]
    return RubricScore(
        sent=len(life.sent),
        found=len(life.sent) - len(lost),
        old=len(old),
        old_found=sum((m.topic, m.number) in found for m in old),
        confirmed=sum(life.confirmed.values()),
        confirmed_found=sum(min(n, by_then[topic]) for topic, n in life.confirmed.items()),
        labels=len(life.labels),
        labels_found=len(life.labels & in_bag & in_journal),
        newest_lost=max(lost, default=0.0),
    )


def frame_number(cdr: bytes) -> int:
    """Return the number in a header's frame_id: behind the encapsulation, the stamp, a length."""
    return int(cdr[16:].split(b"\0", 1)[0])


def remove_orphans(segments: set[Path]) -> None:
    """Do for these segments what ``fastdds shm clean`` does for all: nobody else ever would."""
    for segment in segments:
        lock = segment.with_name(f"{segment.name}_el")
        with suppress(FileNotFoundError, BlockingIOError), lock.open("rb") as owned:
            fcntl.flock(owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
            segment.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


@pytest.fixture
def drill(tmp_path: Path, rig: RigSpec) -> Iterator[Drill]:
    drill = Drill(tmp_path, rig)
    yield drill
    drill.close()


@pytest.mark.timeout(900)
def test_killed_recorder_nodes_keep_their_promise(drill: Drill, tmp_path: Path) -> None:
    lives = [drill.live(number) for number in range(KILLS)]
    # Each recorder has recovered the one before it; the last is left to the operator's command.
    (last,) = EpisodeStore(tmp_path, load_types(package_share() / "msg")).recover()
    assert isinstance(last, Recovered), last
    tallies = [count(tmp_path / life.episode, life) for life in lives]
    total = {name: sum(getattr(t, name) for t in tallies) for name in vars(tallies[0])}
    print(
        f"\n{KILLS} kills: {total['sent']} messages sent, {total['found']} readable "
        f"({total['found'] / total['sent']:.1%}), {total['old_found']} of {total['old']} sent more "
        f"than {PROMISE:g} s before, {total['confirmed_found']} of {total['confirmed']} that the "
        f"recorder had told of by then; {total['labels_found']} of {total['labels']} labels; "
        f"newest loss reached back {max(t.newest_lost for t in tallies):.2f} s; "
        f"{len(drill.unanswered)} calls without an answer, {drill.deaf} recorders never heard"
    )
    assert total["confirmed"] > 200, "the drill must have something to lose"
    assert total["confirmed_found"] == total["confirmed"]
    assert total["labels_found"] == total["labels"] > 0
