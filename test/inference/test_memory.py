"""Memory is counted before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.inference.cosmos_engine import footprint
from cosmos_policy_ros.inference.spec import EngineSpec, Footprint, SearchConfig
from cosmos_policy_ros.inference.worker import MemoryBudget

GB = int(1e9)
FULL = str(config_folder("models") / "aloha_2b")


def needs(gigabytes: int, device: str = "cuda:0", free: int = 24) -> Footprint:
    return Footprint(device, {"policy": gigabytes * GB}, free * GB)


def test_the_full_size_is_counted_and_not_built() -> None:
    """1,956,413,440 parameters of the transformer and 126,892,531 of the autoencoder, in bf16."""
    direct = footprint(EngineSpec("cosmos", FULL, device="cpu"))
    exponents = 2 * (22 + 21)  # of the rotary position
    assert direct.needs["policy"] == 2 * (1_956_413_440 + 126_892_531) + exponents
    assert direct.free > 0
    half = footprint(EngineSpec("cosmos", FULL, device="cpu", fp8_weights=True))
    assert 0.55 < half.needs["policy"] / direct.needs["policy"] < 0.65, "adaptive norms stay"
    searching = replace(EngineSpec("cosmos", FULL, device="cpu"), search=SearchConfig())
    assert footprint(searching).needs["policy"] == direct.needs["policy"]
    assert footprint(searching).needs["working space"] > direct.needs["working space"]
    assert "world_model" not in footprint(searching).needs
    both = footprint(replace(searching, world_model=FULL))
    assert both.needs["world_model"] == both.needs["policy"]


def test_no_checkpoint_and_no_device_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        footprint(EngineSpec("cosmos", "/nowhere", device="cpu"))
    with pytest.raises(ConfigError, match="cuda:99"):
        footprint(EngineSpec("cosmos", FULL, device="cuda:99"))


def test_two_share_a_device_as_long_as_it_has_room() -> None:
    budget = MemoryBudget()
    budget.admit("one", needs(10))
    budget.admit("other", needs(10, "cuda:1"))
    budget.admit("two", needs(10, free=18))  # the first has begun to load
    with pytest.raises(CheckpointError, match=r"beside 20.0 GB for 2 more, but 24.0 GB are free"):
        budget.admit("three", needs(10, free=4))
    budget.release("one")
    budget.admit("three", needs(10, free=14))


def test_once_empty_a_device_is_looked_at_afresh() -> None:
    budget = MemoryBudget()
    budget.admit("one", needs(10))
    budget.release("one")
    with pytest.raises(CheckpointError, match=r"needs 10.0 GB \(policy 10.0\), but 8.0 GB"):
        budget.admit("one", needs(10, free=8))
    budget.release("nobody")
