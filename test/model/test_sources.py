"""Pins what is asked of Hugging Face and what an operator is told when a part is not there."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.model.convert import Parts, find_parts, hub_download, shipped_config
from cosmos_policy_ros.model.files import RELEASES, VAE_FILE, VAE_REPOSITORY

ALOHA = "nvidia/Cosmos-Policy-ALOHA-Predict2-2B"
PLANNING = "nvidia/Cosmos-Policy-ALOHA-Planning-Model-Predict2-2B"
SUITES = (
    "nvidia/Cosmos-Policy-LIBERO-Predict2-2B",
    "nvidia/Cosmos-Policy-RoboCasa-Predict2-2B",
)
ALOHA_FILES = (
    "Cosmos-Policy-ALOHA-Predict2-2B.pt",
    "aloha_dataset_statistics.json",
    "aloha_t5_embeddings.pkl",
)


class Hub:
    """Repositories, of which what is asked for comes into a folder; remembers what that was."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.there: list[tuple[str, str]] = []
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def add(self, repository: str, *names: str) -> None:
        self.there += [(repository, name) for name in names]

    def download(self, repository: str, patterns: Sequence[str]) -> Path:
        self.asked.append((repository, tuple(patterns)))
        for where, name in self.there:
            if where == repository and any(fnmatch(name, pattern) for pattern in patterns):
                path = self.root / repository / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        return self.root / repository

    def downloaded(self, repository: str) -> Path:
        """Return a whole repository, downloaded before."""
        folder = self.download(repository, ("*",))
        self.asked.clear()
        return folder


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    (tmp_path / "hub").mkdir()
    hub = Hub(tmp_path / "hub")
    hub.add(VAE_REPOSITORY, VAE_FILE)
    for release in RELEASES:
        hub.add(release.repository, *release.files)
    hub.add(PLANNING, "model/some_name.pt")
    return hub


def test_aloha_by_name(hub: Hub) -> None:
    found = find_parts(ALOHA, Parts(), hub.download)
    folder = hub.root / ALOHA
    assert (found.weights, found.statistics, found.prompts) == tuple(
        folder / name for name in ALOHA_FILES
    )
    assert found.vae == hub.root / VAE_REPOSITORY / VAE_FILE
    assert found.config == shipped_config("aloha_2b")
    assert hub.asked == [(ALOHA, ALOHA_FILES), (VAE_REPOSITORY, (VAE_FILE,))]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("place", ["", "model/"])
def test_weights_of_libero_and_robocasa_have_any_name(hub: Hub, suite: str, place: str) -> None:
    """A guessed name was asked for, and a repository that has weights said to have none."""
    hub.add(suite, f"{place}a_name_that_no_source_tells.pt")
    folder = hub.root / suite
    release = next(r for r in RELEASES if r.repository == suite)
    found = find_parts(suite, Parts(), hub.download)
    assert found.weights == folder / place / "a_name_that_no_source_tells.pt"
    assert (found.statistics, found.prompts) == tuple(folder / name for name in release.files)
    assert found.config == shipped_config(release.config)
    assert [repository for repository, _ in hub.asked] == [suite, suite, VAE_REPOSITORY]
    assert "*.pt" in hub.asked[1][1]
    assert find_parts(str(folder), Parts(vae=found.vae), hub.download) == found


def test_several_weights_are_named(hub: Hub) -> None:
    hub.add(SUITES[0], "first.pt", "second.pt")
    with pytest.raises(
        CheckpointError,
        match=r"several files could be the weights: .*first\.pt, .*second\.pt; .*--weights",
    ):
        find_parts(SUITES[0], Parts(), hub.download)


@pytest.mark.parametrize("place", ["", "model/"])
@pytest.mark.parametrize(
    "names",
    [
        ("model.safetensors",),
        ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
        ("diffusion_pytorch_model.safetensors.index.json",),
        ("diffusion_pytorch_model.safetensors",),
    ],
    ids=lambda names: names[0],
)
def test_weights_of_other_trainers(
    hub: Hub, tmp_path: Path, place: str, names: tuple[str, ...]
) -> None:
    beside = ("dataset_statistics.json", "my_t5_embeddings.pkl")
    hub.add("lab/mine", *beside, *(f"{place}{name}" for name in names))
    expected = hub.root / "lab/mine" / place / names[0]
    given = Parts(config=shipped_config("aloha_2b"), vae=tmp_path / "tokenizer.pth")
    assert find_parts("lab/mine", given, hub.download).weights == expected
    assert find_parts(str(hub.root / "lab/mine"), given, hub.download).weights == expected
    named = replace(given, weights=hub.root / "lab/mine" / place)
    assert find_parts("lab/mine", named, hub.download).weights == expected
    assert "*.pt" not in hub.asked[-1][1], "weights that were given are not downloaded"


def test_planning_model_takes_statistics_and_prompts_from_the_policy(hub: Hub) -> None:
    found = find_parts(PLANNING, Parts(), hub.download)
    assert found.weights == hub.root / PLANNING / "model" / "some_name.pt"
    assert found.statistics == hub.root / ALOHA / "aloha_dataset_statistics.json"
    assert found.prompts == hub.root / ALOHA / "aloha_t5_embeddings.pkl"
    assert found.config == shipped_config("aloha_2b")
    assert hub.asked[1][0] == ALOHA
    assert not any(name.endswith(".pt") for name in hub.asked[1][1]), "4 GB for nothing"


def test_another_fine_tuning_needs_a_config(hub: Hub) -> None:
    hub.add("lab/mine", "model/.metadata", "dataset_statistics.json", "my_t5_embeddings.pkl")
    with pytest.raises(CheckpointError, match=r"lacks parts .* --config: the kind of model"):
        find_parts("lab/mine", Parts(), hub.download)
    given = Parts(config=shipped_config("aloha_2b"))
    found = find_parts("lab/mine", given, hub.download)
    assert found.weights == hub.root / "lab/mine/model"
    assert not found.missing()


def test_given_parts_are_not_looked_for(hub: Hub, tmp_path: Path) -> None:
    folder = hub.downloaded(ALOHA)
    (folder / "second.pt").touch()
    with pytest.raises(CheckpointError, match=r"several files could be the weights: .*--weights"):
        find_parts(str(folder), Parts(), hub.download)
    given = Parts(weights=folder / "second.pt", vae=tmp_path / "vae.pth")
    found = find_parts(str(folder), given, hub.download)
    assert (found.weights, found.vae) == (given.weights, given.vae)
    assert hub.asked == []


def test_missing_parts_are_named_with_where_they_are_published(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(CheckpointError) as caught:
        find_parts(str(folder), Parts(), hub.download)
    message = str(caught.value)
    for part in (*ALOHA_FILES[1:], VAE_FILE, VAE_REPOSITORY, ALOHA, "--weights", "--vae"):
        assert part in message


def test_neither_folder_nor_repository(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a repository like nvidia/"):
        find_parts("/no/where/at/all", Parts(), hub.download)
    (tmp_path / "file.pt").touch()
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        find_parts(str(tmp_path / "file.pt"), Parts(), hub.download)


def test_unknown_config_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no model config 'aloha_2'; did you mean 'aloha_2b'"):
        shipped_config("aloha_2")


def test_offline_names_the_repository_and_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host\nsecond line")

    fake = types.ModuleType("huggingface_hub")
    fake.snapshot_download = offline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    with pytest.raises(CheckpointError) as caught:
        find_parts(ALOHA, Parts(), hub_download)
    message = str(caught.value)
    assert "\n" not in message
    for part in (ALOHA, *ALOHA_FILES, "no route to host", "copy these files into one folder"):
        assert part in message
