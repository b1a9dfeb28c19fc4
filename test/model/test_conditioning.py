"""A chunk that begins with what the arms are committed to, from a network never trained on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model.denoiser import Denoiser
from cosmos_policy_ros.model.draws import SampleSpec
from cosmos_policy_ros.model.layout import inject
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.rig.decision import ActionPrefix, Decision, Query

ROWS = 50


@pytest.fixture(scope="module")
def trained() -> CosmosPolicy:
    """The checkpoint that ships with the package; it smooths its chunks."""
    return CosmosPolicy.load(config_folder("models") / "tiny", device="cpu")


@pytest.fixture(scope="module")
def known(trained: CosmosPolicy, query: Query) -> Query:
    """A query that the trained checkpoint knows."""
    return replace(query, prompt=next(iter(trained.checkpoint.text.embeddings)))


@pytest.fixture(scope="module")
def plain(trained: CosmosPolicy, known: Query) -> Decision:
    return trained.decide(known)


@pytest.fixture(scope="module")
def path(plain: Decision) -> np.ndarray:
    """Another chunk than the policy would choose, by a few hundredths of a radian."""
    wave = 0.03 * np.sin(np.linspace(0.0, 3.0, ROWS))[:, None]
    return np.asarray(plain.positions + wave + 0.02)


def decide(policy: CosmosPolicy, query: Query, path: np.ndarray, weights: np.ndarray) -> Decision:
    committed = ActionPrefix(path[: len(weights)], weights, len(weights) * 0.04)
    return policy.decide(replace(query, committed=committed))


def test_a_whole_chunk_that_is_committed_comes_back(
    trained: CosmosPolicy, known: Query, path: np.ndarray
) -> None:
    np.testing.assert_array_equal(decide(trained, known, path, np.ones(ROWS)).positions, path)


@pytest.mark.parametrize("rows", [0, 1, ROWS])
def test_with_nothing_committed_nothing_changes(
    trained: CosmosPolicy, known: Query, plain: Decision, path: np.ndarray, rows: int
) -> None:
    free = decide(trained, known, path, np.zeros(rows))
    np.testing.assert_array_equal(free.positions, plain.positions)
    np.testing.assert_array_equal(free.imagined, plain.imagined)
    assert free.candidates == plain.candidates


def test_all_copies_are_held_at_every_evaluation(
    trained: CosmosPolicy, known: Query, path: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the solver is led by, evaluation by evaluation, and the copy that is cut off too."""
    checkpoint, seen = trained.checkpoint, []
    ask = Denoiser.__call__

    def spy(self: Denoiser, *args: object, **more: object) -> Tensor:
        estimate = ask(self, *args, **more)  # type: ignore[arg-type]
        seen.append(estimate[0, :, checkpoint.layout.index("action")].clone())
        return estimate

    monkeypatch.setattr(Denoiser, "__call__", spy)
    held = 20
    weights = np.concatenate([np.ones(held), [0.5], np.zeros(4)])
    decide(trained, known, path, weights)
    assert len(seen) == checkpoint.config.denoising_steps
    chunk = np.zeros((ROWS, 14))
    chunk[:held] = checkpoint.statistics.actions.normalise(path[:held])
    rows = torch.zeros(ROWS, 14, dtype=torch.bool)
    rows[:held] = True
    shape = checkpoint.config.frame_shape
    values = inject(torch.from_numpy(chunk.astype(np.float32)).flatten(), shape)
    mask = inject(rows.flatten(), shape)
    assert mask.sum() > held * 14, "several copies"
    for estimate in seen:
        assert torch.equal(estimate[mask], values[mask])
        assert (estimate[~mask] != values[~mask]).any()


def test_candidates_of_a_search_are_held_alike(
    trained: CosmosPolicy, known: Query, path: np.ndarray
) -> None:
    committed = ActionPrefix(path[:20], np.ones(20), 0.8)
    scene = trained.encode_observation(known.prompt, known.observation)
    latents = trained.sample_actions(
        scene, [SampleSpec(1, 5), SampleSpec(2, 5)], committed=committed
    )
    chunks = trained.chunks(latents, committed)
    np.testing.assert_array_equal(chunks[:, :20], np.stack([path[:20]] * 2))
    assert np.abs(chunks[0, 20:] - chunks[1, 20:]).max() > 1e-4


def test_a_path_longer_than_a_chunk_is_cut(
    trained: CosmosPolicy, known: Query, path: np.ndarray
) -> None:
    longer = np.concatenate([path, path[-1:].repeat(5, axis=0)])
    found = decide(trained, known, longer, np.ones(ROWS + 5)).positions
    np.testing.assert_array_equal(found, path)
