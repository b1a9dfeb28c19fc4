"""Pins what one evaluation of the released 2B network costs, against the straightforward way.

On the meta device: the operations are counted, not done.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.cosmos_oracle import REAL, Oracle
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cosmos_policy_ros.model.transformer import Transformer

ALOHA = (11, 28, 28)
GENERATED = range(5, 11)
TERA = 1e12


def tera_flops(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / TERA


@pytest.fixture(scope="module")
def sample() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.device("meta"):
        known = torch.empty(1, 11, dtype=torch.bool)
        return torch.empty(1, 16, *ALOHA), torch.empty(1, 11), known, torch.empty(1, 512, 1024)


@pytest.fixture(scope="module")
def network() -> Transformer:
    with torch.device("meta"):
        return Transformer(REAL).requires_grad_(False)


def test_straightforward_way(sample: tuple[Tensor, ...]) -> None:
    with torch.device("meta"):
        oracle = Oracle(REAL)
    latent, timestep, known, text = sample
    assert tera_flops(lambda: oracle(latent, timestep, known, text)) == pytest.approx(
        9.30, abs=5e-3
    )


def test_modulation_costs_next_to_nothing(network: Transformer, sample: tuple[Tensor, ...]) -> None:
    """Yet 0.77 TFLOP in the straightforward way, which repeats it for a frame's 196 tokens."""
    assert tera_flops(lambda: network(*sample)) == pytest.approx(8.53, abs=5e-3)
    assert tera_flops(lambda: network.modulation(sample[1])) == pytest.approx(0.0042, abs=1e-4)


def test_one_evaluation(network: Transformer, sample: tuple[Tensor, ...]) -> None:
    latent, timestep, known, _ = sample
    with torch.device("meta"):
        memory = network.read(torch.empty(1, 16, 1024), torch.empty(1, 1, 1, 16))
        when = network.modulation(timestep)
    every = tera_flops(lambda: network(latent, when, known, memory))
    generated = tera_flops(lambda: network(latent, when, known, memory, GENERATED))
    action = tera_flops(lambda: network(latent, when, known, memory, (5,)))
    assert every == pytest.approx(8.165, abs=5e-3)
    assert generated == pytest.approx(8.049, abs=5e-3)
    assert action == pytest.approx(7.932, abs=5e-3)
    last_block = every / REAL.layers
    assert (every - action) / last_block == pytest.approx(0.8, abs=0.01), "what is left: its keys"
