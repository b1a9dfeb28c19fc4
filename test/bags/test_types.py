"""Pins the types a bag declares: a wrong RIHS01 hash makes ROS 2 refuse to replay the bag."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.types import load_types, types_of_definition
from cosmos_policy_ros.core.errors import RolloutError

FROZEN = Path(__file__).parent / "data" / "msg"
OWN = Path(__file__).parents[2] / "msg"

# What rosidl_generator_type_description made of the files in data/msg. They are copies, so that a
# later change of the package's own messages does not touch this comparison.
ROSIDL = {
    "cosmos_policy_ros/msg/Candidate": (
        "RIHS01_6f0409e0180ad1e94f795c24586cfd1d8fbeceed2d06361287aafd812b21efbd"
    ),
    "cosmos_policy_ros/msg/Decision": (
        "RIHS01_eaae37e7d09a09c9e4bf9e66b388270af2dfc583f6ee8337c129b090bfdcdb11"
    ),
    "builtin_interfaces/msg/Time": (
        "RIHS01_b106235e25a4c5ed35098aa0a61a3ee9c9b18d197f398b0e4206cea9acf9c197"
    ),
}


def test_hashes_are_those_of_rosidl() -> None:
    store = load_types(FROZEN)
    assert {name: store.hash_rihs01(name) for name in ROSIDL} == ROSIDL


def test_every_message_of_the_package_is_there(types: Typestore) -> None:
    names = {f"cosmos_policy_ros/msg/{path.stem}" for path in OWN.glob("*.msg")}
    assert names <= types.fielddefs.keys()
    for name in names:
        definition, _ = types.generate_msgdef(name, ros_version=2)
        assert types_of_definition(name, definition).hash_rihs01(name) == types.hash_rihs01(name)


def test_nested_own_type_survives_the_round_trip() -> None:
    store = load_types(FROZEN)
    name = "cosmos_policy_ros/msg/Decision"
    time = store.types["builtin_interfaces/msg/Time"](sec=1, nanosec=2)
    candidate = store.types["cosmos_policy_ros/msg/Candidate"](
        seed=7, finished=True, value=0.5, spread=0.25, values=np.float32([0.25, 0.75])
    )
    texts = ["run_id", "chunk_id", "task", "prompt", "engine", "checkpoint_digest"]
    sent = store.types[name](
        header=store.types["std_msgs/msg/Header"](stamp=time, frame_id="base"),
        **dict.fromkeys([*texts, "observation_digest", "reason"], "x"),
        **dict.fromkeys(["denoising_steps", "requested", "finished", "chosen", "steps"], 1),
        candidates=[candidate],
        phases=["encode"],
        phase_seconds=np.float32([0.5]),
        dt=0.04,
        positions=np.arange(14.0),
    )
    read = store.deserialize_cdr(store.serialize_cdr(sent, name), name)
    assert read.candidates[0].seed == 7
    assert read.candidates[0].values.tolist() == [0.25, 0.75]
    assert read.positions.tolist() == list(range(14))


def test_folder_without_messages_is_named(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match=r"holds no \.msg file") as refused:
        load_types(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(refused.value)


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("geometry_msgs/Pose2E pose\n", "unknown type 'geometry_msgs/msg/Pose2E'"),
        ("Missing thing\n", "unknown type 'cosmos_policy_ros/msg/Missing'"),
        ("float64 =\n", "Bad.msg: cannot be read as a message"),
    ],
)
def test_broken_definition_is_named(tmp_path: Path, definition: str, message: str) -> None:
    shutil.copy(FROZEN / "Candidate.msg", tmp_path)
    (tmp_path / "Bad.msg").write_text(definition)
    with pytest.raises(RolloutError) as refused:
        load_types(tmp_path)
    assert message in str(refused.value)


def test_unreadable_definition_in_a_bag_is_a_rollout_error() -> None:
    with pytest.raises(RolloutError, match="definition of a/msg/B is unreadable"):
        types_of_definition("a/msg/B", "float64 =\n")
