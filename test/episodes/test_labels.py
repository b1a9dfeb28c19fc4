"""Pins a score's way into an episode: points by the rubric, labels in bag and log, both or none.

A label that comes after the bag was closed is seen by every reader, and no recorded byte changes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label, encode_label
from cosmos_policy_ros.bags.writer import BagWriter, read_metadata, write_metadata
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import Deduction, Rubric, Stage
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.labels import LABEL_LOG, OperatorScore, logged, read_log, tally
from cosmos_policy_ros.episodes.store import EpisodeStore, add_labels

START_NS = 1_700_000_000_000_000_000
DAY_NS = 86_400 * 10**9
DiskOf = Callable[[int], AbstractContextManager[None]]
RUBRIC = Rubric(
    stages=(Stage("grasped", 30), Stage("lifted", 30), Stage("placed", 40)),
    deductions=(Deduction("dropped", 10), Deduction("hit the table", 50)),
)


def test_a_total_alone_needs_no_rubric() -> None:
    assert tally(OperatorScore(33.3), None).total == 33.3
    assert tally(OperatorScore(0.0), RUBRIC).total == 0.0


def test_stages_less_deductions_and_never_below_zero() -> None:
    found = tally(OperatorScore(stages=("grasped", "placed"), deductions=("dropped",)), RUBRIC)
    stages = (("stage", "grasped", 30), ("stage", "placed", 40))
    assert (found.total, found.items) == (60, (*stages, ("deduction", "dropped", 10)))
    assert tally(OperatorScore(60.0, stages=("grasped", "placed"), deductions=("dropped",)), RUBRIC)
    assert (
        tally(OperatorScore(stages=("lifted",), deductions=("hit the table",)), RUBRIC).total == 0
    )


@pytest.mark.parametrize(
    ("operator_score", "message"),
    [
        (OperatorScore(), "give a score from 0 to 100, or the stages"),
        (OperatorScore(100.5), "score: 100.5 must be a number from 0 to 100"),
        (OperatorScore(math.nan, stages=("grasped",)), "must be a number"),
        (
            OperatorScore(stages=("grasp",)),
            "stage 'grasp' is not in the rubric; did you mean 'grasped'",
        ),
        (OperatorScore(stages=("lifted", "lifted")), "stage 'lifted' is named twice"),
        (OperatorScore(deductions=("droped",)), "deduction 'droped' .* did you mean 'dropped'"),
        (OperatorScore(50.0, stages=("grasped",)), "50 is not the 30 that the stages"),
    ],
)
def test_what_does_not_add_up_is_refused(operator_score: OperatorScore, message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        tally(operator_score, RUBRIC)


def test_stages_need_a_rubric() -> None:
    with pytest.raises(RolloutError, match="has no rubric; give a score alone"):
        tally(OperatorScore(stages=("grasped",)), None)


@pytest.fixture
def ziploc(metadata: EpisodeMetadata) -> EpisodeMetadata:
    text = (config_folder("tasks") / "ziploc.yaml").read_text()
    return replace(metadata, task="ziploc", task_yaml=text)


@pytest.fixture
def path(store: EpisodeStore, ziploc: EpisodeMetadata, topics: list[Topic]) -> Path:
    """A finished episode without a label."""
    return store.begin(ziploc, topics).finish("stopped")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("finished", [True, False], ids=["after", "while recording"])
def test_a_score_is_labels_in_bag_and_log(
    store: EpisodeStore, ziploc: EpisodeMetadata, topics: list[Topic], finished: bool
) -> None:
    recording = store.begin(ziploc, topics)
    path = recording.finish("stopped") if finished else recording.path
    stages = ("slider grasped by right arm", "bag opened at least halfway")
    labels = store.score(OperatorScore(None, True, stages, (), "ann", "second try"))
    written, problems = read_log(path)
    assert written == labels and problems == ()
    path = path if finished else recording.finish("stopped")
    assert [(x.revision, x.kind, x.item, x.points) for x in labels] == [
        (1, "stage", "slider grasped by right arm", 20.0),
        (2, "stage", "bag opened at least halfway", 20.0),
        (3, "score", "", 40.0),
    ]
    assert {x.operator_name for x in labels} == {"ann"}
    assert (labels[-1].success, labels[-1].note) == (True, "second try")
    (path / LABEL_LOG).unlink()
    assert read_episode(path).labels == labels, "the bag alone is enough"
    assert read_episode(path).score == labels[-1]


def test_the_log_alone_is_enough(store: EpisodeStore, path: Path) -> None:
    """As after a kill between its line and the bag's message."""
    store.score(OperatorScore(10.0))
    lost = Label(path.name, 2, "score", 7, points=90.0, operator_name="bob")
    with logged(path, [lost]):
        pass
    assert read_episode(path).score == lost
    assert store.score(OperatorScore(20.0))[-1].revision == 3, "no revision is given twice"


def test_a_torn_line_costs_itself_only(store: EpisodeStore, path: Path) -> None:
    (first,) = store.score(OperatorScore(10.0))
    with (path / LABEL_LOG).open("ab") as file:
        file.write(b'{"episode_id": "x", "revi')
    (second,) = store.score(OperatorScore(20.0))
    labels, problems = read_log(path)
    assert labels == (first, second)
    assert len(problems) == 1 and "line 2 is no label" in problems[0]


@pytest.mark.parametrize("line", ["[]", '{"points": 1}', "\x00"])
def test_what_is_no_label_is_left_out_and_told(tmp_path: Path, line: str) -> None:
    (tmp_path / LABEL_LOG).write_text(line + "\n")
    labels, problems = read_log(tmp_path)
    assert labels == () and len(problems) == 1


def test_lines_tell_the_time_to_people(store: EpisodeStore, path: Path) -> None:
    store.score(OperatorScore(10.0, operator_name="żółw"))
    line = json.loads((path / LABEL_LOG).read_text())
    assert line["time"][4] == "-" and line["operator_name"] == "żółw"


@pytest.mark.parametrize(
    ("operator_score", "message"),
    [
        (
            OperatorScore(stages=("slider grasped by right am",)),
            "did you mean 'slider grasped by right arm'",
        ),
        (OperatorScore(note="a\0b", score=3.0), "note: "),
    ],
)
def test_a_refused_label_leaves_no_trace(
    store: EpisodeStore, path: Path, operator_score: OperatorScore, message: str
) -> None:
    before = digests(path)
    with pytest.raises(RolloutError, match=message):
        store.score(operator_score)
    assert digests(path) == before


@pytest.mark.parametrize("size", [0, 600, 1000, 10_000])
def test_a_full_disk_takes_bag_and_log_or_neither(
    store: EpisodeStore, metadata: EpisodeMetadata, disk_of: DiskOf, size: int
) -> None:
    """600 bytes have room for the log's line, 10 kB for the bag's file and not its metadata."""
    path = store.begin(replace(metadata, prompt="x" * 20_000), []).finish("stopped")
    store.score(OperatorScore(10.0))
    before = digests(path)
    with disk_of(size), pytest.raises(RolloutError, match="the bag is as before, label it again"):
        store.score(OperatorScore(20.0))
    assert digests(path) == before
    assert store.score(OperatorScore(20.0))[-1].revision == 2


def test_a_read_only_episode_is_told(
    store: EpisodeStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> AbstractContextManager[None]:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, whom nothing stops.
    monkeypatch.setattr("cosmos_policy_ros.episodes.store.logged", refuse)
    with pytest.raises(RolloutError, match=r"cannot be labelled: .*Permission denied"):
        store.score(OperatorScore(20.0))
    assert read_episode(path).labels == ()


def test_discarding_is_a_label_too(store: EpisodeStore, path: Path) -> None:
    path = store.discard("cable unplugged", operator_name="bob")
    (label,) = read_episode(path).labels
    assert (label.kind, label.note, label.operator_name) == ("discard", "cable unplugged", "bob")
    assert read_log(path)[0] == (label,)
    assert read_episode(path).score is None


@pytest.fixture
def bag(tmp_path: Path, topics: list[Topic], metadata: EpisodeMetadata, types: Typestore) -> Path:
    with BagWriter(tmp_path / "bag", topics, metadata, types=types, start_ns=START_NS) as writer:
        writer.write("/cam", START_NS + 40, b"abc")
    return tmp_path / "bag"


LATE = Label("bag", 0, "score", START_NS + DAY_NS, points=40.0, operator_name="ann")


def test_both_readers_see_every_late_label(bag: Path, types: Typestore) -> None:
    sent = [encode_label(types, add_labels(bag, lambda _: [LATE], types)[0]) for _ in range(2)]
    with Reader(bag) as reader:
        assert reader.message_count == 4
        found = [bytes(d) for c, _, d in reader.messages() if c.topic == "/episode/label"]
    assert found == sent
    for name, cdr in zip(("bag_1.mcap", "bag_2.mcap"), sent, strict=True):
        with (bag / name).open("rb") as file:
            decoder = make_reader(file, decoder_factories=[DecoderFactory()])
            ((_, channel, message, decoded),) = decoder.iter_decoded_messages()
        assert (channel.topic, message.data) == ("/episode/label", cdr)
        assert decoded.header.stamp.sec == (START_NS + DAY_NS) // 10**9


def test_the_recorded_file_is_untouched_and_metadata_adds_up(bag: Path, types: Typestore) -> None:
    """And the bag still spans its trial, not the days until the label."""
    before = digests(bag)
    add_labels(bag, lambda _: [LATE], types)
    after = digests(bag)
    assert after["bag_0.mcap"] == before["bag_0.mcap"]
    assert set(after) == {"bag_0.mcap", "bag_1.mcap", "metadata.yaml", LABEL_LOG}
    info = read_metadata(bag)
    assert info["relative_file_paths"] == ["bag_0.mcap", "bag_1.mcap"]
    counts = [(f["path"], f["message_count"]) for f in info["files"]]
    assert counts == [("bag_0.mcap", 2), ("bag_1.mcap", 1)]
    assert info["message_count"] == 3
    assert {
        t["topic_metadata"]["name"]: t["message_count"] for t in info["topics_with_message_count"]
    } == {"/episode": 1, "/episode/label": 1, "/cam": 1, "/joints": 0}
    assert info["duration"] == {"nanoseconds": 40}
    assert info["starting_time"] == {"nanoseconds_since_epoch": START_NS}


def test_a_label_topic_that_the_bag_lacks_is_listed(bag: Path, types: Typestore) -> None:
    info = read_metadata(bag)
    topics = info["topics_with_message_count"]
    topics[:] = [t for t in topics if t["topic_metadata"]["name"] != "/episode/label"]
    write_metadata(bag, info)
    add_labels(bag, lambda _: [LATE], types)
    with Reader(bag) as reader:
        assert reader.topics["/episode/label"].msgcount == 1
        assert [c.topic for c, _, _ in reader.messages()][-1] == "/episode/label"


def test_a_file_left_by_a_crash_is_not_overwritten(bag: Path, types: Typestore) -> None:
    (bag / "bag_1.mcap").write_bytes(b"left behind")
    add_labels(bag, lambda _: [LATE], types)
    assert (bag / "bag_2.mcap").exists()
    assert (bag / "bag_1.mcap").read_bytes() == b"left behind"


@pytest.mark.parametrize("content", [None, "[1, 2]", "a: [", "other: {}"])
def test_a_bag_without_good_metadata_is_named(
    bag: Path, types: Typestore, content: str | None
) -> None:
    file = bag / "metadata.yaml"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(
        RolloutError, match="make it again from the bag's files: cosmos recover"
    ) as refused:
        add_labels(bag, lambda _: [LATE], types)
    assert file.name in str(refused.value)
    assert content is None or file.read_text() == content
