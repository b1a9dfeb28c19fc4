"""What recording costs and loses, against rosbags' plain writer in every callback.

Run, from the package's root::

    . scripts/env.sh
    python benchmark/recorder.py [--frames 300] [--rounds 2]

A feed publishes three 640x480 rgb8 cameras at 30 Hz (83 MB/s) and two joint states at 100 Hz over
real DDS; for the last way the cameras send JPEG themselves. In turns, each in a process of its own,
they are recorded by the real recorder node (its start and stop services, its verdict) and by the
simplest thing that could work. The images are noise, the worst that JPEG can be given. Frames are
numbered, so that each that is not in the bag is known. CPU seconds are the whole process'.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import rclpy  # noqa: E402
from _ros_ends import CAMERA_HZ  # noqa: E402
from ros_path import End  # noqa: E402

from cosmos_policy_ros.bags.jpeg import SUFFIX  # noqa: E402
from cosmos_policy_ros.bags.mcap_file import to_yaml  # noqa: E402
from cosmos_policy_ros.core.config import load_yaml  # noqa: E402
from cosmos_policy_ros.core.paths import config_folder  # noqa: E402
from cosmos_policy_ros.episodes.episode import read_episode, read_messages  # noqa: E402
from cosmos_policy_ros.nodes.client import GraphClient  # noqa: E402
from cosmos_policy_ros.rig.spec import JPEG_QUALITY, load_rig  # noqa: E402

WARMUP = 150  # frames before the counted ones: 5 s in which the episode is started
GRACE = 1.0  # s for the last frames to arrive
WAYS: dict[str, tuple[str, ...]] = {
    "plain rosbags writer": (),
    "recorder, raw": ("images:=raw",),
    "recorder, zstd": ("images:=raw", "compression:=zstd"),
    "recorder, jpeg": ("images:=jpeg",),
    "recorder, camera's jpeg": ("images:=jpeg",),
}
COMPRESSED = "recorder, camera's jpeg"

Result = dict[str, Any]


def numbered(bag: Path) -> int:
    """Return how many of the feed's numbered frames are in a bag."""
    cameras = [f"/{camera.topic}" for camera in load_rig("sim", config_folder("rigs")).cameras]
    topics = [*cameras, *(topic + SUFFIX for topic in cameras)]
    return sum(message.header.frame_id != "" for _, _, message in read_messages(bag, topics))


def rig_file(folder: Path, compressed: bool) -> Path:
    """Write the simulated rig's file with a real rig's quality, or cameras that send JPEG."""
    rig = load_yaml(config_folder("rigs") / "sim.yaml")
    rig["recording"]["jpeg_quality"] = JPEG_QUALITY
    for camera in rig["cameras"] if compressed else ():
        camera |= {"topic": camera["topic"] + SUFFIX, "transport": "compressed"}
    file = folder / "rig.yaml"
    file.write_text(to_yaml(rig))
    return file


def size_of(bag: Path) -> int:
    return sum(file.stat().st_size for file in bag.glob("*.mcap"))


def run(way: str, folder: Path, frames: int, client: GraphClient) -> Result:
    """Record one burst in one way; return what it cost and what is in the bag."""
    options = WAYS[way]
    folder.mkdir()
    if options:
        rig = rig_file(folder, compressed=way == COMPRESSED)
        parameters = [f"root:={folder}", f"rig:={rig}", *options]
        arguments = ["--ros-args", *(x for p in parameters for x in ("-p", p))]
        reader = End(folder, "recorder", *arguments)
    else:
        reader = End(folder, "plain", "--folder", str(folder / "bag"))
    verdict = ""
    feeding = ["--frames", str(frames), "--warmup", str(WARMUP)]
    feeding += ["--compressed"] if way == COMPRESSED else []
    with End(folder, "feed", *feeding) as feed, reader:
        if options:
            started = client.start_episode(task="transfer_cube")
            if not started.success:
                raise SystemExit(started.message)
        while not any(feed.sample()["counts"].values()):
            time.sleep(0.02)
        before = reader.sample()
        feed.wait("its last frame", feed)
        after = reader.sample()
        time.sleep(GRACE)
        if options:
            verdict = client.stop_episode().message
    bag = next(path for path in folder.iterdir() if path.is_dir() and path.name != "log")
    found = numbered(bag)
    seconds = after["wall"] - before["wall"]
    episode_seconds = (
        read_episode(bag).duration_ns / 1e9 if options else seconds + WARMUP / CAMERA_HZ
    )
    result = {
        "cpu": (after["cpu"] - before["cpu"]) / seconds,
        "rate": size_of(bag) / episode_seconds / 1e6,
        "lost": 3 * frames - found,
        "verdict": verdict,
    }
    shutil.rmtree(folder)
    return result


def report(found: Mapping[str, list[Result]], frames: int) -> None:
    print(f"\n{'':24}{'of a core':>10}{'MB/s':>8}{f'lost of {3 * frames}':>14}{'CPU/plain':>12}")
    plain = statistics.median(r["cpu"] for r in found["plain rosbags writer"])
    for way, results in found.items():
        cpu, rate = (statistics.median(r[key] for r in results) for key in ("cpu", "rate"))
        lost = ", ".join(str(r["lost"]) for r in results)
        print(f"{way:24}{cpu:10.1%}{rate:8.1f}{lost:>14}{cpu / plain:12.2f}")
    for way, results in found.items():
        if results[-1]["verdict"]:
            print(f"{way}: {results[-1]['verdict']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--frames", type=int, default=300, help="per camera")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    rclpy.init()
    client = GraphClient("benchmark")
    found: dict[str, list[Result]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as temporary:
        for number in range(options.rounds):
            for way, results in found.items():
                folder = Path(temporary) / f"{number}-{way.replace(' ', '-')}"
                results.append(run(way, folder, options.frames, client))
                print(f"{way}: {results[-1]}", flush=True)
    client.close()
    rclpy.shutdown()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    report(found, options.frames)


if __name__ == "__main__":
    main()
