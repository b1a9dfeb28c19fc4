"""Pins that one episode never ends the others, and that what was kept back is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.episodes import START_NS, Writing
from helpers.scenes import record_scenes
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.episodes.compact import is_compacted
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore


@pytest.fixture
def episodes(tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(tmp_path / "episodes", types, clock=lambda: START_NS)


@pytest.fixture
def three(episodes: EpisodeStore, types: Typestore) -> list[Path]:
    """Three episodes, the second of them scored, and one being recorded."""
    paths = [record_scenes(Writing(episodes, types), 3) for _ in range(3)]
    episodes.score(OperatorScore(80, True), episode=paths[1].name)
    Writing(episodes, types)
    return paths


def compact(episodes: EpisodeStore, *arguments: str) -> int:
    return cosmos.main(["episodes", "compact", "--root", str(episodes.root), *arguments])


def done(paths: list[Path]) -> list[bool]:
    return [is_compacted(read_episode(path)) for path in paths]


def test_all(episodes: EpisodeStore, three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compact(episodes, "--all") == 0
    assert done(three) == [True] * 3
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    told = (
        r"\w+-\w+: [\d.]+ kB became [\d.]+ kB \(\d+%\), 9 images, PSNR at least [\d.]+ dB, .*mean"
    )
    assert all(re.fullmatch(told, line) for line in lines), lines
    assert re.fullmatch(r"3 episodes compacted, .* became .*", last)
    assert compact(episodes, "--all") == 0
    out = capsys.readouterr().out
    assert out.count("was compacted before") == 3
    assert out.endswith("0 episodes compacted; 3 compacted before\n")


def test_scored_only(episodes: EpisodeStore, three: list[Path]) -> None:
    assert compact(episodes, "--scored") == 0
    assert done(three) == [False, True, False]


def test_named_by_number(episodes: EpisodeStore, three: list[Path]) -> None:
    assert compact(episodes, "1", three[2].name, "--crf", "30") == 0
    assert done(three) == [True, False, True]


def test_one_does_not_end_the_others(
    episodes: EpisodeStore, three: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = read_episode(three[0]).files[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert compact(episodes, "--all") == 1
    assert done(three) == [False, True, True]
    out, err = capsys.readouterr()
    assert f"error: {three[0]}: is damaged" in err and "the episode stays as it is" in err
    assert out.splitlines()[-1].endswith("; 1 left as they were")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name the episodes to compact, or --all or --scored, not both"),
        (("1", "--all"), "not both"),
        (("--all", "--crf", "0"), "--crf: 0 must be from 1 to 40"),
        (("77",), "episode '77' is not in"),
    ],
)
def test_a_wrong_order_is_refused(
    episodes: EpisodeStore,
    three: list[Path],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    assert compact(episodes, *arguments) == 1
    assert says in capsys.readouterr().err
    assert done(three) == [False] * 3
