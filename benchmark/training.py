"""Fine-tuning: reading samples, and one step of the optimiser, each against other ways of the same.

Run: ``python benchmark/training.py [data|prepared|index|step|muon]`` from the package's root.

``data``
    Two moments and a chunk of a 6 s episode of three 480x640 cameras, at random: from the bag as it
    was recorded (raw, JPEG, JPEG in zstd chunks) and from it compacted, and from the same frames as
    HDF5 (raw, JPEG) and as MP4, as the released trainer keeps them. Ratios are to the raw bag.
``prepared``
    The same two moments as the released network takes them, decoded, resized and cropped: from each
    bag, and from images prepared on disk. Says how long preparing them takes.
``index``
    Looking through a data set of 20 episodes of a minute: from the bags, and from the cache.
``step``
    Encoding, loss, gradients: ours against diffusers' classes with the same weights, which encode
    all 41 images and compute the time's modulation per token. 8 layers, width 512, autoencoder of
    base width 32, 224 px, float32, one sample. No ratio is printed where the losses differ.
``muon``
    One step of our Muon and of torch's, which works in bfloat16, for the shipped tiny network.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

import cv2  # noqa: E402
import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from _machine import describe_machine  # noqa: E402
from helpers.episodes import RIG, START_NS, Writing  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from cosmos_policy_ros.bags.types import load_types  # noqa: E402
from cosmos_policy_ros.core.config import load_config  # noqa: E402
from cosmos_policy_ros.core.disk_cache import DiskCache  # noqa: E402
from cosmos_policy_ros.core.paths import config_folder, package_share  # noqa: E402
from cosmos_policy_ros.dataset.checks import (  # noqa: E402
    judge_episode,
    load_check_limits,
)
from cosmos_policy_ros.dataset.index_cache import IndexedEpisode  # noqa: E402
from cosmos_policy_ros.dataset.motion import read_motion  # noqa: E402
from cosmos_policy_ros.dataset.windows import EpisodeWindows  # noqa: E402
from cosmos_policy_ros.episodes.compact import compact, load_compaction  # noqa: E402
from cosmos_policy_ros.episodes.episode import read_episode  # noqa: E402
from cosmos_policy_ros.episodes.recording import Options  # noqa: E402
from cosmos_policy_ros.episodes.store import EpisodeStore  # noqa: E402
from cosmos_policy_ros.interop.to_hdf5 import export_hdf5  # noqa: E402
from cosmos_policy_ros.model.checkpoint import load_checkpoint  # noqa: E402
from cosmos_policy_ros.model.config import CheckpointConfig  # noqa: E402
from cosmos_policy_ros.model.layout import FUTURE  # noqa: E402
from cosmos_policy_ros.model.random_checkpoint import PROMPT, RELEASED, write_config  # noqa: E402
from cosmos_policy_ros.model.straightforward import Straightforward  # noqa: E402
from cosmos_policy_ros.model.transformer import Transformer  # noqa: E402
from cosmos_policy_ros.rig.chunk import TimedChunk  # noqa: E402
from cosmos_policy_ros.training.batch import Batch, WindowRef  # noqa: E402
from cosmos_policy_ros.training.config import ObjectiveConfig  # noqa: E402
from cosmos_policy_ros.training.dataset_index import EpisodeEntry  # noqa: E402
from cosmos_policy_ros.training.loss import JointLoss, LossMeter, frame_errors, total_loss  # noqa: E402
from cosmos_policy_ros.training.optimisers import Muon  # noqa: E402
from cosmos_policy_ros.training.prepared_images import (  # noqa: E402
    Moment,
    PreparedImages,
    moment_of,
)
from cosmos_policy_ros.training.targets import TargetMaker  # noqa: E402

STEPS, CHUNK = 150, 50
ROUNDS, SAMPLES = 5, 10  # samples per way and round; the ways take turns
Reader = Callable[[int], None]


def record(
    store: EpisodeStore,
    jpeg: bool,
    options: Options,
    steps: int = STEPS,
    size: tuple[int, int] = (480, 640),
) -> Path:
    """Record moving images with some noise, 6 s of 480x640 pixels; return the bag."""
    types = load_types(package_share() / "msg")
    writing = Writing(store, types, jpeg=jpeg, options=options)
    positions = np.full((steps, 14), 0.5)
    writing.trajectory(TimedChunk("run/0", START_NS, 0.04, positions[0], positions, np.ones(14)))
    random = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    for at in range(0, steps * 40 + 40, 10):
        for side in ("left", "right"):
            writing.state(side, at)
        for index, camera in enumerate(RIG.cameras if at % 40 == 0 else ()):
            moving = np.stack([(x + at // 8) % 256, (y + 60 * index) % 256, (x + y) % 256], -1)
            noise = random.integers(-6, 7, (*size, 1))
            writing.image(camera.role, at, np.clip(moving + noise, 0, 255).astype(np.uint8))
    return writing.recording.finish("stopped")


def from_bag(path: Path) -> Reader:
    windows = EpisodeWindows(read_episode(path), 0.04)

    def read(step: int) -> None:
        for at in (step, windows.future(step, CHUNK)):
            windows.observe(int(windows.steps.times_ns[at]))
        windows.chunk(step, CHUNK)

    return read


def from_hdf5(path: Path, frame: Callable[[h5py.File, str, int], NDArray[np.uint8]]) -> Reader:
    cameras = ("cam_high", "cam_left_wrist", "cam_right_wrist")

    def read(step: int) -> None:
        with h5py.File(path) as file:
            for at in (step, min(step + CHUNK, STEPS - 1)):
                for camera in cameras:
                    image = frame(file, camera, at)
                    assert image.shape == (480, 640, 3)
                file["observations/qpos"][at]
            file["action"][step : step + CHUNK]

    return read


def raw_frame(file: h5py.File, camera: str, at: int) -> NDArray[np.uint8]:
    return np.asarray(file[f"observations/images/{camera}"][at])


def jpeg_frame(file: h5py.File, camera: str, at: int) -> NDArray[np.uint8]:
    names = {
        "cam_high": "primary",
        "cam_left_wrist": "wrist_left",
        "cam_right_wrist": "wrist_right",
    }
    data = np.asarray(file[f"{names[camera]}_images_jpeg"][at])
    return np.asarray(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def video_frame(file: h5py.File, camera: str, at: int) -> NDArray[np.uint8]:
    name = file[f"observations/video_paths/{camera}"][()].decode()
    video = cv2.VideoCapture(str(Path(file.filename).parent / name))
    video.set(cv2.CAP_PROP_POS_FRAMES, at)
    _, bgr = video.read()
    video.release()
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def compact_copy(path: Path) -> Path:
    """Compact a copy of an episode; return it."""
    copy = Path(shutil.copytree(path, path.parent / "compacted" / path.name))
    compact(copy, load_compaction())
    return copy


def compare_data(root: Path) -> None:
    store = EpisodeStore(root, load_types(package_share() / "msg"))
    raw, jpeg = record(store, False, Options()), record(store, True, Options())
    packed = record(store, True, replace(Options(), compression="zstd"))
    compacted = compact_copy(raw)
    hdf5 = {}
    for kind, bag in (("raw", raw), ("jpeg", jpeg), ("video", raw)):
        (root / f"as_{kind}").mkdir()
        hdf5[kind] = export_hdf5(read_episode(bag), root / f"as_{kind}", 0, images=kind).path
    ways = {
        "bag, raw": from_bag(raw),
        "bag, JPEG": from_bag(jpeg),
        "bag, JPEG, zstd": from_bag(packed),
        "bag, compacted": from_bag(compacted),
        "HDF5, raw": from_hdf5(hdf5["raw"], raw_frame),
        "HDF5, JPEG": from_hdf5(hdf5["jpeg"], jpeg_frame),
        "HDF5 + MP4": from_hdf5(hdf5["video"], video_frame),
    }
    random = np.random.default_rng(1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        steps = random.integers(0, STEPS - 1, SAMPLES)
        for name, read in ways.items():
            began = time.perf_counter()
            for step in steps:
                read(int(step))
            seconds[name].append((time.perf_counter() - began) / SAMPLES)
    print(f"samples of six 480x640 images, one process, median of {ROUNDS} x {SAMPLES}")
    for name, found in seconds.items():
        ratio = median(s / b for s, b in zip(found, seconds["bag, raw"], strict=True))
        print(f"  {name:16} {1 / median(found):7.1f} per second   {ratio:5.2f} times the raw bag")


def entry_of(path: Path) -> EpisodeEntry:
    """Return an episode as a training's index has it."""
    indexed = IndexedEpisode(path)
    windows = indexed.windows(0.04)
    report = judge_episode(windows, read_motion(windows, 0.04), load_check_limits())
    return EpisodeEntry(windows, "demonstration", 1.0, np.arange(STEPS), indexed.digest, report)


def compare_prepared(root: Path) -> None:
    store = EpisodeStore(root / "prepared", load_types(package_share() / "msg"))
    config = load_config(CheckpointConfig, config_folder("models") / RELEASED / "config.yaml")
    raw, jpeg = (entry_of(record(store, kind, Options())) for kind in (False, True))
    compacted = entry_of(compact_copy(raw.windows.episode.path))
    prepared = PreparedImages(config, 10.0, root / "images")
    began = time.perf_counter()
    prepared.prepare([raw], processes=1)
    took = time.perf_counter() - began

    def read(entry: EpisodeEntry, step: int) -> Moment | None:
        return moment_of(entry, step, config)

    ways: dict[str, Callable[[int], Moment | None]] = {
        "bag, raw": partial(read, raw),
        "bag, JPEG": partial(read, jpeg),
        "bag, compacted": partial(read, compacted),
        "prepared": partial(prepared.moment, raw),
    }
    random = np.random.default_rng(1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        steps = random.integers(0, STEPS - CHUNK, SAMPLES)
        for name, way in ways.items():
            began = time.perf_counter()
            for step in steps:
                for at in (step, step + CHUNK):
                    assert way(int(at)) is not None
            seconds[name].append((time.perf_counter() - began) / SAMPLES)
    print(f"samples of six 224 px images, one process, median of {ROUNDS} x {SAMPLES}")
    for name, found in seconds.items():
        ratio = median(s / b for s, b in zip(found, seconds["prepared"], strict=True))
        print(f"  {name:14} {1 / median(found):7.1f} per second   {ratio:6.1f} times the prepared")
    print(f"  preparing {STEPS} steps took {took:.1f} s, the start of its process included")


def compare_index(root: Path) -> None:
    store = EpisodeStore(root / "many", load_types(package_share() / "msg"))
    path = record(store, True, Options(), steps=1500, size=(48, 64))
    paths = [shutil.copytree(path, root / "many" / f"{path.name[:-1]}{n}") for n in range(2, 21)]
    cache = DiskCache(root / "cache", 1 << 30)
    for name in ("from the bags", "from the cache"):
        began = time.perf_counter()
        for each in paths:
            IndexedEpisode(each, cache).windows(0.04)
        per_episode = (time.perf_counter() - began) / len(paths)
        print(f"index {name:14} {1e3 * per_episode:6.1f} ms an episode of a minute")


def make_batch(size: int) -> Batch:
    random = np.random.default_rng(2)
    images = random.integers(0, 256, (1, 6, size, size, 3), np.uint8)

    def vector(length: int) -> torch.Tensor:
        return torch.from_numpy(random.uniform(-1, 1, (1, length)).astype(np.float32))

    return Batch(
        windows=(WindowRef("policy", 0, 0, 3),),
        prompts=(PROMPT,),
        images=torch.from_numpy(images),
        proprio=vector(14),
        actions=vector(700),
        future_proprio=vector(14),
        value=torch.tensor([0.5]),
        futures=(50,),
        replaced=(),
    )


def compare_steps(root: Path, laps: int = 3) -> int:
    changes = {
        "transformer": {"layers": 8, "heads": 4},
        "vae": {"base_width": 32},
        "precision": "float32",
    }
    checkpoint = load_checkpoint(write_config(root, changes))
    straight = Straightforward(checkpoint)
    network = checkpoint.transformer.requires_grad_(True).train()
    straight.network.core.requires_grad_(True).train()
    targets = TargetMaker(checkpoint, torch.device("cpu"))
    joint_loss = JointLoss(checkpoint, ObjectiveConfig(), targets, torch.device("cpu"))
    batch = make_batch(checkpoint.config.image_size)
    layout = checkpoint.layout
    names = [*layout.cameras, *(FUTURE + camera for camera in layout.cameras)]
    images = dict(zip(names, batch.images[0], strict=True))
    vectors = [layout.index(n) for n in ("proprio", "action", "future_proprio", "value")]

    def ours() -> torch.Tensor:
        return joint_loss.loss(network, batch, LossMeter(layout.frames, torch.device("cpu")), 1.0)

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            clean = straight.encode(images)
            clean[:, :, vectors] = injected[:, :, vectors]
        sigma, noise = joint_loss.draw_noise(batch, tuple(clean.shape[1:]))
        known = torch.tensor([layout.mask("policy")])
        losses, _ = frame_errors(
            straight.network,
            "rectified_flow",
            clean,
            known,
            joint_loss.prompt_embeddings(batch),
            sigma,
            noise,
        )
        return total_loss(losses, ~known)

    injected = targets(batch)
    seconds: dict[str, list[float]] = {"ours": [], "straightforward": []}
    losses = {}
    for _ in range(laps):
        for name, way in (("ours", ours), ("straightforward", theirs)):
            began = time.perf_counter()
            loss = way()
            torch.autograd.backward(loss)
            seconds[name].append(time.perf_counter() - began)
            losses[name] = float(loss.detach())
            network.zero_grad(set_to_none=True)
            straight.network.core.zero_grad(set_to_none=True)
    difference = abs(losses["ours"] / losses["straightforward"] - 1)
    print(f"one training step of one sample, median of {laps}; losses differ by {difference:.1e}")
    for name, found in seconds.items():
        print(f"  {name:16} {1 / median(found):7.4f} per second")
    if difference > 1e-4:
        print("  the two ways do not compute the same; no ratio")
        return 1
    pairs = zip(seconds["straightforward"], seconds["ours"], strict=True)
    print(f"  ours is {median(s / o for s, o in pairs):.2f} times as fast")
    return 0


def compare_muon(rounds: int = 5) -> None:
    config = load_config(CheckpointConfig, config_folder("models") / "tiny" / "config.yaml")
    network = Transformer(config.transformer)
    matrices = [p for n, p in network.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    ways = {"ours": Muon(matrices, lr=0.02), "torch": torch.optim.Muon(matrices, lr=0.02)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for lap in range(1 + rounds):
        for name, optimiser in ways.items():
            began = time.perf_counter()
            optimiser.step()
            if lap:  # the first one makes the buffers
                seconds[name].append(time.perf_counter() - began)
    pairs = zip(seconds["torch"], seconds["ours"], strict=True)
    print(f"one step of {len(matrices)} matrices, median of {rounds}")
    for name, found in seconds.items():
        print(f"  {name:5} {median(found):.3f} s")
    print(f"  torch's takes {median(t / o for t, o in pairs):.2f} times as long")


def main() -> int:
    wanted = sys.argv[1:] or ["data", "prepared", "index", "step", "muon"]
    torch.set_num_threads(1)
    print(describe_machine())
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        if "data" in wanted:
            compare_data(Path(folder))
        if "prepared" in wanted:
            compare_prepared(Path(folder))
        if "index" in wanted:
            compare_index(Path(folder))
        if "step" in wanted:
            (Path(folder) / "checkpoint").mkdir()
            code = compare_steps(Path(folder) / "checkpoint")
        if "muon" in wanted:
            compare_muon()
    return code


if __name__ == "__main__":
    sys.exit(main())
