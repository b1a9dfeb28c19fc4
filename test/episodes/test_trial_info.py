"""Which trial an episode is, in its bag; the contender sealed, and nothing lost with a key."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.episodes import metadata
from hypothesis import given
from hypothesis import strategies as st
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.messages import EPISODE_TYPE, decode_metadata, encode_metadata
from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.episodes.trial_info import (
    TrialInfo,
    opened_metadata,
    parse_trial,
    read_trial,
    seal,
    sealed_metadata,
    unseal,
)

TEXTS = st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=4)


@given(TEXTS)
def test_a_seal_opens_to_what_went_in(content: dict[str, str]) -> None:
    assert unseal(seal(content)) == content


def test_nothing_in_a_sealed_episode_can_be_read_by_looking_at_it() -> None:
    trial = TrialInfo("paper", "out_of_distribution", 3, sealed=seal({"contender": "pi05"}))
    known = metadata(trial=trial.text(), checkpoint="/models/aloha_tuned")
    sealed = sealed_metadata(known)
    for telling in ("pi05", "aloha_tuned", "feedc0de", "cosmos"):
        assert telling not in sealed.trial + sealed.engine + sealed.checkpoint
    assert sealed.checkpoint_digest == ""
    found = read_trial(sealed)
    assert found is not None
    assert (found.evaluation, found.condition, found.state) == ("paper", "out_of_distribution", 3)
    opened = opened_metadata(sealed)
    assert read_trial(opened) == TrialInfo("paper", "out_of_distribution", 3, "pi05")
    assert (opened.engine, opened.checkpoint) == ("cosmos", "/models/aloha_tuned")
    assert opened.checkpoint_digest == known.checkpoint_digest
    again = sealed_metadata(known)
    assert again.trial != sealed.trial  # two episodes of one contender do not look alike


def test_an_open_trial_and_none_stay_as_they_are() -> None:
    for trial in ("", TrialInfo("paper", "usual", 3, "pi05").text()):
        known = metadata(trial=trial)
        assert sealed_metadata(known) == opened_metadata(known) == known


def test_a_bag_from_before_there_were_trials_opens(types: Typestore, tmp_path: Path) -> None:
    folder = tmp_path / "msg"
    folder.mkdir()
    for file in (package_share() / "msg").glob("*.msg"):
        text = file.read_text()
        lines = [line for line in text.splitlines() if not line.startswith("string trial ")]
        (folder / file.name).write_text("\n".join(lines) + "\n")
    older = load_types(folder)
    stamp = older.types["builtin_interfaces/msg/Time"](sec=1, nanosec=0)
    header = older.types["std_msgs/msg/Header"](stamp=stamp, frame_id="")
    known = metadata()
    fields = {name: value for name, value in vars(known).items() if name != "trial"}
    cdr = older.serialize_cdr(older.types[EPISODE_TYPE](header=header, **fields), EPISODE_TYPE)
    assert decode_metadata(older, bytes(cdr)) == known
    now = metadata(trial=TrialInfo("paper", "usual", 3, "a").text())
    assert decode_metadata(types, encode_metadata(types, now, 5)) == now


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "{" * 100_000,
        '{"condition": "usual"}',
        '{"condition": "usual", "state": "3"}',
        '{"condition": "usual", "state": 3, "key": 1}',
    ],
)
def test_what_is_no_trial_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(RolloutError, match="trial"):
        parse_trial(text)


@given(st.text(alphabet="ABCabc012+/=", max_size=80))
def test_what_is_no_seal_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(RolloutError, match="seal"):
        unseal(text)
