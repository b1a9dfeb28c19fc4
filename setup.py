"""A plain ``pip install .``: the rooms that need no ROS (everything but ``nodes`` and ``panel``).

For reading bags, training and running the model on a machine without ROS. On a ROS machine build
with colcon, which uses CMakeLists.txt and ignores this file.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "cosmos_policy_ros/__init__.py").read_text(), re.MULTILINE
).group(1)


def shared_files(*folders: str) -> list:
    """Return data_files entries that put ``folders`` below share/cosmos_policy_ros."""
    files: dict = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file():
                relative = path.relative_to(ROOT)
                target = f"share/cosmos_policy_ros/{relative.parent}"
                files.setdefault(target, []).append(str(relative))
    return list(files.items())


setup(
    name="cosmos_policy_ros",
    version=VERSION,
    description="Cosmos Policy on the ALOHA bimanual rig: the rooms that need no ROS",
    license="Apache-2.0",
    packages=find_packages(
        include=["cosmos_policy_ros*"],
        exclude=["cosmos_policy_ros.nodes*", "cosmos_policy_ros.panel*"],
    ),
    data_files=shared_files("config", "msg"),
    python_requires=">=3.10",
    entry_points={"console_scripts": ["cosmos = cosmos_policy_ros.cli.cosmos:main"]},
    install_requires=[
        "argcomplete>=2",
        # A range, so that a lab's CUDA build of torch is kept.
        "torch>=2.6",
        "diffusers>=0.35",
        "safetensors>=0.4",
        "numpy>=1.26",
        "opencv-python-headless>=4.9",
        "pillow>=10",
        "pyyaml>=6",
        "pyarrow>=14",
        "rosbags>=0.11",
        "simplejpeg>=1.7.6",
        "ruamel.yaml.clib>=0.2.8",
        "mcap>=1.6",
        "msgpack>=1.0.3",
        "tornado>=6.1",
        "h5py>=3.8",
        "av>=12",
        "tensorboard>=2.15",
        "tqdm>=4.65",
    ],
    extras_require={
        "sim": ["mujoco>=3.3.7,<3.8", "gym-aloha==0.1.5", "matplotlib>=3.5", "markdown>=3.3"],
        # To search on GPUs of other machines.
        "ray": ["ray>=2.9"],
        # From 0.4 on it writes v3 data sets; from 0.5 on it needs Python 3.12.
        "lerobot": ["lerobot[dataset]>=0.4,<0.7"],
    },
)
