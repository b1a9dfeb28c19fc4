"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import pytest

from cosmos_policy_ros.rig.share import config_folder
from cosmos_policy_ros.rig.spec import RigSpec, load_rig


@pytest.fixture(scope="session")
def rig() -> RigSpec:
    """The simulated rig's description."""
    return load_rig("sim", config_folder("rigs"))
