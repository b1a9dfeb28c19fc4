"""Pins one whole query: what goes into which frame, what comes out, and that it can be replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from cosmos_policy_ros.core.errors import CheckpointError, ConfigError, ObservationError
from cosmos_policy_ros.model.layout import LAYOUTS, inject
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sampler import sample
from cosmos_policy_ros.model.sequence import (
    encode_known,
    image_sequence,
    inject_proprio,
    prepare_images,
)
from cosmos_policy_ros.model.transformer import TextKV
from cosmos_policy_ros.rig.decision import Decision, Policy, Query
from cosmos_policy_ros.rig.observation import Observation

STEP_LIMIT = 0.1257  # rad per 40 ms, of the rig's gate
START_LIMIT = 0.15  # rad from the measured state, of the rig's gate


@pytest.fixture(scope="module")
def decision(tiny: CosmosPolicy, query: Query) -> Decision:
    policy: Policy = tiny
    return policy.decide(query)


def test_chunk_is_finite_and_tame(decision: Decision, query: Query) -> None:
    """Random weights must pass the safety gate from the start pose, or the demo never moves."""
    assert decision.positions.shape == (50, 14)
    assert decision.positions.dtype == np.float64
    assert np.isfinite(decision.positions).all()
    assert np.abs(np.diff(decision.positions, axis=0)).max() < STEP_LIMIT / 2
    assert np.abs(decision.positions - query.observation.state).max() < START_LIMIT / 2
    assert np.ptp(decision.positions, axis=0).min() > 1e-4, "it should be seen to move"


def test_decision_tells_what_was_done(decision: Decision, tiny: CosmosPolicy) -> None:
    assert decision.engine == "cosmos"
    assert decision.dt == 0.04
    assert decision.denoising_steps == 10
    assert decision.checkpoint_digest == tiny.checkpoint.digest
    assert list(decision.phases) == ["preprocess", "encode", "denoise", "extract"]
    assert "random weights" in decision.reason
    (candidate,) = decision.candidates
    assert decision.chosen == 0 and candidate.seed == 195
    assert candidate.values == (candidate.value,) and 0 <= candidate.value <= 1


def test_same_query_same_answer(decision: Decision, tiny: CosmosPolicy, query: Query) -> None:
    again = tiny.decide(dataclasses.replace(query, index=4))
    np.testing.assert_array_equal(again.positions, decision.positions)
    assert again.candidates[0].value == decision.candidates[0].value


def test_the_last_noise_level_is_the_checkpoints(tiny: CosmosPolicy, query: Query) -> None:
    config = dataclasses.replace(tiny.checkpoint.config, sigma_min=1.0)
    policy = CosmosPolicy(dataclasses.replace(tiny.checkpoint, config=config))
    with patch("cosmos_policy_ros.model.policy.sample", wraps=sample) as sampler:
        policy.decide(query)
    *_, last = sampler.call_args.args[2]
    assert float(last.sigma) == pytest.approx(1.0)


@pytest.mark.parametrize("sigma_min", [0.0, -1.0, 80.0])
def test_impossible_last_noise_levels_are_named(tiny: CosmosPolicy, sigma_min: float) -> None:
    with pytest.raises(ValueError, match=f"sigma_min is {sigma_min}, must be above 0"):
        dataclasses.replace(tiny.checkpoint.config, sigma_min=sigma_min)


@pytest.mark.parametrize("change", ["seed", "prompt", "state", "primary"])
def test_every_part_of_a_query_counts(
    change: str, decision: Decision, tiny: CosmosPolicy, query: Query
) -> None:
    observation = query.observation
    changed = {
        "seed": dataclasses.replace(query, seed=196),
        "prompt": dataclasses.replace(query, prompt="fold shirt"),
        "state": _with(query, state=observation.state + 0.004),
        "primary": _with(query, images={**observation.images, "primary": _black()}),
    }[change]
    assert np.abs(tiny.decide(changed).positions - decision.positions).max() > 1e-7


def _with(query: Query, **changes: object) -> Query:
    changed = dataclasses.replace(query.observation, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(query, observation=changed)


def _black() -> np.ndarray:
    return np.zeros((480, 640, 3), np.uint8)


class Recorder(torch.nn.Module):
    """Predicts a known chunk and value, and keeps the inputs."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.calls: list[tuple[Tensor, Tensor]] = []

    def read(self, prompt: str, embed: Callable[[str], Tensor]) -> TextKV:
        return TextKV(embed(prompt), embed(prompt), None)

    def prepare(self, timestep: Tensor) -> Tensor:
        return timestep

    def forward(
        self, latent: Tensor, timestep: Tensor, known: Tensor, text: TextKV, *_: object
    ) -> Tensor:
        self.calls.append((latent.clone(), timestep.clone()))
        return self.answer


def test_frames_in_and_frames_out(tiny: CosmosPolicy, query: Query) -> None:
    chunk = torch.linspace(-1, 1, 700)
    answer = torch.zeros(1, 16, 11, 8, 8)
    answer[0, :, 5] = inject(chunk, (16, 8, 8))
    answer[0, :, 10] = 0.5
    network = Recorder(answer)
    policy = CosmosPolicy(tiny.checkpoint)
    policy._network = network  # type: ignore[assignment]
    decision = policy.decide(query)

    limits = tiny.checkpoint.statistics.actions
    expected = limits.unnormalise(chunk.double().numpy().reshape(50, 14))
    np.testing.assert_allclose(decision.positions, expected, atol=1e-9)
    assert decision.candidates[0].value == 0.75

    assert len(network.calls) == 10
    first, last = network.calls[0], network.calls[-1]
    assert torch.equal(first[0][:, :, :5], last[0][:, :, :5]), "known frames stay clean"
    assert first[1].tolist() == [[0.0] * 5 + [0.98828125] * 6]
    proprio = tiny.checkpoint.statistics.proprio.normalise(query.observation.state)
    injected = inject(torch.from_numpy(proprio).float(), (16, 8, 8))
    assert torch.equal(first[0][0, :, 1], injected)


@torch.inference_mode()
def test_known_latents_equal_those_of_the_whole_sequence(
    tiny: CosmosPolicy, observation: Observation
) -> None:
    checkpoint = tiny.checkpoint
    images = prepare_images(observation, checkpoint)
    known = encode_known(checkpoint, [images], 5, "cpu")
    whole = encode_known(checkpoint, [images], 11, "cpu")
    assert torch.equal(known[:, :, :5], whole[:, :, :5])
    assert not known[:, :, 5:].any()


def test_images_lie_where_the_layout_says() -> None:
    images = {
        role: torch.full((2, 2, 3), i + 1, dtype=torch.uint8)
        for i, role in enumerate(("left_wrist", "right_wrist", "primary"))
    }
    sequence = image_sequence(LAYOUTS["aloha"], images, 11)
    assert sequence.shape == (41, 2, 2, 3)
    expected = [0] * 5 + [1] * 4 + [2] * 4 + [3] * 4 + [0] * 8 + [1] * 4 + [2] * 4 + [3] * 4
    assert sequence[:, 0, 0, 0].tolist() == expected + [0] * 4
    assert image_sequence(LAYOUTS["aloha"], images, 5).shape[0] == 17


def test_proprio_is_rounded_to_the_networks_format(
    tiny: CosmosPolicy, observation: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = dataclasses.replace(observation, state=observation.state + 0.00123)
    clean = torch.zeros(1, 16, 11, 8, 8)
    monkeypatch.setattr(type(tiny.checkpoint.tokenizer), "dtype", torch.bfloat16)
    inject_proprio(tiny.checkpoint, clean, state)
    rounded = clean[:, :, 1]
    assert torch.equal(rounded.bfloat16().float(), rounded)
    assert float(rounded[0, 0, 0, 0]) == pytest.approx(0.246, abs=1e-3)


def test_unknown_prompt_suggests(tiny: CosmosPolicy, query: Query) -> None:
    with pytest.raises(CheckpointError, match="did you mean 'transfer the red cube'"):
        tiny.decide(dataclasses.replace(query, prompt="transfer the red cub"))


def test_missing_camera_is_named(tiny: CosmosPolicy, query: Query) -> None:
    images = {k: v for k, v in query.observation.images.items() if k != "right_wrist"}
    with pytest.raises(ObservationError, match="no image of camera right_wrist"):
        tiny.decide(_with(query, images=images))


@pytest.mark.parametrize("state", [np.zeros(13), np.full(14, np.nan)], ids=["short", "NaN"])
def test_unusable_state_is_refused(tiny: CosmosPolicy, query: Query, state: np.ndarray) -> None:
    with pytest.raises(ObservationError, match="needs 14 finite numbers"):
        tiny.decide(_with(query, state=state))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threads": 0}, "0 CPU threads"), ({"device": "nonsense"}, "'nonsense' cannot be used")],
)
def test_unusable_machine_is_named(
    tiny_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        CosmosPolicy.load(tiny_path, **options)  # type: ignore[arg-type]


def test_load_limits_torchs_threads(tiny: CosmosPolicy) -> None:
    assert torch.get_num_threads() == 1
