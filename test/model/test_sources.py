"""Pins what is asked of Hugging Face and what an operator is told when a part is not there."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.model.convert import Parts, find_parts, hub_download, shipped_config
from cosmos_policy_ros.model.files import RELEASES, VAE_FILE, VAE_REPOSITORY

ALOHA = "nvidia/Cosmos-Policy-ALOHA-Predict2-2B"
PLANNING = "nvidia/Cosmos-Policy-ALOHA-Planning-Model-Predict2-2B"
ALOHA_FILES = (
    "Cosmos-Policy-ALOHA-Predict2-2B.pt",
    "aloha_dataset_statistics.json",
    "aloha_t5_embeddings.pkl",
)


class Hub:
    """Repositories as folders; remembers what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def add(self, repository: str, *names: str) -> None:
        for name in names:
            path = self.root / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def download(self, repository: str, patterns: Sequence[str]) -> Path:
        self.asked.append((repository, tuple(patterns)))
        return self.root / repository


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    hub = Hub(tmp_path / "hub")
    hub.add(VAE_REPOSITORY, VAE_FILE)
    for release in RELEASES:
        hub.add(release.repository, *release.files)
    hub.add(PLANNING, "model/some_name.pt")
    return hub


@pytest.mark.parametrize("release", [r for r in RELEASES if r.files], ids=lambda r: r.config)
def test_release_by_name(hub: Hub, release: types.SimpleNamespace) -> None:
    found = find_parts(release.repository, Parts(), hub.download)
    folder = hub.root / release.repository
    assert (found.weights, found.statistics, found.prompts) == tuple(
        folder / name for name in release.files
    )
    assert found.vae == hub.root / VAE_REPOSITORY / VAE_FILE
    assert found.config == shipped_config(release.config)
    assert hub.asked == [(release.repository, release.files), (VAE_REPOSITORY, (VAE_FILE,))]


def test_planning_model_takes_statistics_and_prompts_from_the_policy(hub: Hub) -> None:
    found = find_parts(PLANNING, Parts(), hub.download)
    assert found.weights == hub.root / PLANNING / "model" / "some_name.pt"
    assert found.statistics == hub.root / ALOHA / "aloha_dataset_statistics.json"
    assert found.prompts == hub.root / ALOHA / "aloha_t5_embeddings.pkl"
    assert found.config == shipped_config("aloha_2b")
    assert "Cosmos-Policy-ALOHA-Predict2-2B.pt" not in str(hub.asked), "4 GB for nothing"


def test_somebodys_fine_tuning_needs_a_config(hub: Hub) -> None:
    hub.add("lab/mine", "model/.metadata", "dataset_statistics.json", "my_t5_embeddings.pkl")
    with pytest.raises(CheckpointError, match=r"lacks parts .* --config: the kind of model"):
        find_parts("lab/mine", Parts(), hub.download)
    given = Parts(config=shipped_config("aloha_2b"))
    found = find_parts("lab/mine", given, hub.download)
    assert found.weights == hub.root / "lab/mine/model"
    assert not found.missing()


def test_given_parts_are_not_looked_for(hub: Hub, tmp_path: Path) -> None:
    folder = hub.root / ALOHA
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
