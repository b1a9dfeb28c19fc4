"""The simulated rig's file with other controllers than one per arm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig.spec import RigSpec

Change = Callable[[dict[str, Any]], None]


def one_for_all(arms: dict[str, Any]) -> None:
    """One controller of 14 joints, and one broadcaster of their states."""
    for side, arm in arms.items():
        arm["joint_states"] = "joint_states"
        arm["trajectory"] = "arms_controller/joint_trajectory"
        arm["joints"] = [f"{side}_{name}" for name in arm["joints"]]
        arm["gripper"] |= {"joint": f"{side}_gripper", "finger_joint": f"{side}_left_finger"}


def grippers_apart(arms: dict[str, Any]) -> None:
    """A controller per arm and one per gripper."""
    for side, arm in arms.items():
        arm["gripper"]["trajectory"] = f"follower_{side}/gripper_controller/joint_trajectory"


def grippers_together(arms: dict[str, Any]) -> None:
    """One controller for twelve joints and one for both grippers."""
    one_for_all(arms)
    for arm in arms.values():
        arm["gripper"]["trajectory"] = "grippers_controller/joint_trajectory"


OUTPUTS: dict[str, Change] = {
    "one for all": one_for_all,
    "grippers apart": grippers_apart,
    "grippers together": grippers_together,
}


def changed_rig(change: Change, **fields: Any) -> dict[str, Any]:
    """Return the simulated rig's file with its arms changed."""
    plain: dict[str, Any] = yaml.safe_load((config_folder("rigs") / "sim.yaml").read_text())
    change(plain["arms"])
    return plain | fields


def rig_with(change: Change, **fields: Any) -> RigSpec:
    """Return the simulated rig with its arms changed."""
    return from_mapping(RigSpec, changed_rig(change, **fields), "changed")


def rig_file(folder: Path, change: Change) -> Path:
    """Write the simulated rig's file with its arms changed."""
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(changed_rig(change, name="changed")))
    return path
