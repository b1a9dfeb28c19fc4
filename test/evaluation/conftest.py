"""A room to try things in, and the types that bags are written with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.evaluation.trial import TrialRoom
from cosmos_policy_ros.rig.spec import RigSpec, load_rig


@pytest.fixture(scope="session")
def rig() -> RigSpec:
    return load_rig("sim", config_folder("rigs"))


@pytest.fixture(scope="module")
def room(rig: RigSpec) -> Iterator[TrialRoom]:
    room = TrialRoom(rig, "either_cube", 64)
    yield room
    room.close()
