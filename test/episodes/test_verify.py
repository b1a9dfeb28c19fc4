"""Pins that no damage to an episode goes unnoticed, and that each is told by its name."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.episodes import MS, RIG, START_NS, Writing, record
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.writer import MCAP0_MAGIC
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.check import CheckedFile
from cosmos_policy_ros.bags.writer import BagWriter, read_metadata, write_metadata
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.quality import load_limits
from cosmos_policy_ros.episodes.recording import Recording
from cosmos_policy_ros.episodes.recovery import recover
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.verify import Verification, store_quality, verify

LIMITS = load_limits()


@pytest.fixture
def episodes(tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(tmp_path / "episodes", types, clock=lambda: START_NS)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Path:
    store = EpisodeStore(tmp_path_factory.mktemp("sound"), types, clock=lambda: START_NS)
    path = record(store, types)
    store.score(OperatorScore(None, False, ("touched", "lifted"), note="slipped"))
    return path


@pytest.fixture
def scored(original: Path, tmp_path: Path) -> Path:
    """A sound episode with a label in its second file."""
    return Path(shutil.copytree(original, tmp_path / original.name))


def check(path: Path) -> Verification:
    return verify(path, LIMITS)


def problem(path: Path) -> str:
    """Return the only problem of an episode."""
    (found,) = check(path).problems
    return found


def test_images_that_were_left_out_are_no_damage(episodes: EpisodeStore, types: Typestore) -> None:
    """The verdict counts them, and a second look at the bag comes to the same one."""
    writing = Writing(episodes, types, jpeg=True)
    writing.seconds(3.0)
    topic = writing.topic(RIG.cameras[0].topic)
    for at in range(8):
        writing.recording.write(topic, START_NS + (3000 + at) * MS, b"\0\1\0\0nothing like it")
    found = check(writing.recording.finish("stopped"))
    assert found.problems == () and found.quality is not None
    assert "8 messages of" in found.quality.text and "no readable images" in found.quality.text


def test_a_sound_episode_is_sound(scored: Path) -> None:
    found = check(scored)
    assert found.problems == ()
    assert found.quality == read_episode(scored).quality
    assert found.quality is not None and found.quality.go
    assert found.messages == 1 + 2 * 300 + 3 * 75 + 3


@pytest.mark.parametrize("options", [{"jpeg": True}, {"namespace": "/lab"}])
def test_a_sound_episode_is_sound_whatever_its_names(
    episodes: EpisodeStore, types: Typestore, options: dict[str, object]
) -> None:
    found = check(record(episodes, types, **options))  # type: ignore[arg-type]
    assert found.problems == () and found.quality is not None and found.quality.go


def test_a_flipped_byte_in_a_chunk_is_named_by_file_and_place(scored: Path) -> None:
    file = scored / f"{scored.name}_0.mcap"
    damaged = bytearray(file.read_bytes())
    chunk = chunks_of(file)[1]
    damaged[chunk + 1000] ^= 1
    file.write_bytes(damaged)
    expected = f"{file.name}: the chunk at byte {chunk} is damaged: its checksum does not fit"
    assert expected in check(scored).problems


def chunks_of(file: Path) -> list[int]:
    with file.open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert summary is not None
    return [index.chunk_start_offset for index in summary.chunk_indexes]


@settings(max_examples=100, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(original: Path, where: float, bit: int) -> None:
    """Neither in chunks, nor in the heads and indexes, which readers go by without a checksum."""
    sound = (original / f"{original.name}_1.mcap").read_bytes()
    begin = len(MCAP0_MAGIC)
    for _ in ("the header", "the copy of the metadata"):  # no reader goes by these
        begin += 9 + int.from_bytes(sound[begin + 1 : begin + 9], "little")
    at = begin + int(where * (len(sound) - begin))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "damaged.mcap"
        damaged = bytearray(sound)
        damaged[at] ^= 1 << bit
        file.write_bytes(damaged)
        checked = CheckedFile(file)
        list(checked.messages())
        assert checked.problems, f"byte {at} of {len(sound)}"


def test_a_wrong_entry_of_the_message_index_is_found(scored: Path) -> None:
    """It has no checksum, and a reader that trusts it misses a message without a word."""
    file = scored / f"{scored.name}_1.mcap"
    content = bytearray(file.read_bytes())
    at = content.rindex(b"\x07")  # opcode of the message index
    while int.from_bytes(content[at + 1 : at + 9], "little") != 2 + 4 + 3 * 16:
        at = content.rindex(b"\x07", 0, at)
    content[at + 9 + 6 + 8] ^= 1  # offset of the first message
    file.write_bytes(content)
    found = check(scored).problems
    assert any("the index of the chunk at byte" in text and file.name in text for text in found)


@pytest.mark.parametrize("keep", [0, 5, 200, -3, -40])
@pytest.mark.parametrize("number", [0, 1])
def test_a_truncated_file_is_named(scored: Path, keep: int, number: int) -> None:
    file = scored / f"{scored.name}_{number}.mcap"
    file.write_bytes(file.read_bytes()[:keep])
    found = check(scored).problems
    assert any(t.startswith(f"{file.name}: is damaged or cut off at byte") for t in found), found
    assert not any(f"{scored.name}_{1 - number}.mcap" in text for text in found[1:])


def test_a_missing_and_a_strange_file_are_named(scored: Path) -> None:
    late = scored / f"{scored.name}_1.mcap"
    late.rename(late.with_name("strange.mcap"))
    found = check(scored).problems
    assert f"{late.name} is in metadata.yaml and not in the folder" in found
    assert "strange.mcap is in the folder and not in metadata.yaml" in found


def change(name: str, value: object) -> Callable[[str], str]:
    return lambda line: json.dumps({**json.loads(line), name: value})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (change("points", 100.0), "label revision 3: points is 50.0 in the bag and 100.0 in"),
        (change("success", True), "label revision 3: success is false in the bag and true in"),
        (change("revision", 2), "label revision 2 is 2 times in labels.jsonl"),
        (lambda line: line[:-9], "line 3 is no label and is left out"),
        (lambda line: "", "label revision 3 is in the bag and not in labels.jsonl"),
    ],
)
def test_a_changed_line_of_the_label_log_is_named(
    scored: Path, edit: Callable[[str], str], words: str
) -> None:
    log = scored / "labels.jsonl"
    *others, last = log.read_text().splitlines()
    log.write_text("\n".join([*others, *filter(None, [edit(last)])]) + "\n")
    assert any(words in text for text in check(scored).problems)


def test_a_wrong_count_in_the_metadata_is_named(scored: Path) -> None:
    information = read_metadata(scored)
    for topic in information["topics_with_message_count"]:
        if topic["topic_metadata"]["name"] == "/follower_left/joint_states":
            topic["message_count"] += 1
    write_metadata(scored, information)
    assert problem(scored) == (
        "metadata.yaml: says 301 messages of /follower_left/joint_states, 300 found"
    )


@pytest.mark.parametrize("name", ["best_run", "20991231-000000_ziploc_0009"])
def test_a_renamed_folder_is_sound(scored: Path, name: str) -> None:
    renamed = scored.rename(scored.with_name(name))
    assert check(renamed).problems == ()
    assert read_episode(renamed).id == scored.name


def test_a_verdict_that_does_not_fit_is_found_and_mended(scored: Path) -> None:
    information = read_metadata(scored)
    text = information["custom_data"]["integrity"]
    lie = json.dumps({**json.loads(text), "go": False, "reasons": ["it rained"]})
    information["custom_data"]["integrity"] = lie
    write_metadata(scored, information)
    assert problem(scored) == "its verdict is NO-GO: it rained; its messages make it GO"
    found = check(scored)
    assert found.stale
    store_quality(found)
    assert check(scored).problems == ()
    assert read_episode(scored).quality.go


def test_what_only_the_recorder_knew_stays_in_the_verdict(
    episodes: EpisodeStore, types: Typestore
) -> None:
    def lose(recording: Recording) -> Path:
        recording.lost("/follower_left/joint_states", 60)
        return recording.finish("stopped")

    path = record(episodes, types, then=lose)
    quality = read_episode(path).quality
    assert quality.reasons == (
        "60 messages of /follower_left/joint_states were lost on the way here (16.7%)",
    )
    found = check(path)
    assert found.problems == () and found.quality == quality


def test_a_recovered_episode_is_judged_from_its_messages(
    episodes: EpisodeStore, types: Typestore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recorder died before it could."""

    def kill(bag: BagWriter, *_: object, **__: object) -> Path:
        bag.flush()
        bag.abort()
        return bag.path

    def die(recording: Recording) -> Path:
        monkeypatch.setattr(BagWriter, "close", kill)
        recording.finish("")
        monkeypatch.undo()
        return recording.path

    recovered = recover(record(episodes, types, without="primary", then=die)).path
    silent = "/cam_high/camera/color/image_rect_raw never came"
    assert problem(recovered) == f"it was never judged; its messages make it NO-GO: {silent}"
    store_quality(check(recovered))
    assert check(recovered).problems == ()
    assert read_episode(recovered).quality.reasons == (silent,)
