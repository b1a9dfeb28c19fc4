"""Pins that a label is in bag and label log, that either alone is enough, and both or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes import label_log
from cosmos_policy_ros.episodes.episode import read_episode, read_labels
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore

JUDGEMENT = OperatorScore(
    success=True,
    stages=("slider grasped", "bag opened"),
    operator_name="ann",
    note="second try",
)


@pytest.fixture
def ziploc(metadata: EpisodeMetadata) -> EpisodeMetadata:
    return replace(
        metadata, task="ziploc", task_yaml=(config_folder("tasks") / "ziploc.yaml").read_text()
    )


def record(store: EpisodeStore, metadata: EpisodeMetadata, topics: list[Topic]) -> Path:
    return store.begin(metadata, topics).finish("stopped")


@pytest.mark.parametrize("finished", [True, False], ids=["after", "while recording"])
def test_a_judgement_is_events_in_bag_and_journal(
    store: EpisodeStore, ziploc: EpisodeMetadata, topics: list[Topic], finished: bool
) -> None:
    recording = store.begin(ziploc, topics)
    path = recording.finish("stopped") if finished else recording.path
    labels = store.score(JUDGEMENT)
    written, problems = label_log.read(path)
    assert written == labels and problems == ()
    path = path if finished else recording.finish("stopped")
    assert [(x.revision, x.kind, x.item, x.points) for x in labels] == [
        (1, "stage", "slider grasped", 20.0),
        (2, "stage", "bag opened", 20.0),
        (3, "score", "", 40.0),
    ]
    assert {x.operator_name for x in labels} == {"ann"}
    assert (labels[-1].success, labels[-1].note) == (True, "second try")
    (path / label_log.LABEL_LOG).unlink()
    assert read_labels(path) == labels, "the bag alone is enough"
    assert read_episode(path).score == labels[-1]


def test_the_journal_alone_is_enough(
    store: EpisodeStore, ziploc: EpisodeMetadata, topics: list[Topic]
) -> None:
    """As after a kill between its line and the bag's message."""
    path = record(store, ziploc, topics)
    store.score(OperatorScore(10.0))
    lost = Label(path.name, 2, "score", 7, points=90.0, operator_name="bob")
    label_log.append(path, [lost])
    assert read_episode(path).score == lost
    assert store.score(OperatorScore(20.0))[-1].revision == 3, "no revision is given twice"


def test_a_torn_line_costs_itself_only(
    store: EpisodeStore, ziploc: EpisodeMetadata, topics: list[Topic]
) -> None:
    path = record(store, ziploc, topics)
    (first,) = store.score(OperatorScore(10.0))
    with (path / label_log.LABEL_LOG).open("ab") as file:
        file.write(b'{"episode_id": "x", "revi')
    (second,) = store.score(OperatorScore(20.0))
    labels, problems = label_log.read(path)
    assert labels == (first, second)
    assert len(problems) == 1 and "line 2 is no label" in problems[0]


@pytest.mark.parametrize(
    "line",
    ["[]", "{}", "7", '{"points": 1}', "\x00", '{"kind":'],
)
def test_what_is_no_label_is_left_out_and_told(tmp_path: Path, line: str) -> None:
    (tmp_path / label_log.LABEL_LOG).write_text(line + "\n")
    labels, problems = label_log.read(tmp_path)
    assert labels == () and len(problems) == 1


def test_lines_tell_the_time_to_people(
    store: EpisodeStore, ziploc: EpisodeMetadata, topics: list[Topic]
) -> None:
    path = record(store, ziploc, topics)
    store.score(OperatorScore(10.0, operator_name="żółw"))
    line = json.loads((path / label_log.LABEL_LOG).read_text())
    assert line["time"][4] == "-" and line["operator_name"] == "żółw"


@pytest.mark.parametrize(
    ("operator_score", "message"),
    [
        (OperatorScore(stages=("slider graspd",)), "did you mean 'slider grasped'"),
        (OperatorScore(70.0, stages=("slider grasped",)), "70 is not the 20"),
        (OperatorScore(note="a\0b", score=3.0), "note: "),
    ],
)
def test_a_refused_label_leaves_no_trace(
    store: EpisodeStore,
    ziploc: EpisodeMetadata,
    topics: list[Topic],
    operator_score: OperatorScore,
    message: str,
) -> None:
    path = record(store, ziploc, topics)
    before = sorted((p.name, p.read_bytes()) for p in path.iterdir())
    with pytest.raises(RolloutError, match=message):
        store.score(operator_score)
    assert sorted((p.name, p.read_bytes()) for p in path.iterdir()) == before


def test_a_full_disk_takes_both_or_none(
    store: EpisodeStore,
    ziploc: EpisodeMetadata,
    topics: list[Topic],
    disk_of: Callable[[int], AbstractContextManager[None]],
) -> None:
    """The label log has room for the line, the bag's next file has not."""
    path = record(store, ziploc, topics)
    store.score(OperatorScore(10.0))
    before = sorted((p.name, p.read_bytes()) for p in path.iterdir())
    with disk_of(600), pytest.raises(RolloutError, match="label it again"):
        store.score(OperatorScore(20.0))
    assert sorted((p.name, p.read_bytes()) for p in path.iterdir()) == before
    assert store.score(OperatorScore(20.0))[-1].revision == 2


def test_a_read_only_episode_is_told(
    store: EpisodeStore,
    ziploc: EpisodeMetadata,
    topics: list[Topic],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = record(store, ziploc, topics)

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        label_log, "append", refuse
    )  # the tests may run as root, whom nothing stops
    with pytest.raises(RolloutError, match=r"cannot be labelled: .*Permission denied"):
        store.score(OperatorScore(20.0))
    assert read_labels(path) == ()


def test_discarding_is_a_label_too(
    store: EpisodeStore, ziploc: EpisodeMetadata, topics: list[Topic], types: Typestore
) -> None:
    record(store, ziploc, topics)
    path = store.discard("cable unplugged", operator_name="bob")
    (label,) = read_labels(path)
    assert (label.kind, label.note, label.operator_name) == ("discard", "cable unplugged", "bob")
    assert label_log.read(path)[0] == (label,)
    assert read_episode(path).score is None
