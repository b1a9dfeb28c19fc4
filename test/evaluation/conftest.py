"""A room to try things in, and the types that bags are written with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.evaluation.trial import SimEnv
from cosmos_policy_ros.rig.spec import RigSpec, load_rig


@pytest.fixture(scope="session")
def rig() -> RigSpec:
    return load_rig("sim", config_folder("rigs"))


@pytest.fixture(scope="module")
def env(rig: RigSpec) -> Iterator[SimEnv]:
    env = SimEnv(rig, "either_cube", 64)
    yield env
    env.close()
