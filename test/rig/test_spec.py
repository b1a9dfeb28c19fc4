"""A wrong key or value in a rig file must never leave a silent default in force."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cosmos_policy_ros.errors import ConfigError
from cosmos_policy_ros.rig.arms import STATE_DIM
from cosmos_policy_ros.rig.config import from_mapping, load_yaml
from cosmos_policy_ros.rig.share import config_folder
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

RIGS = config_folder("rigs")
SHIPPED = ("interbotix_1", "interbotix_2", "ros1_names", "sim")


def content() -> dict[str, Any]:
    return copy.deepcopy(load_yaml(RIGS / "sim.yaml"))


def refused(changed: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        from_mapping(RigSpec, changed, "sim.yaml")
    return str(caught.value)


def test_shipped_rigs_are_what_the_folder_holds() -> None:
    assert tuple(sorted(p.stem for p in RIGS.glob("*.yaml"))) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_rig_loads_under_its_own_name(name: str) -> None:
    rig = load_rig(name, RIGS)
    assert rig.name == name
    assert [camera.role for camera in rig.cameras] == ["left_wrist", "right_wrist", "primary"]
    assert rig.rates.control == 25.0
    assert rig.rates.chunk_steps == 50


def test_vector_is_left_then_right_with_the_gripper_last(rig: RigSpec) -> None:
    assert len(rig.joint_names) == STATE_DIM
    assert rig.joint_names[0] == "left/waist"
    assert rig.joint_names[6] == "left/gripper"
    assert rig.joint_names[7] == "right/waist"
    assert rig.joint_names[13] == "right/gripper"
    np.testing.assert_array_equal(rig.lower[[6, 13]], 0.0)
    np.testing.assert_array_equal(rig.upper[[6, 13]], 1.0)


def test_gripper_constants_of_both_generations() -> None:
    old = load_rig("sim", RIGS).arms.left.gripper
    new = load_rig("interbotix_1", RIGS).arms.left.gripper
    assert (old.state_closed, old.state_open) == (0.01844, 0.058)
    assert (old.command_closed, old.command_open) == (-0.6213, 1.4910)
    assert (new.state_closed, new.state_open) == (0.0440, 0.0579)
    assert (new.command_closed, new.command_open) == (0.6197, 1.6214)
    assert old.normalize(0.058) == pytest.approx(1.0)


def test_unknown_key_is_named_with_its_path_and_the_nearest_right_one() -> None:
    changed = content()
    changed["arms"]["left"]["gripper"]["state_clsoed"] = 0.0
    message = refused(changed)
    assert "arms: left: gripper" in message
    assert "unknown key 'state_clsoed'" in message
    assert "did you mean 'state_closed'?" in message


def test_missing_key_is_named() -> None:
    changed = content()
    del changed["rates"]["control"]
    assert "rates: key 'control' is missing" in refused(changed)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("rates", "control"), "fast", "expected float, found str ('fast')"),
        (("rates", "control"), True, "expected float, found bool"),
        (("rates", "chunk_steps"), 50.5, "expected int"),
        (("rates", "cameras"), 0.0, "cameras: 0.0 must be above 0"),
        (("gate", "start_jump"), float("nan"), "start_jump: nan must be above 0"),
        (("kind",), "reel", "did you mean 'real'?"),
        (("arms", "left", "lower"), [0.0] * 5, "expected 6 entries, found 5"),
        (("arms", "left", "lower"), [9.0] * 6, "lower 9.0 must be below upper"),
        (("arms", "left", "start"), [9.0] * 6, "start 9.0 is outside"),
        (("arms", "left", "joints"), ["waist"] * 6, "names must differ"),
        (("arms", "left", "gripper", "state_open"), 0.01844, "open and closed must differ"),
        (("arms", "left", "gripper", "crank"), None, ""),
        (("arms",), [], "expected a mapping, found list"),
        (("cameras",), {}, "expected a list, found dict"),
    ],
)
def test_wrong_value_is_refused_by_name(path: tuple[str, ...], value: Any, said: str) -> None:
    changed = content()
    block = changed
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    if said:
        assert said in refused(changed)
    else:
        from_mapping(RigSpec, changed, "sim.yaml")


def test_crank_source_needs_a_crank() -> None:
    changed = content()
    gripper = changed["arms"]["left"]["gripper"]
    gripper["state_source"], gripper["crank"] = "crank", None
    assert "state_source crank needs a crank block" in refused(changed)


def test_camera_roles_must_each_be_there_once() -> None:
    changed = content()
    changed["cameras"][1]["role"] = "left_wrist"
    assert "need each of left_wrist, right_wrist, primary once" in refused(changed)


@pytest.mark.parametrize("size", [[480], [480, 640, 3], [0, 640], [480, 4097], [-480, 640]])
def test_a_camera_size_that_is_none_is_refused(size: list[int]) -> None:
    changed = content()
    changed["cameras"][1]["size"] = [480, 640]
    assert from_mapping(RigSpec, changed, "sim.yaml").cameras[1].size == (480, 640)
    changed["cameras"][1]["size"] = size
    assert "must be rows and columns of 1 to 4096 px" in refused(changed)


def test_a_camera_is_a_colour_camera_unless_its_file_says_otherwise() -> None:
    changed = content()
    assert not from_mapping(RigSpec, changed, "sim.yaml").cameras[1].grey
    changed["cameras"][1]["encodings"] = ["mono8"]
    assert from_mapping(RigSpec, changed, "sim.yaml").cameras[1].grey


def test_two_cameras_on_one_topic_are_refused() -> None:
    changed = content()
    changed["cameras"][1]["topic"] = changed["cameras"][0]["topic"]
    assert "share a topic" in refused(changed)


def test_unknown_rig_name_suggests_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"interbotics_1.yaml: no such file; did you mean 'interbotix_1'\?"
    ):
        load_rig("interbotics_1", RIGS)


def test_files_that_are_no_mapping_or_no_yaml(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_rig(str(bad), RIGS)
    bad.write_text("- 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds list, expected a mapping"):
        load_rig(str(bad), RIGS)
    with pytest.raises(ConfigError, match="no such file"):
        load_rig(str(tmp_path / "none.yaml"), RIGS)


def test_a_rig_file_of_ones_own_loads_by_path(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump(content() | {"name": "mine"}), encoding="utf-8")
    assert load_rig(str(own), RIGS).name == "mine"
