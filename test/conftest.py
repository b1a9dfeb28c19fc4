"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from cosmos_policy_ros.rig.share import config_folder
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

# A busy machine is no reason to fail: no test of this package judges wall time.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
# Nor are the tasks that whoever runs the tests may have made.
os.environ["COSMOS_POLICY_TASKS"] = os.devnull


@pytest.fixture(scope="session")
def rig() -> RigSpec:
    """The simulated rig's description."""
    return load_rig("sim", config_folder("rigs"))
