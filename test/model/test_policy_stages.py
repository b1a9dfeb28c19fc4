"""Pins the three questions to the network: asked many at once, each is answered as if alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from cosmos_policy_ros.model import images, policy
from cosmos_policy_ros.model.draws import SampleSpec, ensemble
from cosmos_policy_ros.model.layout import FUTURE, ValueMode, first_image
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sequence import Conditioning, image_sequence, step_ahead
from cosmos_policy_ros.rig.decision import Query

# Batches of another size take other matrix kernels.
ROUNDING = 2e-5

STATE, ACTION, FUTURES, VALUE = range(5), 5, range(6, 10), 10
PROMPT = "transfer the red cube"


@pytest.fixture(scope="module")
def scene(tiny: CosmosPolicy, query: Query) -> Conditioning:
    return tiny.encode_observation(query.prompt, query.observation)


@pytest.fixture(scope="module")
def proposals(tiny: CosmosPolicy, scene: Conditioning) -> Tensor:
    return tiny.sample_actions(scene, [SampleSpec(195, 3), SampleSpec(196, 3)])


@pytest.fixture(scope="module")
def imagined(tiny: CosmosPolicy, proposals: Tensor) -> Tensor:
    """Two futures of the first proposal, one of the second."""
    latents = proposals[[0, 0, 1]]
    return tiny.predict_future(
        PROMPT, latents, [SampleSpec(195, 1), SampleSpec(196, 3), SampleSpec(196, 3)]
    )


class Counter:
    """The network, counting the samples of each evaluation."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network = network
        self.samples: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.network, name)

    def __call__(self, latent: Tensor, *args: object) -> Tensor:
        self.samples.append(len(latent))
        return self.network(latent, *args)


@pytest.fixture
def evaluations(tiny: CosmosPolicy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each evaluation of the network had."""
    counter = Counter(tiny._network)
    monkeypatch.setattr(tiny, "_network", counter)
    return counter.samples


def test_proposals_of_different_lengths_share_their_evaluations(
    tiny: CosmosPolicy, scene: Conditioning, evaluations: list[int]
) -> None:
    draws = [SampleSpec(195, 5), SampleSpec(7, 1), SampleSpec(196, 3)]
    together = tiny.sample_actions(scene, draws)
    assert evaluations == [3, 2, 2, 1, 1]
    alone = torch.cat([tiny.sample_actions(scene, [draw]) for draw in draws])
    torch.testing.assert_close(together, alone, rtol=0, atol=ROUNDING, equal_nan=True)
    chunks = tiny.chunks(together)
    assert chunks.shape == (3, 50, 14)
    assert np.abs(chunks[0] - chunks[2]).max() > 1e-4, "seeds make proposals differ"


def test_a_decision_is_the_proposal_of_its_seed(
    tiny: CosmosPolicy, query: Query, scene: Conditioning
) -> None:
    decision = tiny.decide(query)
    latents = tiny.sample_actions(scene, [SampleSpec(query.seed, 10)], futures=True)
    np.testing.assert_array_equal(tiny.chunks(latents)[0], decision.positions)
    assert tiny.values(latents) == decision.candidates[0].values


def test_the_future_comes_along_when_asked(tiny: CosmosPolicy, scene: Conditioning) -> None:
    draws = [SampleSpec(195, 3)]
    without, having = (
        tiny.sample_actions(scene, draws),
        tiny.sample_actions(scene, draws, futures=True),
    )
    assert without[:, :, FUTURES].isnan().all() and having.isfinite().all()
    for frame in (*STATE, ACTION, VALUE):
        torch.testing.assert_close(without[:, :, frame], having[:, :, frame], rtol=0, atol=ROUNDING)


def test_world_model_keeps_state_and_action_and_makes_the_future(
    proposals: Tensor, imagined: Tensor
) -> None:
    known = [*STATE, ACTION]
    assert torch.equal(imagined[:, :, known], proposals[[0, 0, 1]][:, :, known])
    future = imagined[:, :, FUTURES]
    assert future.isfinite().all() and imagined[:, :, VALUE].isnan().all()
    assert (future[0] - future[1]).abs().max() > 1e-3, "members differ"
    assert (future[1] - future[2]).abs().max() > 1e-6, "actions matter"


@pytest.mark.parametrize(
    ("mode", "matters"),
    [
        ("value_s", {"primary": False, "action": False, "future_primary": True}),
        ("value_q", {"primary": True, "action": True, "future_primary": False}),
        ("value_sas", {"primary": True, "action": True, "future_primary": True}),
    ],
)
def test_value_depends_on_what_its_mode_knows_and_on_nothing_else(
    tiny: CosmosPolicy, imagined: Tensor, mode: ValueMode, matters: dict[str, bool]
) -> None:
    draws = [SampleSpec(195, 3), SampleSpec(196, 1), SampleSpec(197, 3)]
    values = tiny.predict_value(PROMPT, imagined, draws, mode)
    assert len(values) == 3 and all(0 <= value <= 1 for value in values)
    for name, counts in matters.items():
        changed = imagined.clone()
        changed[:, :, tiny.checkpoint.layout.index(name)] += 1
        assert (tiny.predict_value(PROMPT, changed, draws, mode) != values) == counts, name


@pytest.mark.parametrize(
    ("mode", "matters", "exact"),
    [("value_s", "future_primary", False), ("value_q", "action", False), ("value_sas", "", True)],
)
def test_a_value_of_the_known_frames_alone(
    tiny: CosmosPolicy, imagined: Tensor, mode: ValueMode, matters: str, exact: bool
) -> None:
    """The network does not see the other frames: neither what they hold nor the noise in them."""
    draws = [SampleSpec(195, 3), SampleSpec(196, 1), SampleSpec(197, 3)]
    every = tiny.predict_value(PROMPT, imagined, draws, mode)
    known = tiny.predict_value(PROMPT, imagined, draws, mode, "known")
    assert len(known) == 3 and all(0 <= value <= 1 for value in known)
    assert (known == pytest.approx(every, abs=1e-6)) == exact
    for name in ("primary", "action", "future_primary"):
        changed = imagined.clone()
        changed[:, :, tiny.checkpoint.layout.index(name)] = torch.nan
        seen = tiny.checkpoint.layout.mask(mode)[tiny.checkpoint.layout.index(name)]
        again = tiny.predict_value(PROMPT, changed, draws, mode, "known")
        assert (again == known) != seen, name
    if matters:
        changed = imagined.clone()
        changed[:, :, tiny.checkpoint.layout.index(matters)] += 1
        assert tiny.predict_value(PROMPT, changed, draws, mode, "known") != known


def test_candidates_with_released_ensembles(
    tiny: CosmosPolicy, scene: Conditioning, evaluations: list[int]
) -> None:
    """One by one these would be 3 x 54 evaluations (3 + 9 + 3 x 14); here they share 13."""
    seeds = range(195, 198)
    proposals = tiny.sample_actions(scene, [SampleSpec(seed, 3) for seed in seeds])
    futures = [draw for seed in seeds for draw in ensemble(seed, 3, 5, "released")]
    imagined = tiny.predict_future(PROMPT, proposals.repeat_interleave(3, dim=0), futures)
    draws_of_values = [
        draw for seed in seeds for _ in range(3) for draw in ensemble(seed, 5, 5, "released")
    ]
    values = tiny.predict_value(PROMPT, imagined.repeat_interleave(5, dim=0), draws_of_values)
    assert len(values) == 45
    assert evaluations == [3] * 3 + [9, 6, 6, 3, 3] + [45, 27, 27, 18, 9]
    alone = tiny.predict_value(PROMPT, imagined[-1:], [SampleSpec(201, 5)])
    assert values[-1] == pytest.approx(alone[0], abs=ROUNDING)


def test_large_batches_are_split_without_a_difference(
    tiny: CosmosPolicy,
    imagined: Tensor,
    evaluations: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = [SampleSpec(195, 5), SampleSpec(196, 1), SampleSpec(197, 5)]
    whole = tiny.predict_value(PROMPT, imagined, draws)
    assert evaluations == [3, 2, 2, 2, 2]
    evaluations.clear()
    monkeypatch.setattr(policy, "TOKENS_AT_ONCE", 2 * tiny.checkpoint.config.tokens)
    split = tiny.predict_value(PROMPT, imagined, draws)
    assert evaluations == [2, 1, 1, 1, 1] + [1] * 5
    assert split == pytest.approx(whole, abs=ROUNDING)


def test_one_latent_serves_all_draws(tiny: CosmosPolicy, proposals: Tensor) -> None:
    draws = ensemble(195, 3, 3, "paper")
    one = tiny.predict_future(PROMPT, proposals[:1], draws)
    each = tiny.predict_future(PROMPT, proposals[[0, 0, 0]], draws)
    assert torch.equal(one[:, :, :VALUE], each[:, :, :VALUE])


def test_latents_and_draws_must_match(tiny: CosmosPolicy, proposals: Tensor) -> None:
    with pytest.raises(ValueError, match="2 latents for 3 draws"):
        tiny.predict_future(PROMPT, proposals, [SampleSpec(1, 1)] * 3)


@torch.inference_mode()
def _decoded_the_slow_way(
    tiny: CosmosPolicy, scene: Conditioning, latent: Tensor
) -> list[np.ndarray]:
    """Encode all 41 images, put the placeholders back, decode all 41, take one of each four."""
    layout, tokenizer = tiny.checkpoint.layout, tiny.checkpoint.tokenizer
    whole = image_sequence(layout, scene.images, layout.count)
    clean = tokenizer.encode(images.to_model(whole, tokenizer.dtype))
    restored = latent.clone()
    restored[:, :, [0, 1, 5, 6]] = clean[:, :, [0, 1, 5, 6]]
    video = ((tokenizer.decode(restored)[0] + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    frames: Sequence[int] = [layout.index(FUTURE + role) for role in layout.cameras]
    return [video[:, first_image(frame)].permute(1, 2, 0).numpy() for frame in frames]


def test_imagined_images(tiny: CosmosPolicy, scene: Conditioning, imagined: Tensor) -> None:
    found = tiny.decode_images(scene, imagined[:2])
    assert [list(each) for each in found] == [["left_wrist", "right_wrist", "primary"]] * 2
    expected = _decoded_the_slow_way(tiny, scene, imagined[1:2])
    for image, slow in zip(found[1].values(), expected, strict=True):
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        # Rounding may fall to the other side of a level.
        assert np.abs(image.astype(int) - slow).max() <= 1
    assert any((found[0][role] != found[1][role]).any() for role in found[0])


def test_what_was_not_imagined_cannot_be_seen(
    tiny: CosmosPolicy, scene: Conditioning, proposals: Tensor
) -> None:
    with pytest.raises(ValueError, match="no future"):
        tiny.decode_images(scene, proposals)


def test_a_step_ahead(tiny: CosmosPolicy, imagined: Tensor) -> None:
    """The released code writes the measured proprioception over the predicted one."""
    layout = tiny.checkpoint.layout
    paper, released = (step_ahead(layout, imagined, n) for n in ("paper", "released"))
    for ahead in (paper, released):
        assert torch.equal(ahead[:, :, 0], imagined[:, :, 0])
        assert torch.equal(ahead[:, :, 2:5], imagined[:, :, 7:10])
        assert not ahead[:, :, 5:].any()
    assert torch.equal(paper[:, :, 1], imagined[:, :, 6])
    assert torch.equal(released[:, :, 1], imagined[:, :, 1])
