"""Trials at a rig from their bags alone: what counts, what waits, what is made again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.episodes import metadata, record
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.trial_info import sealed_metadata
from cosmos_policy_ros.evaluation.contenders import Contender
from cosmos_policy_ros.evaluation.plan import Job
from cosmos_policy_ros.evaluation.protocol import Place, StateGroup, TrialProtocol, check_tasks
from cosmos_policy_ros.evaluation.rig_report import outlook, unseal, write_report
from cosmos_policy_ros.evaluation.rig_trials import RigTrials, node_parameters, telling

A = Contender("policy a", checkpoint="aloha_base")
B = Contender("policy b", checkpoint="aloha_tuned", planning="best_of_8")
PROTOCOL = TrialProtocol(
    name="two_policies",
    contenders=(A, B),
    groups=(
        StateGroup("transfer_cube", "in_distribution", (Place(1), Place(2))),
        StateGroup("transfer_cube", "out_of_distribution", (Place(3),)),
    ),
)
Recorded = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(tmp_path / "rollouts", types)


@pytest.fixture
def made(store: EpisodeStore, types: Typestore) -> Recorded:
    """Record a trial as the recorder node does; return its folder's name."""

    def make(
        job: Job, outcome: str = "time_limit", score: float | None = None, **changes: object
    ) -> str:
        trials = RigTrials(replace(PROTOCOL, **changes), store.root)  # type: ignore[arg-type]
        asked = trials.episode_fields(job, "ann")
        known = sealed_metadata(metadata(**asked))
        told = {name: value for name, value in vars(known).items() if name != "rig"}
        path = record(store, types, 0.2, then=lambda recording: recording.finish(outcome), **told)
        if score is not None:
            store.score(OperatorScore(score, success=score == 100.0), episode=path.name)
        return path.name

    return make


def test_an_evaluation_goes_on_from_the_bags_alone(store: EpisodeStore, made: Recorded) -> None:
    trials = RigTrials(PROTOCOL, store.root)
    jobs = PROTOCOL.jobs()
    assert trials.progress().left == tuple(jobs)  # also where there is no folder yet
    made(jobs[0], score=60.0)
    made(jobs[1], outcome="fault")
    made(jobs[1], outcome="refused")  # nothing moved
    progress = trials.progress()
    assert [(r.key, r.score, r.crashed) for r in progress.results] == [
        (jobs[0].key, 60.0, False),
        (jobs[1].key, 0.0, True),
        (jobs[1].key, 0.0, True),
    ]
    assert progress.left == tuple(jobs[1:])
    assert (progress.number, progress.total, progress.complete) == (2, 6, False)
    waiting = made(jobs[1])
    assert [each.path.name for each in trials.progress().waiting] == [waiting]
    store.score(OperatorScore(100.0, success=True), episode=waiting)
    discarded = made(jobs[2], score=20.0)
    store.discard("the cable came loose", episode=discarded)
    again = RigTrials(PROTOCOL, store.root).progress()  # another program, next week
    assert again == trials.progress()
    assert again.left == tuple(jobs[2:])
    assert [r.message for r in again.results if r.crashed] == [
        "fault",
        "refused",
        "the cable came loose",
    ]
    for job in jobs[2:]:
        made(job, score=80.0)
    assert trials.progress().complete
    made(jobs[0], score=0.0)  # once more all the same: the first one counts
    counted = [r for r in trials.progress().results if not r.crashed]
    assert [r.score for r in counted if r.key == jobs[0].key] == [60.0]


def test_the_contender_stands_in_no_bag_until_it_is_unsealed(
    store: EpisodeStore, made: Recorded, tmp_path: Path
) -> None:
    for job in PROTOCOL.jobs():
        path = store.root / made(job, score=40.0 if job.contender == A.name else 90.0)
        for file in path.iterdir():
            content = file.read_bytes()
            for word in ("policy a", "policy b", "aloha_base", "aloha_tuned", "best_of_8"):
                assert word.encode() not in content, file
    trials, output = RigTrials(PROTOCOL, store.root), tmp_path / "out"
    with pytest.raises(ConfigError, match="sealed until all trials are made"):
        write_report(PROTOCOL, trials.progress(), output)
    unseal(output, trials.progress())
    text = "\n".join(write_report(PROTOCOL, trials.progress(), output))
    assert "The operator did not know which contender ran." in text
    assert "- policy b less policy a, 3 states (all): success +0.0" in text
    assert "score +50.0 (+50.0 to +50.0)" in text
    assert "policy a,transfer_cube,full,3,0,40.00" in (output / "table.csv").read_text()
    assert len((output / "trials.csv").read_text().splitlines()) == 7
    assert (output / "table.png").read_bytes()[:4] == b"\x89PNG"


def test_an_early_look_is_told_in_the_report(
    store: EpisodeStore, made: Recorded, tmp_path: Path
) -> None:
    made(PROTOCOL.jobs()[0], score=40.0)
    trials = RigTrials(PROTOCOL, store.root)
    unseal(tmp_path, trials.progress())
    made(PROTOCOL.jobs()[1], score=40.0)
    unseal(tmp_path, trials.progress())  # the first look is the one that counts
    text = "\n".join(write_report(PROTOCOL, trials.progress(), tmp_path))
    assert "were unsealed after 1 of 6 trials" in text


def test_nothing_is_unsealed_where_there_is_nothing_to_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seal was broken, and then the table could not be drawn."""
    given = ["trials", "rehearsal", "--root", str(tmp_path), "--output", str(tmp_path / "out")]
    assert cosmos.main([*given, "--status"]) == 0
    assert "6 initial states, 2 contenders: 12 trials, 0 made" in capsys.readouterr().out
    assert cosmos.main([*given, "--unseal"]) == 1
    assert "holds no trial of 'rehearsal' that counts yet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contenders": (A, replace(B, planning="direct"))}, "another setting of a contender"),
        ({"contenders": (A,)}, "no such state or contender"),
        ({"groups": PROTOCOL.groups[1:]}, "no such state or contender"),
    ],
)
def test_episodes_of_another_protocol_by_the_same_name_are_refused(
    store: EpisodeStore, made: Recorded, changes: dict[str, object], words: str
) -> None:
    for job in PROTOCOL.jobs()[:4]:
        made(job, score=50.0)
    other = RigTrials(replace(PROTOCOL, **changes), store.root)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        other.progress()
    renamed = RigTrials(replace(PROTOCOL, name="another"), store.root)
    assert renamed.progress().results == ()


def test_what_it_can_find_is_said_before_the_day_is_spent(
    store: EpisodeStore, made: Recorded
) -> None:
    trials = RigTrials(PROTOCOL, store.root)
    text = "\n".join(outlook(PROTOCOL, trials.progress()))
    assert "3 initial states, 2 contenders: 6 trials, 0 made" in text
    # (1.96 + 0.84) * 40 / sqrt(3), and its inverse
    assert "find a difference of 65 points" in text
    assert "10 points take 126" in text
    made(PROTOCOL.jobs()[0], outcome="fault")
    assert "0 made, 1 repeated after a fault" in outlook(PROTOCOL, trials.progress())[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contenders": ()}, "at least one, with different names"),
        ({"contenders": (A, A)}, "with different names"),
        ({"contenders": (A, replace(B, denoising_steps=5))}, "for every contender"),
        ({"contenders": (Contender("x", engine="replay", checkpoint="y"),)}, "no engine replay"),
        (
            {"contenders": (Contender("x", checkpoint="y", prompt="z"),)},
            "prompt z is for the simul",
        ),
        ({"groups": PROTOCOL.groups[:1] * 2}, "number 1 is given 2 times"),
        ({"name": "two policies"}, "letters, digits and underscores"),
        ({"order_seed": -1}, "order_seed: -1 must be at least 0"),
        ({"noise_seed": -1}, "noise_seed: -1 must be at least 0"),
        ({"time_limit": -1.0}, "time_limit: -1.0 s must be finite"),
    ],
)
def test_a_protocol_that_cannot_be_followed_is_refused(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        replace(PROTOCOL, **changes)  # type: ignore[arg-type]


def test_the_papers_protocol_has_its_tasks_conditions_and_counts() -> None:
    paper = load_config(TrialProtocol, config_folder("evaluations") / "aloha_paper.yaml")
    check_tasks(paper)
    counts = {(g.task, g.condition): len(g.states) for g in paper.groups}
    assert list(counts.values()) == [20, 10, 12, 8, 15, 10, 20, 6]
    assert paper.tasks == ("plate", "shirt", "candies", "ziploc")
    assert all(state.setup and state.place for state in paper.states())
    other = replace(paper.groups[0], states=(Place(1, prompt="put purple eggplant on plat"),))
    with pytest.raises(ConfigError, match="put purple eggplant on plate"):
        check_tasks(replace(paper, groups=(other,)))


def test_a_contender_is_a_node_of_other_parameters_and_its_errors_do_not_name_it() -> None:
    assert node_parameters(B) == {
        "engine": "cosmos",
        "checkpoint": "aloha_tuned",
        "planning": "best_of_8",
        "world_model": "default",
        "remote": "none",
        "remote_config": "default",
        "numerics": "default",
    }
    assert node_parameters(replace(B, numerics="paper"))["numerics"] == "paper"
    assert node_parameters(replace(A, denoising_steps=5))["denoising_steps"] == 5
    served = Contender("pi0", engine="remote", remote="openpi://127.0.0.1:8000")
    assert node_parameters(served)["remote"] == "openpi://127.0.0.1:8000"
    words = telling(replace(PROTOCOL, contenders=(A, B, served)))
    for text, wanted in (
        ("/models/aloha_tuned/text.safetensors: no prompt of policy b", "…: no prompt of …"),
        (
            "query failed: openpi://127.0.0.1:8000: as 'openpi_aloha' says",
            "query failed: …: as '…'",
        ),
        ("`cosmos trials` makes it; the arms hold", "`cosmos trials` makes it; the arms hold"),
    ):
        assert words.sub("…", text).startswith(wanted)
