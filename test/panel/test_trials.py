"""What the page is told of a protocol's trials, from real bags, and what it is not told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.episodes import START_NS, record
from helpers.planned import record_planned
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.evaluation.protocol import reference_picture
from cosmos_policy_ros.panel.episodes import SEALED, EpisodeLibrary
from cosmos_policy_ros.panel.trials import NOT_TOLD, PanelTrials
from cosmos_policy_ros.rig.jpeg import from_jpeg

PROTOCOL = """
name: page
contenders:
  - {name: ours, checkpoint: models/aloha_tuned, planning: best_of_8_quick}
  - {name: theirs, engine: demonstrator}
groups:
  - {task: transfer_cube, condition: in_distribution, setup: A cube., states: [{number: 4}]}
"""


class Bench:
    """A protocol of two trials, and the folder that they are recorded into."""

    def __init__(self, folder: Path, types: Typestore, protocol: str = PROTOCOL) -> None:
        self.file, self.output, self._types = folder / "page.yaml", folder / "tables", types
        self.file.write_text(protocol)
        self.store = EpisodeStore(folder / "rollouts", types, clock=lambda: START_NS)
        self.trials = PanelTrials(str(self.file), self.output, self.store.root, simulated=True)

    def make(self, *, score: bool = True, outcome: str = "time_limit") -> Path:
        """Record the next trial, a short one without a decision."""
        path = record(
            self.store,
            self._types,
            0.5,
            then=lambda recording: recording.finish(outcome),
            **self._metadata(),
        )
        if score:
            self.store.score(OperatorScore(100.0, success=True), episode=path.name)
        return path

    def make_planned(self) -> Path:
        """Record the next trial, with decisions and what was imagined."""
        return record_planned(self.store, self._types, **self._metadata())

    def _metadata(self) -> dict[str, Any]:
        job = self.trials.look().job
        assert job is not None
        fields = self.trials.rig_trials.episode_fields(job, "ann")
        sealed = dict.fromkeys(("engine", "checkpoint", "checkpoint_digest"), "")
        blank = sealed if self.trials.protocol.blind else {}
        return {"trial": fields["trial"], "seed": fields["seed"], **blank}


@pytest.fixture
def bench(tmp_path: Path, types: Typestore) -> Bench:
    return Bench(tmp_path, types)


def shown(bench: Bench) -> dict[str, Any]:
    """Return what the page gets of the trials; JSON must hold it."""
    bench.trials.look()
    return dict(json.loads(json.dumps(bench.trials.described(), allow_nan=False)))


def test_the_next_trial_is_told_without_its_contender(bench: Bench) -> None:
    first = bench.trials.described()
    assert (first["trial"], first["total"], first["sealed"]) == (None, 0, True), "before a look"
    found = shown(bench)
    assert (found["number"], found["total"], found["left"], found["repeated"]) == (1, 2, 2, 0)
    assert found["trial"] == {
        "task": "transfer_cube",
        "condition": "in distribution",
        "state": 4,
        "prompt": "transfer the red cube",
        "setup": "A cube.",
        "place": "",
        "picture": "",
        "contender": "",
    }
    for name in ("ours", "theirs", "aloha_tuned", "demonstrator"):
        assert name not in json.dumps(found)


def test_a_trial_that_waits_is_scored_first_and_then_the_next_comes(bench: Bench) -> None:
    path = bench.make(score=False)
    progress = bench.trials.look().progress
    assert progress is not None
    assert [each.path for each in progress.waiting] == [path]
    assert (shown(bench)["waiting"], shown(bench)["number"]) == (1, 1)
    bench.store.score(OperatorScore(50.0, success=False), episode=path.name)
    assert (shown(bench)["waiting"], shown(bench)["number"]) == (0, 2)
    bench.make()
    assert (shown(bench)["number"], shown(bench)["trial"]) == (3, None)


def test_a_fault_does_not_count_and_is_told_as_one(bench: Bench) -> None:
    bench.make(score=False, outcome="fault")
    assert (shown(bench)["waiting"], shown(bench)["repeated"]) == (0, 1)
    assert "fault: it does not count" in bench.trials.again()
    for _ in range(2):
        bench.make(score=False, outcome="fault")
    shown(bench)
    assert "3 trials in a row" in bench.trials.again()
    path = bench.make(score=False)
    bench.store.discard("the trial is to be made again", episode=path.name)
    assert shown(bench)["repeated"] == 4
    assert bench.trials.again() == "The last trial does not count and is made again."
    bench.make()
    shown(bench)
    assert bench.trials.again() == ""


def test_what_does_not_fit_the_protocol_is_told_and_not_raised(bench: Bench) -> None:
    bench.make()
    bench.file.write_text(PROTOCOL.replace("number: 4", "number: 5"))
    other = PanelTrials(str(bench.file), bench.output, bench.store.root, simulated=True)
    look = other.look()
    assert look.progress is None and "another protocol" in look.trouble
    with pytest.raises(ConfigError, match="another protocol"):
        other.unseal(before_the_end=True)


def test_a_word_that_names_a_contender_is_veiled_until_they_are_unsealed(bench: Bench) -> None:
    text = "loading models/aloha_tuned: OURS, best_of_8_quick; yours stays, as `cosmos trials` does"
    veiled = f"loading {NOT_TOLD}: {NOT_TOLD}, {NOT_TOLD}; yours stays, as `cosmos trials` does"
    assert bench.trials.veil(text) == veiled
    row = {"check": "checkpoint", "passed": True, "found": "within the limits", "advice": ""}
    assert bench.trials.veil_check(row)["found"] == NOT_TOLD
    assert bench.trials.veil_check({**row, "check": "sources"}) == {**row, "check": "sources"}
    bench.make()
    bench.trials.unseal(before_the_end=True)
    assert bench.trials.veil(text) == text
    assert bench.trials.veil_check(row) == row


def test_unsealing_early_is_confirmed_and_noted(bench: Bench) -> None:
    bench.make()
    with pytest.raises(ConfigError, match=r"1 trials are not made yet.*may have known"):
        bench.trials.unseal(before_the_end=False)
    assert not bench.output.exists() and bench.trials.seen.sealed
    table = bench.trials.unseal(before_the_end=True)
    assert any("unsealed after 1 of 2 trials" in line for line in table)
    assert any(line.startswith("| ours |") for line in table)
    assert not bench.trials.seen.sealed
    assert (bench.output / "table.md").read_text() == "\n".join(table) + "\n"
    bench.output.joinpath("unsealed.yaml").unlink()
    bench.make()
    table = bench.trials.unseal(before_the_end=False)
    assert "The operator did not know which contender ran." in table


def test_decisions_of_a_sealed_trial_are_hidden_until_it_is_unsealed(bench: Bench) -> None:
    path = bench.make_planned()
    library = EpisodeLibrary(bench.store.root, bench.trials.hides)
    bench.trials.look()

    def told() -> tuple[Any, ...]:
        (entry,) = library.table()
        page = library.episode(entry["id"])
        header, files = library.frames(entry["id"], 2.0)
        assert len(files) == len(header["images"])
        kinds = {each["kind"] for each in header["images"]}
        hidden = SEALED in page["troubles"], page["metadata"]["trial"] == ""
        counts = len(page["decisions"]), len(page["values"]), library.calibration()["count"]
        return hidden, counts, entry["planning"] != "", "imagined" in kinds, "seen" in kinds

    assert told() == ((True, True), (0, 0, 0), False, False, True)
    assert read_episode(path).metadata.trial
    bench.trials.unseal(before_the_end=True)
    hidden, counts, *rest = told()
    assert hidden == (False, False) and min(counts) > 0 and rest == [True, True, True]


def test_episodes_of_others_are_shown(bench: Bench, types: Typestore) -> None:
    record_planned(bench.store, types)
    library = EpisodeLibrary(bench.store.root, bench.trials.hides)
    bench.trials.look()
    (entry,) = library.table()
    assert library.episode(entry["id"])["decisions"]


def test_where_nobody_is_blind_the_contender_is_named(tmp_path: Path, types: Typestore) -> None:
    bench = Bench(tmp_path, types, PROTOCOL + "blind: false\n")
    assert shown(bench)["sealed"] is False
    assert shown(bench)["trial"]["contender"] in ("ours", "theirs")
    with pytest.raises(ConfigError, match="no trial is made yet"):
        bench.trials.unseal(before_the_end=True)
    bench.make()
    assert bench.trials.unseal(before_the_end=False)
    assert not (bench.output / "unsealed.yaml").exists()


def test_the_picture_of_the_state(bench: Bench) -> None:
    job = bench.trials.look().job
    assert job is not None
    with pytest.raises(
        ConfigError, match=r"transfer_cube_004.png: cannot be read.*cosmos protocol"
    ):
        bench.trials.picture()
    path = reference_picture(bench.output, job.state)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="is no picture"):
        bench.trials.picture()
    blue = np.zeros((24, 32, 3), np.uint8)
    blue[..., 0] = 255  # OpenCV's order
    cv2.imwrite(str(path), blue)
    assert shown(bench)["trial"]["picture"].startswith("transfer_cube/4/")
    pixels = from_jpeg(bench.trials.picture())
    assert pixels.shape == (24, 32, 3)
    assert pixels.mean(axis=(0, 1)) == pytest.approx([0, 0, 255], abs=4)


def test_a_task_of_another_kind_of_rig_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="task 'transfer_cube' is one for a sim rig"):
        PanelTrials(str(bench.file), None, bench.store.root, simulated=False)


def test_tables_lie_beside_the_episodes_unless_told_otherwise(bench: Bench) -> None:
    trials = PanelTrials(str(bench.file), None, bench.store.root, simulated=True)
    assert trials.output == bench.store.root.parent / "evaluations" / "page"
