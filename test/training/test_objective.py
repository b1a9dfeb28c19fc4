"""Pins what each role learns: which frames it sees, which count, and the loss in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cosmos_policy_ros.model.config import Preconditioning
from cosmos_policy_ros.model.layout import LAYOUTS, ValueMode
from cosmos_policy_ros.training.config import FrameWeights, NoiseConfig, Role
from cosmos_policy_ros.training.loss import (
    counted_frames,
    draw_sigmas,
    frame_errors,
    mode_of,
    total_loss,
)

ALOHA = LAYOUTS["aloha"]
ROLES: tuple[Role, ...] = ("policy", "world_model", "value")
SHAPE = (3, 16, 11, 2, 2)


def frames(mask: tuple[bool, ...]) -> list[int]:
    return [index for index, chosen in enumerate(mask) if chosen]


@pytest.mark.parametrize(
    ("role", "value", "auxiliary", "expected"),
    [
        ("policy", "value_s", True, [5, 6, 7, 8, 9, 10]),
        ("policy", "value_s", False, [5]),
        ("world_model", "value_s", True, [6, 7, 8, 9, 10]),
        ("world_model", "value_s", False, [6, 7, 8, 9]),
        ("value", "value_sas", True, [10]),
        ("value", "value_s", True, [10]),
        ("value", "value_q", False, [10]),
    ],
)
def test_counted_frames(role: Role, value: ValueMode, auxiliary: bool, expected: list[int]) -> None:
    assert frames(counted_frames(ALOHA, role, value, auxiliary=auxiliary)) == expected


def test_no_known_frame_ever_counts() -> None:
    for role in ROLES:
        for value in ("value_s", "value_sas", "value_q"):
            known = ALOHA.mask(mode_of(role, value))  # type: ignore[arg-type]
            counted = counted_frames(ALOHA, role, value, auxiliary=True)  # type: ignore[arg-type]
            assert not any(k and c for k, c in zip(known, counted, strict=True))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """One sample per role."""
    draw = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, *SHAPE, generator=draw).unbind()
    known = torch.tensor([ALOHA.mask(mode_of(role, "value_s")) for role in ROLES])
    return {
        "clean": clean,
        "known": known,
        "text": torch.zeros(3, 1, 4),
        "sigma": torch.tensor([80.0, 4.0, 0.5]),
        "noise": noise,
    }


def perfect(batch: dict[str, Tensor], preconditioning: Preconditioning) -> Tensor:
    clean, noise = batch["clean"], batch["noise"]
    return clean if preconditioning == "x0" else noise - clean


@pytest.mark.parametrize("preconditioning", ["rectified_flow", "x0"])
def test_a_perfect_prediction_costs_nothing(
    batch: dict[str, Tensor], preconditioning: Preconditioning
) -> None:
    prediction = perfect(batch, preconditioning)
    losses, _ = frame_errors(lambda *_: prediction, preconditioning, **batch)
    assert losses.shape == (3, 11)
    torch.testing.assert_close(losses, torch.zeros(3, 11), rtol=0, atol=1e-8)


@pytest.mark.parametrize("preconditioning", ["rectified_flow", "x0"])
def test_a_known_error_costs_its_square(
    batch: dict[str, Tensor], preconditioning: Preconditioning
) -> None:
    """Of the velocity. Known frames cost nothing, whatever the network says of them."""
    off = perfect(batch, preconditioning) + 0.3
    losses, _ = frame_errors(lambda *_: off, preconditioning, **batch)
    sigma = batch["sigma"][:, None]
    per_frame = torch.full((3, 11), 0.09)
    if preconditioning == "x0":
        per_frame = per_frame * ((1 + sigma) / sigma) ** 2
    expected = torch.where(batch["known"], 0.0, per_frame)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)


def test_the_total_is_the_mean_over_all_frames() -> None:
    losses = torch.full((2, 10), 0.5)
    counted = torch.zeros(2, 10, dtype=torch.bool)
    counted[0, :4] = True
    assert float(total_loss(losses, counted)) == pytest.approx(10 * 0.5 * 4 / 20)


def test_frames_count_as_much_as_their_weights_say() -> None:
    losses = torch.full((1, 11), 0.5)
    weights = FrameWeights(action=5.0, images=0.5)
    row = torch.tensor([[weights.of(frame) for frame in ALOHA.frames]])
    named = dict(zip(ALOHA.frames, row[0].tolist(), strict=True))
    assert named["action"] == 5.0
    assert named["future_primary"] == named["left_wrist"] == 0.5
    assert named["future_proprio"] == named["value"] == 1.0
    assert float(total_loss(losses, row)) == pytest.approx(10 * 0.5 * float(row.sum()) / 11)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_gradients_flow_where_the_role_says_and_nowhere_else(
    batch: dict[str, Tensor], auxiliary: bool
) -> None:
    prediction = torch.zeros(SHAPE, requires_grad=True)
    losses, _ = frame_errors(lambda *_: prediction, "rectified_flow", **batch)
    counted = torch.tensor(
        [counted_frames(ALOHA, role, "value_s", auxiliary=auxiliary) for role in ROLES]
    )
    total_loss(losses, counted).backward()
    assert prediction.grad is not None
    touched = prediction.grad.abs().sum(dim=(1, 3, 4)) > 0
    assert torch.equal(touched, counted)


def test_what_the_network_is_given(batch: dict[str, Tensor]) -> None:
    seen: list[Tensor] = []

    def network(latent: Tensor, timestep: Tensor, known: Tensor, text: Tensor) -> Tensor:
        seen.extend((latent, timestep))
        return torch.zeros_like(latent)

    frame_errors(network, "rectified_flow", **batch)
    latent, timestep = seen
    known, clean, noise = batch["known"], batch["clean"], batch["noise"]
    for row, sigma in enumerate((80.0, 4.0, 0.5)):
        mask = known[row]
        assert torch.equal(latent[row][:, mask], clean[row][:, mask])
        noised = (clean + sigma * noise)[row][:, ~mask] / (1 + sigma)
        torch.testing.assert_close(latent[row][:, ~mask], noised)
        assert not timestep[row][mask].any()
    assert timestep[1][~known[1]].unique().tolist() == [0.80078125]


def test_noise_levels_are_a_mixture() -> None:
    draw = torch.Generator().manual_seed(0)
    config = NoiseConfig()
    paper = draw_sigmas(200_000, 11, config, "paper", draw)
    logs = paper.log()
    inside = ((paper > config.uniform_low) & (paper < config.uniform_high)).float().mean()
    normal = torch.distributions.Normal(config.log_mean, config.log_std)
    low, high = (normal.cdf(torch.tensor(math.log(x))) for x in (1.0, 85.0))
    assert float(inside) == pytest.approx(float(0.3 + 0.7 * (high - low)), abs=0.005)
    below = normal.cdf(torch.tensor(0.0)) * 0.7
    assert float((logs < 0).float().mean()) == pytest.approx(float(below), abs=0.005)
    assert float(paper.median()) == pytest.approx(7.3, abs=0.5)


def test_no_noise_is_drawn_below_the_lowest_and_the_rest_keeps_its_shape() -> None:
    config = NoiseConfig(uniform_low=2.0, lowest=2.0)
    drawn = draw_sigmas(200_000, 11, config, "paper", torch.Generator().manual_seed(0))
    assert float(drawn.min()) >= 2.0 - 1e-6
    normal = torch.distributions.Normal(config.log_mean, config.log_std)
    least, eight, high = (normal.cdf(torch.tensor(math.log(x))) for x in (2.0, 8.0, 85.0))
    expected = 0.7 * (eight - least) / (1 - least) + 0.3 * (8 - 2) / (85 - 2)
    assert float((drawn < 8).float().mean()) == pytest.approx(float(expected), abs=0.005)
    assert high < 1  # the tail is drawn too
    assert float(drawn.max()) > 85


def test_released_noise_grows_with_the_number_of_frames() -> None:
    both = [
        draw_sigmas(100, 11, NoiseConfig(), numerics, torch.Generator().manual_seed(3))  # type: ignore[arg-type]
        for numerics in ("paper", "released")
    ]
    torch.testing.assert_close(both[1], both[0] * math.sqrt(11))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uniform_fraction": 1.5}, "uniform_fraction: 1.5"),
        ({"uniform_low": 90.0}, "uniform_low: 90.0"),
        ({"log_std": 0.0}, "log_std: 0.0"),
        ({"lowest": 1.5}, "lowest: 1.5 must be from 0 to uniform_low, 1.0"),
    ],
)
def test_impossible_noise_is_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseConfig(**changes)
