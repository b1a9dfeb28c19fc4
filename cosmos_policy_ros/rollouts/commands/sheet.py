"""Everything that is known of one episode, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rollouts.commands.shared import begun, folder_bytes, say_bytes, say_seconds
from cosmos_policy_ros.rollouts.episode import Episode
from cosmos_policy_ros.rollouts.messages import Label
from cosmos_policy_ros.rollouts.replay import DECISION_TYPE

_TEXTS = (
    "task",
    "prompt",
    "rig",
    "engine",
    "checkpoint",
    "checkpoint_digest",
    "seed",
    "operator_name",
    "package_version",
)


def format_episode(episode: Episode) -> str:
    """Return facts, state, verdict, labels and topics, a line each."""
    return "\n".join([*_head(episode), *_verdict(episode), *_labels(episode), *_topics(episode)])


def _head(episode: Episode) -> Iterator[str]:
    yield episode.id
    start = begun(episode.id)
    if start is not None:
        yield _field("begun", f"{start:%A} {start.day} {start:%B %Y, %H:%M:%S}")
    yield _field("lasted", say_seconds(episode.duration_ns / NS_PER_S))
    yield _field("ended by", episode.outcome or "-")
    if episode.discarded:
        yield _field("discarded", episode.discard_reason)
    if episode.recovered:
        yield _field("recovered", episode.recovered)
    yield _field("folder", f"{episode.path} ({say_bytes(folder_bytes(episode.path))})")
    for name in _TEXTS:
        yield _field(name.removesuffix("_name").replace("_", " "), getattr(episode.facts, name))


def _verdict(episode: Episode) -> Iterator[str]:
    yield _field("integrity", "GO" if episode.verdict.go else "NO-GO")
    for reason in episode.verdict.reasons:
        yield _field("", reason)


def _labels(episode: Episode) -> Iterator[str]:
    score = episode.score
    yield _field("score", f"{score.points:g} of 100" if score else "none yet")
    for label in episode.labels:
        yield _field("", _label(label))


def _label(label: Label) -> str:
    # A simulated clock begins at zero; its times would only mislead.
    given = datetime.fromtimestamp(label.stamp_ns / NS_PER_S)
    when = f"{given:%Y-%m-%d %H:%M:%S}" if given.year > 2000 else ""
    said = {
        "score": f"{label.points:g}, {'success' if label.success else 'no success'}",
        "stage": f"+{label.points:g} {label.item}",
        "deduction": f"-{label.points:g} {label.item}",
        "discard": "discarded",
    }[label.kind]
    parts = (f"#{label.revision}", when, label.operator_name, f"{label.kind}:", said, label.note)
    return "  ".join(filter(None, parts))


def _topics(episode: Episode) -> Iterator[str]:
    decisions = [t.count for t in episode.topics.values() if t.msgtype == DECISION_TYPE]
    yield _field("decisions", str(sum(decisions)))
    counts = {name: str(topic.count) for name, topic in sorted(episode.topics.items())}
    names, numbers = max(map(len, counts)), max(map(len, counts.values()))
    for name, count in counts.items():
        yield f"  {name:<{names}}  {count:>{numbers}}  {episode.topics[name].msgtype}"


def _field(name: str, value: object) -> str:
    return f"  {name:<18}{value}"
