"""Pins what one evaluation of the released 2B network costs, against the straightforward way.

On the meta device: the operations are counted, not done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.cosmos_oracle import REAL
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cosmos_policy_ros.model.config import TransformerConfig
from cosmos_policy_ros.model.straightforward import DiffusersTransformer
from cosmos_policy_ros.model.transformer import Transformer

GENERATED = range(5, 11)
TERA = 1e12


@pytest.fixture(scope="module")
def sample() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.device("meta"):
        known = torch.empty(1, 11, dtype=torch.bool)
        return torch.empty(1, 16, 11, 28, 28), torch.empty(1, 11), known, torch.empty(1, 512, 1024)


def tera_flops(question: Callable[[TransformerConfig], Callable[[], object]]) -> float:
    """Count for one layer and for two: every further one costs the same."""
    counts = []
    for layers in (1, 2):
        with torch.device("meta"), torch.no_grad():
            ask = question(replace(REAL, layers=layers))
            with FlopCounterMode(display=False) as counter:
                ask()
        counts.append(counter.get_total_flops())
    return (counts[0] + (REAL.layers - 1) * (counts[1] - counts[0])) / TERA


def test_straightforward_way(sample: tuple[Tensor, ...]) -> None:
    found = tera_flops(lambda config: partial(DiffusersTransformer(config), *sample))
    assert found == pytest.approx(9.30, abs=5e-3)


def test_modulation_costs_next_to_nothing(sample: tuple[Tensor, ...]) -> None:
    """Yet 0.77 TFLOP in the straightforward way, which repeats it for a frame's 196 tokens."""
    whole = tera_flops(lambda config: partial(Transformer(config), *sample))
    modulation = tera_flops(lambda config: partial(Transformer(config).modulation, sample[1]))
    assert whole == pytest.approx(8.53, abs=5e-3)
    assert modulation == pytest.approx(0.0042, abs=1e-4)


def test_one_evaluation(sample: tuple[Tensor, ...]) -> None:
    latent, timestep, known, _ = sample

    def prepared(wanted: range | None, config: TransformerConfig) -> Callable[[], object]:
        network = Transformer(config)
        text = network.read(torch.empty(1, 16, 1024), torch.empty(1, 1, 1, 16))
        return partial(network, latent, network.modulation(timestep), known, text, wanted)

    every, generated, action = (
        tera_flops(partial(prepared, wanted)) for wanted in (None, GENERATED, range(5, 6))
    )
    assert every == pytest.approx(8.165, abs=5e-3)
    assert generated == pytest.approx(8.049, abs=5e-3)
    assert action == pytest.approx(7.932, abs=5e-3)
    last_block = every / REAL.layers
    assert (every - action) / last_block == pytest.approx(0.8, abs=0.01), "what is left: its keys"
