"""The one table of options: what a launch argument may say, and what the nodes are given."""

from __future__ import annotations

from typing import Any

import pytest

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.nodes.graph import node_processes
from cosmos_policy_ros.nodes.options import ARGUMENTS, DEFAULT, NODES


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_default_is_a_value_that_the_option_may_have(name: str) -> None:
    option = ARGUMENTS[name]
    if isinstance(option.default, type):
        assert option.text == DEFAULT
    else:
        option.check(option.parse(option.text))
        assert option.parse(option.text) == option.default


@pytest.mark.parametrize("node", NODES)
def test_no_node_has_an_option_twice(node: str) -> None:
    names = [option.name for option in NODES[node]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"deadlin": 1.0}, "no option 'deadlin'; did you mean 'deadline'"),
        ({"deadline": -0.1}, "deadline -0.1 must be from 0 to 3600"),
        ({"deadline": float("nan")}, "deadline nan must be from 0 to 3600"),
        ({"deadline": "5"}, "deadline '5' must be of type float"),
        ({"denoising_steps": 0}, "denoising_steps 0 must be from 1 to 1000"),
        ({"denoising_steps": 1001}, "denoising_steps 1001 must be from 1 to 1000"),
        ({"denoising_steps": True}, "denoising_steps True must be of type int"),
        ({"seed": 2**32}, "seed 4294967296 must be from 0 to"),
        ({"record": 1}, "record 1 must be of type bool"),
        ({"images": "jpg"}, "images 'jpg' is not one"),
        ({"rig": "simm"}, "simm"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        node_processes(**given)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("deadline", "soon", "deadline:=soon must be a number"),
        ("denoising_steps", "1.5", "denoising_steps:=1.5 must be a whole number"),
        ("dry_run", "yes", "dry_run:=yes must be true or false"),
    ],
)
def test_a_launch_argument_of_another_kind_is_refused(name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ARGUMENTS[name].parse(text)


def test_what_is_not_given_is_left_to_the_nodes_and_their_files() -> None:
    nodes = {node.executable: node.parameters for node in node_processes(rig="sim", deadline=5)}
    assert [*nodes] == ["sim_rig_node", "arm_interface_node", "policy_node", "recorder_node"]
    assert nodes["policy_node"] == {"rig": "sim", "deadline": 5, "use_sim_time": False}
    assert isinstance(nodes["policy_node"]["deadline"], float), "ROS takes no 5 for a number"
    assert nodes["sim_rig_node"] == nodes["arm_interface_node"] == {"rig": "sim"}
    stepped = {node.executable: node.parameters for node in node_processes(stepped=True)}
    assert stepped["policy_node"]["watchdog"] == "none" and "arm_interface_node" not in stepped
    assert stepped["policy_node"]["niceness"] == 0, "others than the arms would come first"
