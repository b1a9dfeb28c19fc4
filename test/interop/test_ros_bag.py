"""Pins that a bag of another recorder becomes the episode that ours would have recorded.

However it is stored; with actions from whatever told them; and refused where it cannot be told what
was seen and done when.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest
import yaml
import zstandard
from helpers.episodes import MS, RIG, START_NS
from helpers.foreign_bags import (
    FORMATS,
    SMALL_CHUNKS,
    messages_of,
    write_bag,
)
from helpers.foreign_episode import (
    PROMPT,
    Ours,
    Take,
    check_equal,
    goals,
    leaders,
    ns,
    teleoperated,
    told,
    windows_of,
)
from numpy.typing import NDArray
from rosbags.rosbag2 import Reader

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.quality import load_limits
from cosmos_policy_ros.episodes.verify import verify
from cosmos_policy_ros.interop.importer import (
    SOURCE_NOTES,
    KnownSourceError,
)
from cosmos_policy_ros.interop.sources import find_sources

DT_NS = 40 * MS
TELEOPERATED = teleoperated()
IMAGE = "sensor_msgs/msg/Image"
JOINT_STATE = "sensor_msgs/msg/JointState"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"


@pytest.mark.parametrize("form", FORMATS)
def test_however_it_is_stored_its_windows_are_those_of_our_recorder(
    take: Take, ours: Ours, form: str
) -> None:
    done = take(ours.messages, form, parts=1 if form.startswith("ros1") else 2)
    check_equal(windows_of(done), ours.windows)
    assert done.steps == len(ours.windows) == 45
    assert done.quality.go and done.score is None
    assert verify(done.path, load_limits()).problems == ()
    assert "actions: JointTrajectory messages as they are" in done.notes
    kept = {m for m in messages_of(done.path) if m.msgtype in (IMAGE, JOINT_STATE)}
    assert kept == {m for m in ours.messages if m.msgtype in (IMAGE, JOINT_STATE)}


def test_an_imported_episode_tells_what_it_is(take: Take, ours: Ours) -> None:
    done = take(ours.messages)
    episode = read_episode(done.path)
    assert (episode.metadata.prompt, episode.metadata.task) == (PROMPT, "transfer_cube")
    assert (episode.outcome, episode.score, episode.metadata.engine) == ("imported", None, "")
    assert episode.id.startswith("20231114-")  # as it was recorded
    with Reader(done.path) as reader:
        custom = yaml.safe_load((done.path / "metadata.yaml").read_text())
        assert {c.topic for c in reader.connections} > {m.topic for m in ours.sensors}
    notes = custom["rosbag2_bagfile_information"]["custom_data"]
    assert notes["source"] == "run" and notes[SOURCE_NOTES] == "; ".join(done.notes)
    with pytest.raises(KnownSourceError, match=rf"run: is in .* as {episode.id}; --again imports"):
        take.bag(take.folder / "run")
    assert take.bag(take.folder / "run", again=True).path != done.path


def test_files_without_their_metadata_are_found_in_order(take: Take, ours: Ours) -> None:
    path = write_bag(take.folder / "run", ours.messages, take.make.types, parts=12)
    (path / "metadata.yaml").unlink()
    done = take.bag(path)
    check_equal(windows_of(done), ours.windows)
    assert done.notes[0] == "it has no metadata.yaml"
    (path / "metadata.yaml").write_text("rosbag2_bagfile_information: {")
    done = take.bag(path, again=True)
    assert "metadata.yaml: cannot be read as YAML" in done.notes[0]
    (path / "run_3.mcap").unlink()
    assert "of its files number 3 is missing" in take.bag(path, again=True).notes[1]
    # One of its files alone, and two bags in one folder, are bags of their own.
    assert [s.name for s in find_sources(path / "run_1.mcap")] == ["run_1.mcap"]
    (path / "run_2.mcap").rename(path / "other.mcap")
    assert len(find_sources(path)) == 2


def test_a_file_that_the_metadata_lists_may_be_lost(take: Take, ours: Ours) -> None:
    path = write_bag(take.folder / "run", ours.messages, take.make.types, parts=3)
    (path / "run_2.mcap").unlink()
    done = take.bag(path)
    assert done.notes[0] == "of the files in its metadata.yaml run_2.mcap is missing"
    assert done.steps < 45


@pytest.mark.parametrize("name", ["a?b#c%20", os.fsdecode(b"caf\xe9"), "\x1b[31mred"])
def test_a_name_may_be_anything(take: Take, ours: Ours, name: str) -> None:
    path = write_bag(take.folder / "run", ours.messages, take.make.types, "sqlite3")
    (path / "run_0.db3").rename(take.folder / f"{name}.db3")
    done = take.bag(take.folder / f"{name}.db3")
    check_equal(windows_of(done), ours.windows)


def cut(path: Path, share: float) -> bytes:
    """Cut a file off; return what is left."""
    content = path.read_bytes()[: int(path.stat().st_size * share)]
    path.write_bytes(content)
    return content


@pytest.mark.parametrize(
    "form", [SMALL_CHUNKS, "mcap chunks lz4", "mcap no chunks", "packed by zstd", "packed by lz4"]
)
def test_of_a_bag_that_was_cut_in_copying_what_is_whole_is_taken(
    take: Take, ours: Ours, form: str
) -> None:
    written = SMALL_CHUNKS if form.startswith("packed") else form
    path = write_bag(take.folder / "run", ours.messages, take.make.types, written)
    (file,) = path.iterdir()
    if form.startswith("packed"):
        content, plain = file.read_bytes(), file
        file = file.with_name(f"{file.name}.{form.split()[-1]}")
        pack = zstandard.compress if "zstd" in form else lz4.frame.compress
        pieces = [content[at : at + 4096] for at in range(0, len(content), 4096)]
        file.write_bytes(b"".join(map(pack, pieces)))
        plain.unlink()
    left = cut(file, 0.6)
    done = take.bag(path)
    assert "is damaged or cut off at byte" in "; ".join(done.notes)
    assert "what is whole was taken" in "; ".join(done.notes)
    assert 0 < done.steps < 45
    assert file.read_bytes() == left


@pytest.mark.parametrize(
    ("form", "share", "told"),
    [
        ("sqlite3", 0.8, r"run_0\.db3: was cut off: \d+ of \d+ bytes are there; copy it again"),
        (
            "ros1",
            0.8,
            r"run\.bag: its index cannot be read \(.*\); 'rosbag reindex' makes one",
        ),
        ("mcap", 1e-4, r"run_0\.mcap: .*holds no message; was it copied whole"),
        ("mcap", 0, r"run_0\.mcap: is empty; was it copied whole"),
    ],
)
def test_a_bag_of_which_nothing_is_whole_is_an_error(
    take: Take, ours: Ours, form: str, share: float, told: str
) -> None:
    path = take.folder / ("run.bag" if form == "ros1" else "run")
    path = write_bag(path, ours.messages, take.make.types, form)
    cut(path if form == "ros1" else next(p for p in path.iterdir() if "run" in p.name), share)
    with pytest.raises(RolloutError, match=told):
        take.bag(path)
    assert take.store.episodes() == {}


def test_a_database_whose_recorder_died_is_read_with_its_journal(take: Take, ours: Ours) -> None:
    path = write_bag(take.folder / "run", ours.messages, take.make.types, "sqlite3")
    file, died = path / "run_0.db3", take.folder / "died"
    died.mkdir()
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(
            "CREATE TABLE later AS SELECT * FROM messages WHERE timestamp > ?", [START_NS + 10**9]
        )
        database.execute("DELETE FROM messages WHERE timestamp > ?", [START_NS + 10**9])
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("INSERT INTO messages SELECT * FROM later")
        database.commit()
        for each in (file, path / "run_0.db3-wal"):
            (died / each.name).write_bytes(each.read_bytes())
    before = {p.name: p.read_bytes() for p in died.iterdir()}
    check_equal(windows_of(take.bag(died)), ours.windows)
    assert {p.name: p.read_bytes() for p in died.iterdir()} == before


# What the arms were told.


@pytest.mark.parametrize("rate", [25, 50, 100, 40, 23.7])
def test_goals_for_the_drivers_are_taken_as_they_were_in_force(
    take: Take, ours: Ours, named: str, rate: float
) -> None:
    times = np.arange(90, 2200, 1000 / rate)
    sent = goals(take.make, TELEOPERATED, times)
    windows = windows_of(done := take([*ours.sensors, *sent], rig=named))
    assert (
        f"JointGroupCommand and JointSingleCommand, {rate:.3g} Hz, taken at 25 Hz" in done.notes[0]
    )
    due = windows.steps.times_ns + DT_NS
    assert set(np.diff(due)) == {DT_NS}
    newest = [times[times <= (at - START_NS) / MS][-1] for at in due.tolist()]
    wanted = np.stack([told(at) for at in newest])
    np.testing.assert_allclose(windows.steps.actions, wanted, atol=1e-6)
    if 1000 / rate in (10, 20, 40):  # every goal, or every second or fourth, just after it came
        assert np.all((due - START_NS - np.rint(newest) * MS) < MS)
    assert 50 <= len(windows) <= 54
    assert len(set(windows.steps.stretch)) == 1


def test_goals_that_come_a_little_early_or_late_are_each_taken_once(
    take: Take, ours: Ours, named: str
) -> None:
    jitter = np.random.default_rng(0).uniform(-8, 8, 53)
    sent = goals(take.make, TELEOPERATED, 100 + 40.0 * np.arange(53) + jitter)
    windows = windows_of(take([*ours.sensors, *sent], rig=named))
    steps = np.diff(windows.steps.actions[:, 0]) * 1e4
    assert np.all((steps > 20) & (steps < 60))


def test_no_chunk_runs_across_a_pause_of_the_goals(take: Take, ours: Ours, named: str) -> None:
    times = [*range(100, 900, 20), *range(1500, 2300, 20)]
    done = take([*ours.sensors, *goals(take.make, TELEOPERATED, times)], rig=named)
    windows = windows_of(done)
    assert "commands pause 1 time, 0.60 s in all: no action chunk runs across" in done.notes
    gap = int(np.argmax(np.diff(windows.steps.times_ns)))
    assert windows.steps.stretch[gap] != windows.steps.stretch[gap + 1]
    usable = windows.usable(5)
    assert not usable[gap - 3 : gap + 1].any()
    assert usable[gap - 5] and usable[gap + 1]
    # The last goal before it counts as long as others do.
    due_ms = (windows.steps.times_ns[[gap, gap + 1]] + DT_NS - START_NS) // MS
    assert due_ms.tolist() == [860, 1500]


def test_a_gripper_may_be_told_only_what_changes(take: Take, ours: Ours, named: str) -> None:
    sent = goals(take.make, TELEOPERATED, range(100, 2200, 20), grippers_ms=[200, 1400])
    windows = windows_of(take([*ours.sensors, *sent], rig=named))
    due = windows.steps.times_ns + DT_NS
    wanted = np.where(due < ns(1400), 0.02, 0.14)
    np.testing.assert_allclose(windows.steps.actions[:, 6], wanted, atol=1e-6)
    assert due[0] >= ns(200)


def test_goals_of_all_seven_and_of_single_joints_count_and_foreign_ones_do_not(
    take: Take, ours: Ours, named: str
) -> None:
    make, sent = take.make, []
    for index, side in enumerate(("left", "right")):
        arm = TELEOPERATED.arms[side]
        for at in range(100, 2200, 20):
            row = arm.command(told(at)[None, index * 7 : index * 7 + 7])[0]
            sent.append(make.group(f"/follower_{side}/commands/joint_group", ns(at), "all", row))
        topic = f"/follower_{side}/commands/joint_single"
        sent.append(make.single(topic, ns(2180), "waist", 0.5))
        sent.append(make.single(topic, ns(2199), "tail", 9))
        sent.append(make.group(topic.replace("single", "group"), ns(700), "arm", [np.nan] * 6))
    done = take([*ours.sensors, *sent], rig=named)
    windows = windows_of(done)
    assert windows.steps.actions[-1, 0] == windows.steps.actions[-1, 7] == 0.5
    assert np.abs(windows.steps.actions[:-1]).max() < 0.5
    assert windows.steps.actions[10, 6] == pytest.approx(windows.steps.actions[10, 0], abs=1e-6)
    assert "4 messages with commands are none of this rig's joints" in done.notes


def test_leaders_tell_the_actions_where_nothing_else_does(
    take: Take, ours: Ours, named: str
) -> None:
    sent = leaders(take.make, TELEOPERATED, range(100, 2200, 10), late_ns=7 * MS)
    failed = take.make.joints(
        "/leader_left/joint_states", ns(707), TELEOPERATED.arms.left.names, [-np.pi] * 7
    )
    done = take([*ours.sensors, *sent, failed], rig=named)
    windows = windows_of(done)
    assert "actions: joint states of the leaders, 100 Hz, taken at 25 Hz" in done.notes
    # By their own stamps, not by when they came.
    at_ms = (windows.steps.times_ns + DT_NS - START_NS) // (10 * MS) * 10
    np.testing.assert_allclose(windows.steps.actions, np.stack([told(t) for t in at_ms]), atol=1e-9)


def test_trajectories_come_before_goals_and_goals_before_leaders(
    take: Take, ours: Ours, named: str
) -> None:
    times = range(100, 2200, 20)
    sent = goals(take.make, TELEOPERATED, times)
    led = leaders(take.make, TELEOPERATED, times)
    both = take([*ours.sensors, *sent, *led], rig=named)
    assert "actions: JointGroupCommand and JointSingleCommand" in "; ".join(both.notes)
    assert "leader" not in "; ".join(both.notes)  # which the goals stand for
    done = take.bag(
        write_bag(take.folder / "all", [*ours.messages, *sent, *led], take.make.types), rig=named
    )
    check_equal(windows_of(done), ours.windows)
    # Of one arm alone they are no actions.
    half = [m for m in ours.messages if not (m.msgtype == TRAJECTORY and "right" in m.topic)]
    path = write_bag(take.folder / "half", [*half, *led], take.make.types)
    assert "joint states of the leaders" in "; ".join(take.bag(path, rig=named).notes)


@pytest.mark.parametrize("stamp", [0, 1])
def test_trajectories_of_any_pace_are_followed_as_a_controller_does(
    take: Take, ours: Ours, stamp: int
) -> None:
    """Points 0.1 and 0.15 s apart, and goals of one point that replace each other at 50 Hz."""
    make, sent = take.make, []
    for output in RIG.outputs:
        columns = list(output.columns)

        def row(at_ms: float, columns: list[int] = columns) -> NDArray[np.float64]:
            return RIG.command(told(at_ms)[None])[0][columns]

        def send(at: int, *due: float, output: Any = output, row: Any = row) -> None:
            points = [(after, row(at + after * 1000)) for after in due]
            topic, start_ns = f"/{output.topic}", ns(at) * stamp
            sent.append(make.trajectory(topic, ns(at), output.joints, points, start_ns))

        send(100, 1e-9, 0.1, 0.25, 0.4, 0.5, 0.65, 0.8, 0.9, 1.0)
        for at in range(1000, 2200, 20):
            send(at, 0.02)
    done = take([*ours.sensors, *sent])
    windows = windows_of(done)
    due_ms = (windows.steps.times_ns + DT_NS - START_NS) / MS
    wanted = np.stack([told(at) for at in due_ms])
    np.testing.assert_allclose(windows.steps.actions, wanted, atol=1e-6)
    assert set(np.diff(windows.steps.times_ns)) == {DT_NS}
    assert "actions: JointTrajectory, 61 trajectories, taken at 25 Hz" in done.notes


def test_when_the_policy_node_accepted_a_chunk_counts(take: Take, ours: Ours) -> None:
    """A trajectory without a start of its own came 7 ms after it was accepted."""
    fields: dict[str, Any] = dict.fromkeys(("rule", "joint_name", "message"), "") | dict.fromkeys(
        ("joint", "step", "clamped", "dropped", "blend_rows"), 0
    )
    fields |= dict.fromkeys(("value", "limit", "latency"), 0.0)
    fields |= {"jump_decided": np.zeros(0), "jump_sent": np.zeros(0), "accepted": True}
    messages = []
    for message in ours.messages:
        if message.msgtype == TRAJECTORY:
            message = message._replace(received_ns=message.received_ns + 7 * MS)
        messages.append(message)
    for at, name in ((100, "run/0"), (1300, "run/1")):
        asked = take.make.header(0).stamp
        messages.append(
            take.make(
                "/policy_node/gate_result",
                "cosmos_policy_ros/msg/GateResult",
                ns(at + 5),
                stamp_ns=ns(at),
                chunk_id=name,
                asked=asked,
                **fields,
            )
        )
    check_equal(windows_of(take(messages)), ours.windows)


def test_without_commands_it_is_said_what_was_looked_for(
    take: Take, ours: Ours, named: str
) -> None:
    with pytest.raises(RolloutError) as refused:
        take(ours.sensors, rig=named)
    text = str(refused.value)
    for words in (
        "run: holds no commands of rig 'sim'",
        "no JointTrajectory: /follower_left/arm_controller/joint_trajectory",
        "no JointGroupCommand and JointSingleCommand: /follower_left/commands/joint_group",
        "no joint states of the leaders: /leader_left/joint_states, /leader_right/joint_states is",
        "name the topics of yours in a rig file (--rig)",
    ):
        assert words in text
    assert take.store.episodes() == {}


def test_commands_that_are_too_rare_or_elsewhere_are_refused(
    take: Take, ours: Ours, named: str
) -> None:
    sent = goals(take.make, TELEOPERATED, range(100, 2200, 300))
    with pytest.raises(
        RolloutError, match=r"joint_group has 7 commands, 0\.3 s apart; actions need 5"
    ):
        take([*ours.sensors, *sent], rig=named)
    path = write_bag(
        take.folder / "later",
        [*ours.sensors, *goals(take.make, TELEOPERATED, range(100_000, 102_000, 20))],
        take.make.types,
    )
    with pytest.raises(RolloutError, match="has 0 control steps with a command while all sensors"):
        take.bag(path, rig=named)
