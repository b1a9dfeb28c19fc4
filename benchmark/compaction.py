"""Compaction: what a second of three 480x640 cameras takes, how it looks, how long it is made.

Run: ``python benchmark/compaction.py [groups] [kills N]`` from the package's root.

Without arguments, for images of the simulated rig without sensor noise, with 1 grey level of it (as
the simulated rig sends them) and with 4, and for pure noise: bytes as recorded, as JPEG 95 and
compacted from either; PSNR against the recorded image, whole and as the network takes it (224 px,
the centre crop included); images made a second by one core.

``groups``
    The simulated rig's images in groups of 1 to 30: bytes, and the time that reading one at random,
    and the one behind it, takes.
``kills N``
    A process that compacts an episode of the simulated rig is killed N times, anywhere between its
    begin and its end; each time the episode is read whole, and compacted by the next run.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from _machine import describe_machine  # noqa: E402
from helpers.demonstrations import demonstrate  # noqa: E402
from helpers.episodes import CAMERA_PERIOD, JOINT_PERIOD, RIG, START_NS, Writing  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from cosmos_policy_ros.bags.check import CheckedFile  # noqa: E402
from cosmos_policy_ros.bags.index import index_topics  # noqa: E402
from cosmos_policy_ros.bags.types import load_types  # noqa: E402
from cosmos_policy_ros.bags.video import _groups, image_reader  # noqa: E402
from cosmos_policy_ros.core.config import load_config  # noqa: E402
from cosmos_policy_ros.core.paths import config_folder, package_share  # noqa: E402
from cosmos_policy_ros.episodes.compact import (  # noqa: E402
    Compacted,
    CompactionConfig,
    compact,
    is_compacted,
    load_compaction,
)
from cosmos_policy_ros.episodes.episode import read_episode  # noqa: E402
from cosmos_policy_ros.episodes.recording import Options  # noqa: E402
from cosmos_policy_ros.episodes.store import EpisodeStore  # noqa: E402
from cosmos_policy_ros.episodes.topics import find_rig  # noqa: E402
from cosmos_policy_ros.model.config import CheckpointConfig  # noqa: E402
from cosmos_policy_ros.model.images import centre_crop  # noqa: E402
from cosmos_policy_ros.model.random_checkpoint import RELEASED  # noqa: E402
from cosmos_policy_ros.model.sequence import reduce_images  # noqa: E402
from cosmos_policy_ros.rig.images import decode_image  # noqa: E402
from cosmos_policy_ros.rig.observation import Observation  # noqa: E402
from cosmos_policy_ros.sim.render import Renderer  # noqa: E402

TYPES = load_types(package_share() / "msg")
SIZE = (480, 640)
CHUNKS = 3  # of the demonstrator, 2 s each
Frames = dict[str, list[NDArray[np.uint8]]]  # by role


def record(root: Path, frames: Frames, jpeg: bool) -> Path:
    """Write images as an episode of the simulated rig; return its folder."""
    patient = Options(queue_bytes=1 << 40)  # nothing is dropped, however late the disk
    writing = Writing(EpisodeStore(root, TYPES), TYPES, jpeg=jpeg, options=patient)
    count = len(next(iter(frames.values())))
    for at in range(0, count * CAMERA_PERIOD, JOINT_PERIOD):
        for side in ("left", "right"):
            writing.state(side, at)
        if at % CAMERA_PERIOD == 0:
            for role, images in frames.items():
                writing.image(role, at, images[at // CAMERA_PERIOD])
    return writing.recording.finish("stopped")


def read_frames(path: Path) -> Frames:
    episode = read_episode(path)
    cameras = find_rig(episode).cameras
    topics = index_topics(episode.files, cameras)
    found: Frames = {}
    for name, role in cameras.items():
        read = image_reader(topics[name])
        found[role] = [decode_image(read(i), name) for i in range(len(topics[name]))]
    return found


def simulated(root: Path, sigma: float) -> Frames:
    renderer = Renderer("transfer_cube", *SIZE, noise_sigma=sigma)
    path = demonstrate(EpisodeStore(root, TYPES), TYPES, renderer, 1, chunks=CHUNKS, scored=False)
    renderer.close()
    return read_frames(path)


def noise(count: int) -> Frames:
    draw = np.random.default_rng(0)
    roles = [camera.role for camera in RIG.cameras]
    return {
        role: [draw.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(count)] for role in roles
    }


def at_input(frames: Frames, config: CheckpointConfig) -> Iterator[NDArray[np.uint8]]:
    """Yield what the network takes of every tenth moment."""
    for index in range(0, len(next(iter(frames.values()))), 10):
        images = {role: each[index] for role, each in frames.items()}
        seen = Observation(START_NS, images, np.zeros(14), {})
        for image in reduce_images(seen, config).values():
            yield centre_crop(image).numpy()


def megabytes_a_second(path: Path, seconds: float) -> float:
    return sum(file.stat().st_size for file in path.glob("*.mcap")) / 1e6 / seconds


def compare(root: Path) -> None:
    config = load_config(CheckpointConfig, config_folder("models") / RELEASED / "config.yaml")
    video = replace(load_compaction(), least_psnr=0.0)
    ways: dict[str, Callable[[Path], Frames]] = {
        "simulated rig, no noise": lambda folder: simulated(folder, 0.0),
        "simulated rig, noise 1": lambda folder: simulated(folder, 1.0),
        "simulated rig, noise 4": lambda folder: simulated(folder, 4.0),
        "pure noise": lambda folder: noise(50),
    }
    print(f"crf {video.crf}, groups of {video.group}; MB a second of three cameras at 25 Hz")
    for name, make in ways.items():
        folder = root / name.replace(" ", "_")
        frames = make(folder / "made")
        seconds = len(frames["primary"]) * CAMERA_PERIOD / 1000
        truth = list(at_input(frames, config))
        print(name)
        for jpeg in (False, True):
            path = record(folder / f"{jpeg}", frames, jpeg)
            before = megabytes_a_second(path, seconds)
            if jpeg:
                told(f"JPEG 95, {before:.2f} MB/s", frames, truth, read_frames(path), config)
            began = time.process_time()
            made = compact(path, video)
            took = time.process_time() - began
            assert made is not None
            after = megabytes_a_second(path, seconds)
            of = "JPEG" if jpeg else f"raw, {before:.2f} MB/s,"
            told(
                f"compacted from {of} {after:.2f} MB/s, {made.images / took:.0f} images/s",
                frames,
                truth,
                read_frames(path),
                config,
            )
        shutil.rmtree(folder)


def told(
    what: str,
    frames: Frames,
    truth: list[NDArray[np.uint8]],
    shown: Frames,
    config: CheckpointConfig,
) -> None:
    whole = [
        cv2.PSNR(a, b) for role in frames for a, b in zip(frames[role], shown[role], strict=True)
    ]
    inputs = [cv2.PSNR(a, b) for a, b in zip(truth, at_input(shown, config), strict=True)]
    print(
        f"  {what:58} PSNR {min(whole):.1f} least, {mean(whole):.1f} mean; at the input "
        f"{min(inputs):.1f}, {mean(inputs):.1f}",
        flush=True,
    )


def compare_groups(root: Path) -> None:
    frames = simulated(root / "made", 1.0)
    draw = np.random.default_rng(2)
    for group in (1, 5, 10, 15, 30):
        path = record(root / str(group), frames, False)
        made = compact(path, CompactionConfig(18, group, 0.0))
        assert isinstance(made, Compacted)
        episode = read_episode(path)
        name = next(iter(find_rig(episode).cameras))
        topic = index_topics(episode.files, [name])[name]
        read = image_reader(topic)
        first, second = [], []
        for index in draw.integers(0, len(topic) - 1, 60):
            _groups().clear()
            for times, at in ((first, index), (second, index + 1)):
                began = time.perf_counter()
                decode_image(read(int(at)), name)
                times.append(time.perf_counter() - began)
        print(
            f"groups of {group:2}: {made.bytes_after / made.images / 1e3:5.1f} kB an image; one at "
            f"random {1e3 * mean(first):.1f} ms, the next {1e3 * median(second):.1f} ms",
            flush=True,
        )


def kill(root: Path, kills: int) -> None:
    """Kill a process that compacts a short episode, anywhere between its begin and its end."""
    renderer = Renderer("transfer_cube", 48, 64)
    made = demonstrate(EpisodeStore(root, TYPES), TYPES, renderer, 1, chunks=1)
    expected, config = contents(made), load_compaction()
    folder = root.with_name("copy") / made.name
    found: Counter[str] = Counter()
    lives: list[float] = []
    draw = random.Random(3)  # noqa: S311
    fork = get_context("fork")
    while found["killed"] < kills:
        shutil.copytree(made, folder)
        process = fork.Process(target=compact, args=(folder, config))
        began = time.monotonic()
        process.start()
        process.join(draw.random() * median(lives[-9:]) * 1.1 if lives else None)
        process.kill()
        process.join()
        if process.exitcode == 0:
            lives.append(time.monotonic() - began)
        else:
            found["killed"] += 1
            found["new" if is_compacted(read_episode(folder)) else "old"] += 1
            found["with a file left over"] += len(list(folder.iterdir())) > len([*made.iterdir()])
            assert contents(folder) == expected
            compact(folder, config)
        assert contents(folder) == expected
        assert len(list(folder.iterdir())) == len(list(made.iterdir()))
        shutil.rmtree(folder)
    print(f"{dict(found)}: the episode whole each time, and compacted by the next run")


def contents(path: Path) -> list[tuple[str, int]]:
    """Return every message of an episode's files, less the bytes of images; all checked."""
    found = []
    for file in map(CheckedFile, read_episode(path).files):
        found += [(m.topic.removesuffix("/foxglove"), m.stamp_ns) for m in file.messages()]
        assert not file.problems, file.problems
    return found


def main() -> None:
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "episodes"
        match sys.argv[1:]:
            case ["groups"]:
                compare_groups(root)
            case ["kills", count]:
                kill(root, int(count))
            case _:
                compare(root)


if __name__ == "__main__":
    main()
