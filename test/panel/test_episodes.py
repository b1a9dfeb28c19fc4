"""Pins what the page is told of recorded episodes, whatever state their folders are in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.broken_bags import BROKEN, bit_lost, record_scored
from helpers.episodes import CAMERA_PERIOD, RIG, START_NS, Writing, record
from helpers.planned import (
    CHUNKS,
    IMAGINED,
    REFUSED,
    SEARCH,
    SECONDS,
    STAGES,
    pose,
    record_planned,
    targets,
)
from helpers.scenes import record_scenes, scene
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.index import IndexedTopic, index_topics
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.compact import compact, load_compaction
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import find_rig
from cosmos_policy_ros.panel import episodes as episodes_module
from cosmos_policy_ros.panel import timeline
from cosmos_policy_ros.panel.episodes import EpisodeLibrary
from cosmos_policy_ros.rig.jpeg import from_jpeg

ROLES = [camera.role for camera in RIG.cameras]


@pytest.fixture
def episodes(tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(tmp_path / "episodes", types, clock=lambda: START_NS)


@pytest.fixture
def library(episodes: EpisodeStore) -> EpisodeLibrary:
    return EpisodeLibrary(episodes.root)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Path:
    store = EpisodeStore(tmp_path_factory.mktemp("planned"), types, clock=lambda: START_NS)
    return record_planned(store, types)


@pytest.fixture
def planned(recorded: Path, episodes: EpisodeStore) -> Path:
    return Path(shutil.copytree(recorded, episodes.root / recorded.name))


def strict(answer: Any) -> Any:
    """Return an answer as the browser gets it; NaN, infinity and NumPy's types are refused."""
    return json.loads(json.dumps(answer, allow_nan=False))


def pixels(header: dict[str, Any], files: list[bytes], kind: str) -> dict[str, NDArray[np.uint8]]:
    """Return the images of a kind by role."""
    assert len(header["images"]) == len(files)
    both = zip(header["images"], files, strict=True)
    return {each["role"]: from_jpeg(file) for each, file in both if each["kind"] == kind}


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(int) - other).mean())


# ---------------------------------------------------------------- the table


def test_a_line_of_the_table_tells_what_is_known(planned: Path, library: EpisodeLibrary) -> None:
    (entry,) = strict(library.table())
    size = sum(file.stat().st_size for file in planned.iterdir())
    wanted = {"id": planned.name, "task": "transfer_cube", "begun": "2026-01-01T00:00:00"}
    wanted |= {"score": 50.0, "success": False, "note": "slipped", "go": True, "bytes": size}
    wanted |= {"checkpoint": "aloha_tuned", "digest": "feedc0defeed", "engine": "cosmos"}
    wanted |= {"planning": SEARCH, "operator": "ann", "outcome": "time_limit", "state": ""}
    wanted |= {"readable": True, "sentence": "", "reasons": []}
    assert {name: entry[name] for name in wanted} == wanted
    assert entry["seconds"] == pytest.approx(SECONDS, abs=0.05)


def test_without_a_folder_there_is_no_episode_and_none_is_made(tmp_path: Path) -> None:
    library = EpisodeLibrary(tmp_path / "rollouts")
    assert library.table() == [] and library.calibration()["count"] == 0
    with pytest.raises(RolloutError, match="holds no episode yet"):
        library.episode("x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_episode_is_in_the_table_and_says_what_to_do(
    episodes: EpisodeStore, library: EpisodeLibrary, types: Typestore, name: str
) -> None:
    path = record_scored(episodes, types, size=16)
    BROKEN[name].do(path)
    (entry,) = strict(library.table())
    assert entry["state"] == BROKEN[name].state.value and entry["readable"] is False
    assert entry["score"] is None and len(entry["sentence"]) > 20
    for ask in (library.episode, lambda each: library.frames(each, 0.1)):
        with pytest.raises(RolloutError) as error:
            ask(entry["id"])
        assert entry["sentence"][:20] in str(error.value)


def test_every_state_is_in_the_table_with_a_sentence(
    planned: Path, episodes: EpisodeStore, library: EpisodeLibrary, types: Typestore
) -> None:
    discarded = record(episodes, types, 0.2)
    episodes.discard("a hand was in the way", episode=discarded.name)
    foreign = episodes.root / "from_a_friend"
    shutil.copytree(planned, foreign)
    strip_episode(foreign, types)
    Writing(episodes, types)  # goes on being recorded
    found = {entry["id"]: entry for entry in strict(library.table())}
    assert len(found) == 4
    entry = found[discarded.name]
    assert entry["state"] == "discarded" and "a hand was in the way" in entry["sentence"]
    assert library.episode(discarded.name)["discard_reason"] == "a hand was in the way"
    assert found["from_a_friend"]["state"] == "foreign"
    assert "cosmos import" in found["from_a_friend"]["sentence"]
    with pytest.raises(RolloutError, match="no episode; make one of it"):
        library.episode("from_a_friend")
    (recording,) = (each for each in found.values() if each["state"] == "recording")
    with pytest.raises(RolloutError, match="wait until it is stopped"):
        library.episode(recording["id"])


def strip_episode(folder: Path, types: Typestore) -> None:
    """Make another program's bag of an episode."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    shutil.rmtree(folder)
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        kind = "std_msgs/msg/String"
        topic = writer.add_connection("/chatter", kind, typestore=types)
        cdr = types.serialize_cdr(types.types[kind](data="hello"), kind)
        writer.write(topic, START_NS, bytes(cdr))


def test_of_two_with_one_id_each_can_be_asked_for(planned: Path, library: EpisodeLibrary) -> None:
    copied = planned.with_name("copied_by_hand")
    shutil.copytree(planned, copied)
    entries = strict(library.table())
    assert {entry["id"] for entry in entries} == {planned.name, copied.name}
    assert all("same id as" in entry["state"] for entry in entries)
    for entry in entries:
        assert library.episode(entry["id"])["id"] == entry["id"]


@pytest.mark.parametrize("name", ["../other", "/etc", "", "no_such", "\0"])
def test_a_name_leads_nowhere_else(planned: Path, library: EpisodeLibrary, name: str) -> None:
    shutil.copytree(planned, planned.parents[1] / "other")
    if not name:  # as everywhere, the newest
        assert library.episode(name)["title"] == planned.name
        return
    with pytest.raises(RolloutError, match="is not in"):
        library.episode(name)


def test_what_has_not_changed_is_not_read_again(
    planned: Path, library: EpisodeLibrary, monkeypatch: pytest.MonkeyPatch, types: Typestore
) -> None:
    first = library.table(), library.calibration(), library.episode(planned.name)

    def fail(*_: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(episodes_module, "look", fail)
    monkeypatch.setattr(episodes_module, "read_decisions", fail)
    monkeypatch.setattr(episodes_module, "EpisodeTimeline", fail)
    assert (library.table(), library.calibration(), library.episode(planned.name)) == first
    monkeypatch.undo()
    store = EpisodeStore(planned.parent, types)
    store.score(OperatorScore(90, True, note="looked again"), episode=planned.name)
    assert library.table()[0]["note"] == "looked again"
    assert {point["obtained"] for point in library.calibration()["points"]} == {0.9}


# ---------------------------------------------------------------- one episode


def test_decisions_verdicts_and_stages(planned: Path, library: EpisodeLibrary) -> None:
    found = strict(library.episode(planned.name))
    assert found["troubles"] == [] and found["left_out"] == {}
    assert [each["chunk"] for each in found["decisions"]] == ["run/0", "run/1", "run/2"]
    decision = found["decisions"][0]
    wanted = {"t": 0.0, "chosen": 1, "requested": 3, "finished": 2, "search": SEARCH}
    wanted |= {"phases": [["sample_actions", 0.25]], "value": pytest.approx(0.6)}
    assert {name: decision[name] for name in wanted} == wanted
    good, late = decision["candidates"][1:]
    assert good["seed"] == "8" and good["values"] == pytest.approx([0.5, 0.7])
    assert good["spread"] == pytest.approx(0.1)
    assert late == {
        **{"seed": "9", "finished": False, "dropped": ""},
        **{"value": None, "spread": None, "values": []},
    }
    values = [(each["t"], each["value"]) for each in found["values"]]
    assert values == [
        (0.0, pytest.approx(0.6)),
        (REFUSED[0] / 1000, pytest.approx(0.7)),
        (1.72, pytest.approx(0.8)),
    ]
    (refusal,) = (each for each in found["gate"] if not each["accepted"])
    wanted = {"t": REFUSED[1] / 1000, "chunk": "run/1", "rule": "step_speed", "step": 3}
    wanted |= {"joint": "right/waist", "value": 4.5, "limit": 3.1}
    wanted |= {"message": "right/waist is too fast: try again"}
    assert {name: refusal[name] for name in wanted} == wanted
    assert found["stages"]["names"] == STAGES
    assert found["stages"]["reached"] == [
        {"t": 1.0, "name": "touched"},
        {"t": 2.6, "name": "lifted"},
    ]


def test_joints_measured_and_commanded(planned: Path, library: EpisodeLibrary) -> None:
    found = strict(library.episode(planned.name))
    assert found["joints"] == list(RIG.joint_names) and len(found["limits"]) == 14
    assert found["cameras"] == ROLES
    assert found["frame_times"][:2] == [0.0, CAMERA_PERIOD / 1000]
    for first, states in zip((0, 7), found["states"], strict=True):
        truth = np.stack([pose(round(1000 * t)) for t in states["t"]])[:, first : first + 7]
        assert len(states["t"]) == SECONDS * 100
        np.testing.assert_allclose(np.array(states["positions"]).T, truth, atol=1e-4)
    assert [each["id"] for each in found["chunks"]] == list(CHUNKS)
    for chunk in found["chunks"]:
        begun = CHUNKS[chunk["id"]][1] / 1000
        assert (chunk["kind"], chunk["start"], chunk["end"]) == ("chunk", begun, begun + 1)
        rows = targets(chunk["id"])
        np.testing.assert_allclose(np.array(chunk["positions"]).T, rows, atol=1e-4)
        np.testing.assert_allclose(chunk["t"], begun + 0.04 * np.arange(1, 26), atol=1e-9)


def test_labels_with_their_history(
    planned: Path, library: EpisodeLibrary, types: Typestore
) -> None:
    store = EpisodeStore(planned.parent, types)
    store.score(OperatorScore(75, True, operator_name="<b>bob</b>"), episode=planned.name)
    found = strict(library.episode(planned.name))
    assert [each["name"] for each in found["rubric"]["stages"]] == STAGES
    told = [
        (each["revision"], each["kind"], each["item"], each["points"]) for each in found["labels"]
    ]
    assert told == [
        (1, "stage", "touched", 25),
        (2, "stage", "lifted", 25),
        (3, "score", "", 50),
        (4, "score", "", 75),
    ]
    assert found["labels"][-1]["operator"] == "<b>bob</b>" and found["score"] == 75


def test_an_episode_without_decisions(
    episodes: EpisodeStore, library: EpisodeLibrary, types: Typestore
) -> None:
    path = record_scenes(Writing(episodes, types), 25)
    (entry,) = library.table()
    assert entry["planning"] == "" and entry["score"] is None
    found = strict(library.episode(path.name))
    assert found["decisions"] == found["chunks"] == found["gate"] == found["values"] == []
    assert found["stages"] is None and found["troubles"] == []
    header, files = library.frames(path.name, 0.5)
    assert header["chunk"] is None and len(files) == 3
    assert library.calibration()["count"] == 0


def test_long_episodes_give_bounded_answers(
    planned: Path, library: EpisodeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("POINTS", 10), ("CHUNKS", 2), ("FRAMES", 7), ("TEXT", 12)):
        monkeypatch.setattr(timeline, f"MOST_{name}", most)
    found = strict(library.episode(planned.name))
    assert len(found["frame_times"]) == 7
    assert all(len(each["t"]) == 10 for each in found["states"])
    assert sum(len(each["t"]) for each in found["chunks"]) <= 12
    assert len(found["decisions"]) == len(found["gate"]) == 2
    assert found["left_out"] == {"gate results": 1, "decisions": 1}
    assert found["decisions"][0]["reason"] == "candidate 1 "
    # The ends are kept: a curve reaches from the first message to the last.
    assert found["states"][0]["t"][::9] == [0.0, SECONDS - 0.01]


def test_what_is_damaged_is_said_and_the_rest_is_shown(
    planned: Path, library: EpisodeLibrary
) -> None:
    bit_lost(planned)
    found = strict(library.episode(planned.name))
    assert found["troubles"] and "cosmos episodes verify" in found["troubles"][0]
    assert found["labels"] and found["metadata"]["task"] == "transfer_cube"
    header, files = library.frames(planned.name, 1.0)
    assert len(header["images"]) == len(files)
    library.calibration()


def test_messages_of_any_shape_end_in_a_sentence(
    planned: Path, library: EpisodeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bag defines its messages itself."""
    monkeypatch.setattr(IndexedTopic, "read", lambda *_: object())
    assert library.table()[0]["planning"] == ""
    found = strict(library.episode(planned.name))
    assert len(found["troubles"]) == 5
    assert all(each.startswith(str(planned)) for each in found["troubles"])
    header, files = library.frames(planned.name, 1.0)
    assert header["troubles"] and not files
    assert library.calibration()["count"] == 0


# ---------------------------------------------------------------- images


def test_raw_images_are_those_of_the_moment(planned: Path, library: EpisodeLibrary) -> None:
    header, files = library.frames(planned.name, 1.05)
    strict(header)
    for role, image in pixels(header, files, "seen").items():
        assert apart(image, scene(role, 26)) < 3
    first = header["images"][0]
    wanted = {"kind": "seen", "width": 64, "height": 48, "stamp": 1.04}
    assert {name: first[name] for name in wanted} == wanted


def test_a_bags_own_jpegs_are_given_byte_for_byte(
    episodes: EpisodeStore, library: EpisodeLibrary, types: Typestore
) -> None:
    path = record_scenes(Writing(episodes, types, jpeg=True), 12)
    episode = read_episode(path)
    header, files = library.frames(path.name, 0.2)
    cameras = find_rig(episode).cameras
    topics = index_topics(episode.files, cameras)
    assert [each["role"] for each in header["images"]] == list(cameras.values())
    for name, file in zip(cameras, files, strict=True):
        assert file == bytes(topics[name].read(5).data)


def test_a_compacted_episode_shows_its_video(planned: Path, library: EpisodeLibrary) -> None:
    compact(planned, load_compaction())
    (entry,) = library.table()
    assert entry["readable"] and "its images are video" in entry["sentence"]
    assert library.episode(planned.name)["compacted"] is True
    for number in (50, 3, 51):
        header, files = library.frames(planned.name, number * CAMERA_PERIOD / 1000)
        for role, image in pixels(header, files, "seen").items():
            assert apart(image, scene(role, number)) < 4


def test_what_was_imagined_stands_beside_what_was_reached(
    planned: Path, library: EpisodeLibrary
) -> None:
    header, files = library.frames(planned.name, 0.3)
    assert header["chunk"] is None and len(files) == 3  # none has begun
    # While the first one is executed, and while the next ones are thought about.
    for seconds in (0.48, 1.2, 1.9):
        header, files = library.frames(planned.name, seconds)
        assert header["chunk"] == {"id": "run/0", "decided": 0.0, "end": 1.48}
        for image in pixels(header, files, "imagined").values():
            assert image.shape == (24, 24, 3) and abs(int(image.mean()) - IMAGINED) < 2
        for role, image in pixels(header, files, "reached").items():
            assert apart(image, scene(role, 37)) < 3
    header, _ = library.frames(planned.name, 99.0)
    assert header["chunk"] == {"id": "run/2", "decided": 1.72, "end": 3.0}


def test_before_the_first_image_none_is_shown(planned: Path, library: EpisodeLibrary) -> None:
    header, files = library.frames(planned.name, -1.0)
    assert header["images"] == [] and files == []
    with pytest.raises(RolloutError, match="must be a finite number"):
        library.frames(planned.name, float("nan"))


# ---------------------------------------------------------------- calibration


@pytest.fixture
def several(episodes: EpisodeStore, types: Typestore) -> Iterator[EpisodeStore]:
    for score in (100, 0):
        record_planned(episodes, types, score=OperatorScore(score, score == 100))
    yield episodes


def test_values_are_held_against_scores(
    several: EpisodeStore, library: EpisodeLibrary, types: Typestore
) -> None:
    found = strict(library.calibration())
    assert (found["count"], found["episodes"], found["left"]) == (6, 2, 0)
    assert {point["obtained"] for point in found["points"]} == {0.0, 1.0}
    assert found["bias"] == pytest.approx(0.7 - 0.5)
    assert found["correlation"] == pytest.approx(0)
    assert [each["count"] for each in found["bins"]] == [2, 2, 2]
    assert all(each["obtained"] == 0.5 for each in found["bins"])
    assert sum(low["low"] <= low["predicted"] <= low["high"] for low in found["bins"]) == 3
    several.discard("no", episode=found["points"][0]["episode"])
    left = strict(library.calibration())
    assert left["count"] == 3 and left["correlation"] is None  # scores do not vary


def test_a_large_folder_is_read_piece_by_piece(
    several: EpisodeStore, library: EpisodeLibrary
) -> None:
    names = list(several.episodes())
    assert library.table(within=-1.0) == [] and library.left == 2
    assert len(library.table()) == 2 and library.left == 0
    assert [entry["id"] for entry in library.table(within=-1.0)] == names


def test_calibration_goes_on_where_it_was(
    several: EpisodeStore, library: EpisodeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes_module, "READING", -1.0)
    assert library.calibration()["left"] == 2
    monkeypatch.undo()
    assert library.calibration()["left"] == 0
    monkeypatch.setattr(episodes_module, "MOST_SCATTERED", 2)
    found = library.calibration()
    assert len(found["points"]) == 2 and found["count"] == 6
