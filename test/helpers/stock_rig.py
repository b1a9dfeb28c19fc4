"""The simulated rig changed: to a stock ALOHA with its program and bring-up, or in its patience."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from interbotix_xs_msgs.srv import OperatingModes

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.rig.spec import RANGES

RIG_PROGRAM = Path(__file__).with_name("xs_rig_node.py")
SIDES = ("left", "right")
LATENESS = {
    "teleoperation": ("silence",),
    "observation": ("image_age", "state_age", "camera_skew", "state_timeout", "image_timeout"),
    "stream": ("heartbeat_timeout", "arm_silence"),
    "tracking": ("lag", "sustained"),
}


def stock_rig(folder: Path, gripper: Mapping[str, float] | None = None, **driver: Any) -> Path:
    """Write the simulated rig's file with a driver block and another crank.

    Args:
        folder: where.
        gripper: changes of the gripper blocks.
        driver: changes of the driver blocks.
    """
    plain = yaml.safe_load((config_folder("rigs") / "sim.yaml").read_text())
    for side, arm in plain["arms"].items():
        arm["driver"] = {
            "joint_group": f"follower_{side}/commands/joint_group",
            "joint_single": f"follower_{side}/commands/joint_single",
            "services": f"follower_{side}",
            **driver,
        }
        arm["gripper"] |= {"state_source": "crank", **(gripper or {})}
        arm["leader"]["driver"] = {
            "joint_group": f"leader_{side}/commands/joint_group",
            "services": f"leader_{side}",
            "gravity_compensation": f"leader_{side}/gravity_compensation_enable"
            if side == "left"  # one of each kind
            else "",
        }
    plain["command_interface"] = "interbotix"
    plain["stream"] = _real_stream()
    path = folder / "stock.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def patient_rig(folder: Path) -> Path:
    """Write the simulated rig's file with the widest limits that a rig may have on what is late.

    For tests of other things: a machine that keeps a node waiting for a third of a second ends
    their runs by right, again and again.
    """
    plain = yaml.safe_load((config_folder("rigs") / "sim.yaml").read_text())
    for section, names in LATENESS.items():
        widest = {name: RANGES[section][name][1] for name in names}
        plain[section] = plain.get(section, {}) | widest
    path = folder / "patient.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def punctual_rig(folder: Path) -> Path:
    """Write the simulated rig's file with a real rig's limits on who is silent."""
    plain = yaml.safe_load((config_folder("rigs") / "sim.yaml").read_text())
    path = folder / "punctual.yaml"
    path.write_text(yaml.safe_dump(plain | {"stream": _real_stream()}))
    return path


def _real_stream() -> Any:
    return yaml.safe_load((config_folder("rigs") / "interbotix_2.yaml").read_text())["stream"]


def set_modes(client: GraphClient, mode: str = "current_based_position") -> None:
    """Set both grippers' modes, as the vendor's bring-up does."""
    for side in SIDES:
        client.call(
            OperatingModes,
            f"follower_{side}/set_operating_modes",
            cmd_type="single",
            name="gripper",
            mode=mode,
            profile_type="velocity",
        )
