"""Pins preconditioning and conditioning: known frames enter clean, at timestep 0, and stay."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cosmos_policy_ros.model.config import Preconditioning, TransformerConfig
from cosmos_policy_ros.model.denoiser import Denoiser, scales
from cosmos_policy_ros.model.sampler import schedule
from cosmos_policy_ros.model.transformer import CachedTransformer, Transformer

TIMESTEPS = [0.98828, 0.98438, 0.97656, 0.97266, 0.96094, 0.94531, 0.92578, 0.89844, 0.85547]


def test_rectified_flow_factors() -> None:
    found = scales("rectified_flow", torch.tensor([80.0, 4.0]))
    torch.testing.assert_close(found.into, torch.tensor([1 / 81, 0.2]))
    torch.testing.assert_close(found.skip, found.into)
    torch.testing.assert_close(found.out, torch.tensor([-80 / 81, -0.8]))


def test_velocity_target_gives_back_the_clean_latent() -> None:
    clean, noise = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).unbind()
    sigma = torch.tensor(4.0)
    found = scales("rectified_flow", sigma)
    estimate = found.skip * (clean + sigma * noise) + found.out * (noise - clean)
    torch.testing.assert_close(estimate, clean)


def test_x0_output_is_the_estimate() -> None:
    found = scales("x0", torch.tensor([80.0, 4.0]))
    assert found.skip.tolist() == [0, 0] and found.out.tolist() == [1, 1]
    torch.testing.assert_close(found.into, torch.tensor([1 / 81, 0.2]))


def test_timesteps_are_rounded_to_bfloat16() -> None:
    sigmas = torch.tensor(schedule(10, "released"), dtype=torch.float32)
    found = scales("rectified_flow", sigmas).timestep.tolist()
    assert found == pytest.approx([*TIMESTEPS, 0.80078], abs=6e-6)
    assert found[-1] == 0.80078125


class Spy(torch.nn.Module):
    """Keeps what the network was given and predicts sevens."""

    def prepare(self, timestep: Tensor) -> Tensor:
        return timestep

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        known: Tensor,
        text: Tensor,
        wanted: Sequence[int],
        given: Sequence[int] | None,
    ) -> Tensor:
        assert given is None
        self.latent, self.timestep, self.known, self.wanted = latent, timestep, known, wanted
        return torch.full_like(latent, 7.0)


@pytest.mark.parametrize("preconditioning", ["rectified_flow", "x0"])
def test_known_frames(preconditioning: Preconditioning) -> None:
    spy = Spy()
    clean = torch.randn(2, 16, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    clean[:, :, 1] = torch.nan  # a frame that is not known must never be read
    noisy = torch.full_like(clean, 10.0)
    known = (True, False, True)
    text = torch.zeros(1, 2, 4)
    denoiser = Denoiser(spy, preconditioning, clean, known, text)  # type: ignore[arg-type]
    sigma = torch.tensor([80.0, 4.0])
    estimate = denoiser(noisy, sigma, (0, 1))
    state = [0, 2]

    assert torch.equal(spy.latent[:, :, state], clean[:, :, state])
    torch.testing.assert_close(spy.latent[0, :, 1], torch.full((16, 2, 2), 10 / 81))
    torch.testing.assert_close(spy.latent[1, :, 1], torch.full((16, 2, 2), 2.0))
    assert spy.timestep[:, state].tolist() == [[0, 0], [0, 0]]
    assert spy.timestep[:, 1].tolist() == [0.98828125, 0.80078125]
    assert spy.known.tolist() == [[True, False, True]] * 2
    assert spy.wanted == (1,), "known frames are not worth predicting"
    assert torch.equal(estimate[:, :, state], clean[:, :, state])
    generated = 7.0 if preconditioning == "x0" else 0.2 * 10 - 0.8 * 7
    torch.testing.assert_close(estimate[1, :, 1], torch.full((16, 2, 2), generated))


@pytest.fixture(scope="module")
def network() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(2, 2, 24, 2.0, 8, 12, (1, 2, 2), (16, 16, 16), (1.0, 3.0, 3.0))
    return Transformer(config).eval().requires_grad_(False)


@pytest.mark.parametrize("preconditioning", ["rectified_flow", "x0"])
def test_unwanted_frames_do_not_change_the_wanted(
    network: Transformer, preconditioning: Preconditioning
) -> None:
    draw = torch.Generator().manual_seed(2)
    clean, noisy = torch.randn(2, 2, 16, 5, 4, 4, generator=draw).unbind()
    text = torch.randn(1, 3, 12, generator=draw)
    known = (True, True, False, False, False)
    denoiser = Denoiser(network, preconditioning, clean, known, text)
    sigma = torch.tensor([80.0, 11.0])
    everything, action = denoiser(noisy, sigma, (0, 1)), denoiser(noisy, sigma, (0, 1), wanted=(2,))
    torch.testing.assert_close(action[:, :, :3], everything[:, :, :3], rtol=0, atol=1e-5)
    assert action[:, :, 3:].isnan().all() and everything.isfinite().all()


@pytest.mark.parametrize("cached", [True, False])
def test_frames_that_are_not_given_are_not_seen(network: Transformer, cached: bool) -> None:
    """The plain network took the frames for the rotation."""
    draw = torch.Generator().manual_seed(2)
    clean, noisy = torch.randn(2, 2, 16, 5, 4, 4, generator=draw).unbind()
    text = torch.randn(1, 3, 12, generator=draw)
    way: Transformer | CachedTransformer = CachedTransformer(network) if cached else network
    denoiser = Denoiser(way, "x0", clean, (True, False, False, True, False), text, given=(0, 3, 4))
    sigma = torch.tensor([80.0, 11.0])
    found = denoiser(noisy, sigma, (0, 1))
    assert found[:, :, [0, 3, 4]].isfinite().all() and found[:, :, [1, 2]].isnan().all()
    noisy[:, :, [1, 2]] = torch.nan
    assert torch.equal(denoiser(noisy, sigma, (0, 1))[:, :, 4], found[:, :, 4])


def test_some_of_the_samples_are_answered_from_their_own_state(network: Transformer) -> None:
    draw = torch.Generator().manual_seed(2)
    clean, noisy = torch.randn(2, 3, 16, 5, 4, 4, generator=draw).unbind()
    known = (True, True, False, False, False)
    text = torch.randn(1, 3, 12, generator=draw)
    denoiser = Denoiser(network, "rectified_flow", clean, known, text)
    sigma = torch.tensor([80.0, 11.0, 4.0])
    everyone = denoiser(noisy, sigma, (0, 1, 2))
    some = denoiser(noisy[[0, 2]], sigma[[0, 2]], (0, 2))
    torch.testing.assert_close(some, everyone[[0, 2]], rtol=0, atol=1e-5)
