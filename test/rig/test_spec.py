"""A wrong key or value in a rig file must never leave a silent default in force."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cosmos_policy_ros.core.config import from_mapping, load_yaml
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig.arms import STATE_DIM
from cosmos_policy_ros.rig.safety_gate import GateContext, SafetyGate
from cosmos_policy_ros.rig.spec import RANGES, RigSpec, StreamLimits, load_rig

RIGS = config_folder("rigs")
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
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
        (("recording", "images"), "jpg", "did you mean 'jpeg'?"),
        (("recording", "jpeg_quality"), 96, "jpeg_quality: 96 must be 1 to 95"),
        (("recording", "jpeg_quality"), 0, "jpeg_quality: 0 must be 1 to 95"),
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


HUGE = (
    ("arms.left.upper.0", 99.0, "upper[0] (waist): 99 is outside -3.14158 to 3.14158"),
    ("arms.right.upper.2", 1.7, "upper[2] (elbow): 1.7 is outside -1.76278 to 1.6057"),
    ("arms.left.lower.1", -1.9, "lower[1] (shoulder): -1.9 is outside -1.85005 to 1.25664"),
    ("arms.left.max_velocity.3", 500.0, "max_velocity[3] (forearm_roll): 500"),
    ("arms.left.max_velocity.3", 0.01, "max_velocity[3] (forearm_roll): 0.01"),
    ("arms.left.max_acceleration.5", 1e4, "max_acceleration[5] (wrist_rotate): 10000"),
    ("arms.left.max_acceleration.5", -1.0, "max_acceleration[5] (wrist_rotate): -1"),
    ("arms.left.max_acceleration.5", float("nan"), "max_acceleration[5] (wrist_rotate): nan"),
    ("arms.left.gripper.max_velocity", 1e3, "gripper: max_velocity: 1000"),
    ("arms.left.gripper.command_open", 1e3, "gripper: command_open: 1000"),
    ("arms.left.gripper.crank.rod", 3.0, "gripper: crank: rod: 3"),
    ("gate.velocity_scale", 1000.0, "velocity_scale: 1000 is outside 0.05 to 1"),
    ("gate.start_jump", 3.0, "start_jump: 3 is outside"),
    ("gate.gripper_start_jump", 9.0, "gripper_start_jump: 9 is outside"),
    ("gate.joint_overshoot", 1.0, "joint_overshoot: 1 is outside"),
    ("gate.gripper_overshoot", 3.0, "gripper_overshoot: 3 is outside"),
    ("gate.ramp_in", 30.0, "ramp_in: 30 is outside"),
    ("gate.ramp_in", 0.01, "ramp_in: 0.01 s is less than a row"),
    ("gate.ramp_in_jump", 3.0, "ramp_in_jump: 3 is outside"),
    ("gate.result_age", 1e9, "result_age: 1e+09 is outside"),
    ("gate.refusals", 1000, "refusals: 1000 is outside"),
    ("gate.shake", 0.0, "shake: 0 is outside"),
    ("gate.shake", 30.0, "shake: 30 is outside"),
    ("gate.drift", 9.0, "drift: 9 is outside"),
    ("observation.stamp_ahead", 3600.0, "stamp_ahead: 3600 is outside"),
    ("rates.control", 1000.0, "rates: control: 1000 is outside"),
    ("rates.chunk_steps", 100_000, "chunk_steps: 100000 is outside"),
    ("rates.joint_states", 1.0, "rates: joint_states: 1 is outside"),
    ("rates.cameras", 1e6, "rates: cameras: 1e+06 is outside"),
    ("observation.image_age", 60.0, "image_age: 60 is outside"),
    ("observation.state_age", 60.0, "state_age: 60 is outside"),
    ("observation.camera_skew", 60.0, "camera_skew: 60 is outside"),
    ("observation.frozen_after", 1e3, "frozen_after: 1000 is outside"),
    ("observation.state_timeout", 1e3, "state_timeout: 1000 is outside"),
    ("observation.image_timeout", 1e3, "image_timeout: 1000 is outside"),
    ("stream.rate", 1.0, "stream: rate: 1 is outside"),
    ("stream.heartbeat_timeout", 60.0, "heartbeat_timeout: 60 is outside"),
    ("stream.arm_silence", 60.0, "arm_silence: 60 is outside"),
    ("stream.brake_seconds", 60.0, "brake_seconds: 60 is outside"),
    ("geometry.table", -9.0, "table: -9 is outside"),
    ("geometry.margin", -0.1, "margin: -0.1 is outside"),
    ("geometry.finger_margin", -1.0, "finger_margin: -1 is outside -0.02 to 0.1"),
    ("geometry.bases.left.position.1", 50.0, "bases: left: position (y): 50 is outside"),
    ("geometry.bases.right.yaw", 180.0, "bases: right: yaw: 180 is outside"),
    ("geometry.bases.right.yaw", float("nan"), "bases: right: yaw: nan is outside"),
    ("geometry", None, "key 'geometry' is missing"),
    ("arms.left.max_acceleration", None, "arms: left: key 'max_acceleration' is missing"),
)


def changed_at(path: str, value: Any) -> dict[str, Any]:
    """Return the content of a rig file with one value changed, or left out for None."""
    changed = content() | {"stream": vars(StreamLimits())}
    block: Any = changed
    *sections, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in sections:
        block = block[key]
    if value is None:
        del block[last]
    else:
        block[last] = value
    return changed


@pytest.mark.parametrize(("path", "value", "said"), HUGE)
def test_a_rig_file_beyond_its_arms_moves_nothing(
    path: str, value: Any, said: str, tmp_path: Path
) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump(changed_at(path, value)), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_rig(str(own), RIGS)
    assert str(caught.value).startswith(f"{own}: ")
    assert said in str(caught.value)


def numbers(block: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of all numbers in a rig file."""
    if isinstance(block, dict | list):
        for key, inner in block.items() if isinstance(block, dict) else enumerate(block):
            yield from numbers(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(block, int | float) and not isinstance(block, bool):
        yield path


@pytest.mark.parametrize("value", [1e6, -1e6, float("nan")])
def test_no_number_of_a_rig_file_may_be_anything(value: float, tmp_path: Path) -> None:
    own, shipped = tmp_path / "mine.yaml", load_yaml(RIGS / "interbotix_2.yaml")
    shipped["gate"] |= content()["gate"]
    paths = list(numbers(shipped))
    for name in SHIPPED:
        assert {*numbers(load_yaml(RIGS / f"{name}.yaml"))} <= {*paths}, "every number is tried"
    for path in paths:
        block: Any = shipped
        *sections, last = (int(key) if key.isdigit() else key for key in path.split("."))
        for key in sections:
            block = block[key]
        right, block[last] = block[last], value
        own.write_text(yaml.dump(shipped, Dumper=DUMPER), encoding="utf-8")
        with pytest.raises(ConfigError):
            load_rig(str(own), RIGS)
        block[last] = right


def test_every_number_of_a_rigs_limits_has_two_sides() -> None:
    rig = load_rig("sim", RIGS)
    for name, ranges in RANGES.items():
        numbers = {k for k, v in vars(getattr(rig, name)).items() if isinstance(v, int | float)}
        assert numbers == ranges.keys()
        assert all(low < high for low, high in ranges.values())


def test_a_lab_may_be_stricter(tmp_path: Path) -> None:
    own, strict = tmp_path / "mine.yaml", content()
    strict["arms"]["left"] |= {"upper": [1.0] * 6, "lower": [-1.0] * 6, "start": [0.0] * 6}
    strict["arms"]["left"] |= {"max_velocity": [1.0] * 6, "max_acceleration": [9.0] * 6}
    own.write_text(yaml.safe_dump(strict), encoding="utf-8")
    assert load_rig(str(own), RIGS).arms.left.upper == (1.0,) * 6


def test_the_file_in_an_old_bag_is_read_as_it_was() -> None:
    """It moves nothing any more: what its arms' limits were is what its gate is replayed with."""
    old = content()
    for arm in old["arms"].values():
        del arm["max_acceleration"]
    for key in ("shake", "drift"):
        del old["gate"][key]
    del old["geometry"]
    old["arms"]["left"]["upper"][0] = 99.0
    rig = from_mapping(RigSpec, old, "old bag")
    still = np.tile(np.array([*rig.arms.left.start, 0.0] * 2), (50, 1))
    still[::2, 0] += 0.12
    assert SafetyGate(rig).judge(still, 0.04, GateContext(still[0], still[0])).accepted


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


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("closed", 0.3083, "leader: open and closed must differ"),
        ("joint_states", "follower_left/joint_states", "two of them share a topic"),
        ("angle", 1.0, "angle"),
    ],
)
def test_a_leader_that_can_be_none_is_refused(key: str, value: Any, told: str) -> None:
    changed = content()
    leader = {"joint_states": "leader_left/joint_states", "closed": -0.6842, "open": 0.3083}
    changed["arms"]["left"]["leader"] = {**leader, key: value}
    assert told in refused(changed)


def test_a_leaders_gripper_is_in_radians(tmp_path: Path) -> None:
    changed = content()
    leader = {"joint_states": "leader_left/joint_states", "closed": -40.0, "open": 18.0}
    changed["arms"]["left"]["leader"] = leader
    (tmp_path / "sim.yaml").write_text(yaml.dump(changed, Dumper=DUMPER))
    with pytest.raises(ConfigError, match="leader: closed: -40 is outside -7 to 7"):
        load_rig(str(tmp_path / "sim.yaml"), RIGS)


def test_a_rig_executes_other_chunks_within_its_own_limits() -> None:
    rig = load_rig("sim", RIGS)
    fast = rig.executing(25, 0.02)
    assert (fast.rates.chunk_steps, fast.rates.control, fast.rates.dt) == (25, 50.0, 0.02)
    assert replace(fast, rates=rig.rates) == rig
    assert (fast.rates.joint_states, fast.rates.cameras) == (100.0, 25.0)
    # No arm is stopped in less time for being told where to go more often.
    assert fast.rates.loss_brake == rig.rates.loss_brake == pytest.approx(0.08)
    assert rig.executing(10, 0.1).rates.loss_brake == pytest.approx(0.2)
    for rows, dt, words in (
        (251, 0.04, "rows per chunk of 251 is outside 1 to 250"),
        (0, 0.04, "rows per chunk of 0"),
        (50, 0.001, "rate of 1000 Hz is outside 5 to 100 Hz"),
        (50, 1.0, "rate of 1 Hz"),
    ):
        with pytest.raises(ConfigError, match=words):
            rig.executing(rows, dt)
