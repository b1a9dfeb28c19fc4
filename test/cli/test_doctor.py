"""``cosmos doctor``: each thing that is missing is named, with what to do about it.

The words of other programs are as they print them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest

from cosmos_policy_ros.cli import cosmos, doctor
from cosmos_policy_ros.cli.doctor import Finding
from cosmos_policy_ros.rig.spec import RigSpec

Done = subprocess.CompletedProcess[str]
TRACKING = (
    "A9FEA97B,169.254.169.123,4,1764406000.1,{off},0.0,0.0,1.2,0.0,0.0,0.0,0.0,16.1,{state}\n"
)


def stands(finding: Finding, state: str, *words: str) -> None:
    told = f"{finding.found} {finding.advice}"
    assert finding.state == state, told
    assert all(word in told for word in words), told
    assert state == "ok" or finding.advice


def test_the_table_is_printed_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "100")  # where nodes of no other test are found
    assert cosmos.main(["doctor", "--root", str(tmp_path / "not/there/yet")]) in (0, 1)
    printed = capfd.readouterr().out
    names = ("Python", *doctor.COMPILED, "OpenCV", "torch", "middleware", "shared memory", "clock")
    for name in (*names, "disk", "cameras"):
        assert sum(line[5:].startswith(f"{name} ") for line in printed.splitlines()) == 1, printed
    assert not (tmp_path / "not").exists()


def test_an_old_python() -> None:
    stands(doctor.python((3, 9), Path("/usr/bin/python3")), "bad", "3.9 at /usr/bin/python3")


@pytest.mark.parametrize(
    ("module", "content", "state", "words"),
    [
        ("h5py", "__version__ = '3.16.0'", "ok", ["3.16.0 with NumPy 2.4.6"]),
        # What NumPy 2 and an extension that was built with NumPy 1 say.
        (
            "cv2",
            "raise ImportError('numpy.core.multiarray failed to import')",
            "bad",
            ["multiarray"],
        ),
        ("cv2", "raise AttributeError('_ARRAY_API not found')", "bad", ["built with NumPy 1"]),
        ("cv2", "import os; os.abort()", "bad", ["ended with -6"]),
        ("cv2", None, "bad", ["No module named 'cv2'", "scripts/setup"]),
        ("mujoco", None, "look", ["not installed", "only for the simulated rig"]),
    ],
)
def test_compiled_modules(
    tmp_path: Path, module: str, content: str | None, state: str, words: list[str]
) -> None:
    (tmp_path / "numpy.py").write_text("__version__ = '2.4.6'")
    if content is not None:
        (tmp_path / f"{module}.py").write_text(content)
    stands(doctor.compiled(module, python_that_sees(tmp_path)), state, *words)


def test_a_cv_bridge_whose_extension_fails(tmp_path: Path) -> None:
    """Its package can be imported: the first rare image fails."""
    boost = tmp_path / "cv_bridge/boost"
    boost.mkdir(parents=True)
    (tmp_path / "numpy.py").write_text("__version__ = '2.4.6'")
    for folder in (boost.parent, boost):
        (folder / "__init__.py").touch()
    (boost / "cv_bridge_boost.py").write_text("raise AttributeError('_ARRAY_API not found')")
    finding = doctor.compiled("cv_bridge", python_that_sees(tmp_path))
    stands(finding, "bad", "cannot be loaded beside this NumPy", "scripts/setup")


def python_that_sees(folder: Path) -> str:
    program = folder / "python"
    program.write_text(f'#!/bin/sh\ncd {folder} && exec {sys.executable} -S "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_two_copies_of_opencv() -> None:
    both = {"opencv-python": "4.11.0.86", "opencv-python-headless": "5.0.0.93"}
    stands(doctor.opencv(both), "bad", "pip uninstall opencv-python,")
    stands(doctor.opencv({}), "ok", "the distro's")


@pytest.mark.parametrize(
    ("version", "cuda", "gpus", "driver", "state", "words"),
    [
        ("2.9.1+cu128", "12.8", [["NVIDIA H100", 85 * 10**9]], True, "ok", ["H100 (79 GiB)"]),
        ("2.13.0+cpu", None, [], False, "ok", ["for the CPU, no GPU"]),
        ("2.13.0+cpu", None, [], True, "look", ["CUDA build", "scripts/setup keeps it"]),
        ("2.9.1+cu128", "12.8", [], False, "look", ["needs its driver"]),
        ("2.4.1+cu121", "12.1", [["NVIDIA L4", 2**34]], True, "bad", ["2.6 or newer"]),
    ],
)
def test_torch(
    version: str, cuda: str | None, gpus: list[object], driver: bool, state: str, words: list[str]
) -> None:
    told = json.dumps({"version": version, "cuda": cuda, "hip": None, "gpus": gpus})
    stands(doctor.gpu(Done([], 0, told, ""), driver), state, *words)


def test_a_torch_that_cannot_be_loaded() -> None:
    error = "Traceback (most recent call last):\nOSError: libcudart.so.12: cannot open\n"
    stands(doctor.gpu(Done([], 1, "", error), True), "bad", "libcudart.so.12", "scripts/setup")


def test_another_middleware() -> None:
    given = {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp", "ROS_DISTRO": "jazzy"}
    stands(doctor.middleware(given), "look", "ROS jazzy, rmw_cyclonedds_cpp", "only Fast DDS")
    stands(doctor.middleware({"ROS_DOMAIN_ID": "7"}), "ok", "domain 7", "keeps to this machine")


def test_an_installation_without_nodes() -> None:
    """It ended in a traceback, and what came after was not looked at."""
    with patch.dict(sys.modules, {"cosmos_policy_ros.nodes.graph": None}):
        stands(doctor.middleware({}), "look", "has no nodes", "scripts/setup")


def test_the_shared_memory_of_a_container() -> None:
    stands(doctor.shared_memory(64 << 20, 20 << 20), "bad", "20 of 64 MiB", "--ipc=host")
    stands(doctor.shared_memory(64 << 20, 64 << 20), "look", "--shm-size=1g")
    stands(doctor.shared_memory(8 << 30, 8 << 30), "ok", "8192 MiB")


@pytest.mark.parametrize(
    ("chrony", "ntp", "state", "words"),
    [
        (("0.000012", "Normal"), "no", "ok", ["chrony, 0.012 ms off 169.254.169.123"]),
        (("-0.31", "Normal"), "no", "look", ["310.000 ms off"]),
        (("0.0", "Not synchronised"), "no", "look", ["chrony: not synchronised"]),
        (None, "yes", "ok", ["synchronised by NTP", "chrony"]),
        (None, "no", "look", ["not synchronised", "install chrony"]),
    ],
)
def test_the_clock(chrony: tuple[str, str] | None, ntp: str, state: str, words: list[str]) -> None:
    def run(command: Sequence[str]) -> Done:
        if command[0] == "timedatectl":
            return Done(command, 0, f"{ntp}\n", "")
        if chrony is None:
            return Done(command, 1, "", "506 Cannot talk to daemon\n")
        return Done(command, 0, TRACKING.format(off=chrony[0], state=chrony[1]), "")

    stands(doctor.clock(run), state, *words)


def test_the_disk(rig: RigSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(amount: int) -> None:
        monkeypatch.setattr(
            doctor.shutil, "disk_usage", lambda _: doctor.shutil._ntuple_diskusage(0, 0, amount)
        )

    free(10**12)
    stands(doctor.disk(rig, tmp_path / "new"), "ok", f"1000 GB free in {tmp_path}", "minutes of")
    free(10**10)
    stands(doctor.disk(rig, tmp_path), "look", "purge")


def test_camera_topics() -> None:
    def look(topics: dict[str, list[str]]) -> Finding:
        return doctor.camera_topic("primary", "cam_high/image_raw", "raw", topics)

    stands(look({"/cam_high/image_raw": ["sensor_msgs/msg/Image"]}), "ok", "msg/Image")
    stands(look({"/cam_hihg/image_raw": []}), "look", "did you mean '/cam_hihg/image_raw'?")
    compressed = {"/cam_high/image_raw": ["sensor_msgs/msg/CompressedImage"]}
    stands(look(compressed), "bad", "transport raw of the rig file wants sensor_msgs/msg/Image")
