"""Pins that damaged or hostile bytes give every reader one clear error: nothing else, no gigabytes.

A short and fixed form runs here. The long one, by hand, for so many seconds per reader:
``COSMOS_FUZZ_SECONDS=600 python -m pytest test/test_fuzz.py -k pickle -s``
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers.episodes import record
from helpers.foreign_bags import FORMATS, Made, foreign_types, write_bag
from helpers.foreign_episode import goals, record_ours, rig_file, teleoperated
from helpers.hdf5 import ROLLOUT, write_hdf5
from helpers.lerobot import DATA_2, EPISODES_3, IMAGES, VIDEO_3, LeRobot
from helpers.recordings import write_recording
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mcap.opcode import Opcode
from safetensors.torch import save
from torch.distributed.checkpoint import metadata as dcp

from cosmos_policy_ros.bags.index import index_topics
from cosmos_policy_ros.bags.messages import (
    EpisodeMetadata,
    Label,
    decode_label,
    decode_metadata,
    encode_label,
    encode_metadata,
)
from cosmos_policy_ros.bags.types import load_types, types_of_definition
from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.dataset.gate_replay import check_episode
from cosmos_policy_ros.episodes.episode import read_episode, read_messages
from cosmos_policy_ros.episodes.labels import LABEL_LOG, logged, read_log
from cosmos_policy_ros.episodes.quality import load_limits
from cosmos_policy_ros.episodes.recording import Options
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.verify import verify
from cosmos_policy_ros.interop.foreign_episode import ImportOptions
from cosmos_policy_ros.interop.hdf5_layout import open_hdf5
from cosmos_policy_ros.interop.importer import Importer
from cosmos_policy_ros.interop.lerobot_episode import open_episode
from cosmos_policy_ros.interop.lerobot_set import LeRobotSet
from cosmos_policy_ros.interop.ros_bag import RosBagSource
from cosmos_policy_ros.model.config import read_config
from cosmos_policy_ros.model.statistics import KEYS, load_statistics
from cosmos_policy_ros.model.text import load_text
from cosmos_policy_ros.model.weights import load_index, load_prompts, read_weights
from cosmos_policy_ros.rig.spec import load_rig

SECONDS = float(os.environ.get("COSMOS_FUZZ_SECONDS", "0"))
EXAMPLES = 25  # of the short form, per reader
HDF5_EXAMPLES = 10  # each is read in a process of its own
MOST_KB = 2_000_000  # of memory that all inputs of a reader together may add to the process's most
LIMITS = load_limits()
TYPES = load_types(config_folder("rigs").parents[1] / "msg")

# What parsers stumble over: ends of ranges, lengths beyond the end, magic words, line ends.
WORDS = (
    *(struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)),
    *(struct.pack("<I", n) for n in (0, 1, 22, 2**16, 2**31 - 1, 2**32 - 1)),
    *(bytes([n]) for n in (0, 1, 5, 6, 127, 128, 255)),
    *(b"[" * 500, b"{a: " * 50, b"&a [*a]", b"\n", b"\r", b"\x85", "\u2028".encode(), b"\xff\xfe"),
    *(b"1e999", b"-1", b"NaN", b"null", b"9" * 70, b'"', b"'", b"../..", b"\x85" * 300),
    b"2\x86" * 40,
)


@dataclass(frozen=True)
class Change:
    """What is done to a file's bytes at a place, which is a fraction of its length."""

    kind: str
    where: float
    size: int
    word: bytes

    def __call__(self, content: bytes) -> bytes:
        at = int(self.where * len(content))
        if self.kind == "overwrite":
            return content[:at] + self.word + content[at + len(self.word) :]
        if self.kind == "insert":
            return content[:at] + self.word + content[at:]
        if self.kind == "remove":
            return content[:at] + content[at + self.size :]
        if self.kind == "repeat":
            return content[: at + self.size] + content[at:]
        if self.kind == "flip" and at < len(content):
            return content[:at] + bytes([content[at] ^ 1 << self.size % 8]) + content[at + 1 :]
        return content[:at] if self.kind == "cut" else content


CHANGES = st.builds(
    Change,
    st.sampled_from(("overwrite", "insert", "remove", "repeat", "flip", "flip", "cut")),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 64),
    st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=9)),
)


class Readers:
    """Every reader of foreign bytes, by name, with the sound files that are spoilt for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sound = folder / "sound"
        self._rig = rig_file(folder, teleoperated())
        store = EpisodeStore(self._sound, TYPES)
        packed = Options(compression="zstd")
        self.bags = [record(store, TYPES, 0.1), record(store, TYPES, 0.1, options=packed)]
        files = [_without_checksums(_mcap(bag).read_bytes()) for bag in self.bags]
        self.all: Mapping[str, tuple[list[bytes], Callable[[bytes], None]]] = {
            "bag": (files, self.bag),
            "recovery": ([f[:-cut] for f in files for cut in (9, 2000)], self.recovery),
            "metadata": ([(self.bags[0] / "metadata.yaml").read_bytes()], self.metadata),
            "label_log": ([_label_log(folder)], self.label_log),
            "definition": ([_definition()], self.definition),
            "message": ([_metadata(), _label()], self.message),
            "bag of others": (_foreign(folder / "others"), self.foreign),
            "hdf5": (
                [
                    write_hdf5(folder / "a.hdf5", rows=3).read_bytes(),
                    write_hdf5(folder / "b.hdf5", "jpeg", rows=3, attributes=ROLLOUT).read_bytes(),
                    _chunked(folder / "c.hdf5"),
                    write_recording(folder / "d.hdf5", "padded", rows=3).read_bytes(),
                    write_recording(folder / "e.hdf5", "strings", rows=3).read_bytes(),
                ],
                self.hdf5,
            ),
            **self._sets(folder / "sets"),
            "rig": ([(config_folder("rigs") / "sim.yaml").read_bytes()], self.rig),
            "task": ([(config_folder("tasks") / "ziploc.yaml").read_bytes()], self.task),
            "config": (
                [p.read_bytes() for p in config_folder("models").glob("*/config.yaml")],
                self.config,
            ),
            "statistics": ([_statistics()], self.statistics),
            "prompts pickle": ([_prompts(2), _prompts(4)], self.prompts),
            "index pickle": ([_index()], self.index),
            "weights": ([_weights(), _old_weights()], self.weights),
            "safetensors": ([save({"a": torch.ones(2, 3), "b": torch.zeros(4)})], self.safetensors),
        }

    def _sets(self, folder: Path) -> Mapping[str, tuple[list[bytes], Callable[[bytes], None]]]:
        two = LeRobot("v2.1", "png", rows=(3,), prompts=["a"]).write(folder / "two")
        three = LeRobot("v3.0", rows=(3, 4)).write(folder / "three")
        files = {
            "lerobot info": (three, "meta/info.json"),
            "lerobot lines": (two, "meta/episodes.jsonl"),
            "lerobot episodes": (three, EPISODES_3),
            "lerobot rows": (two, DATA_2.format(0)),
            "lerobot video": (three, VIDEO_3.format(f"{IMAGES}cam_high")),
        }
        return {
            name: ([(root / path).read_bytes()], partial(self.lerobot, root, path))
            for name, (root, path) in files.items()
        }

    def lerobot(self, root: Path, name: str, content: bytes) -> None:
        path = root / name
        sound = path.read_bytes()
        path.write_bytes(content)
        try:
            for entry in LeRobotSet(root).episodes():
                with open_episode(entry) as episode:
                    episode.metadata((), None)
                    episode.digest()
                    for frames in episode.frames.values():
                        list(frames.rows(range(0, frames.count, 2)))
        finally:
            path.write_bytes(sound)

    def _bag(self, name: str, content: bytes) -> Path:
        folder = self.folder / "spoilt" / self.bags[0].name
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(self.bags[0], folder)
        (folder / name).write_bytes(content)
        return folder

    def _look(self, folder: Path) -> None:
        verify(folder, LIMITS)  # raises nothing at all
        steps: list[Callable[[], Any]] = [
            lambda: list(read_messages(folder, read_episode(folder).topics)),
            lambda: check_episode(folder),
            lambda: self._by_index(folder),
        ]
        for step in steps:
            try:
                step()
            except CosmosPolicyError:
                continue

    def _by_index(self, folder: Path) -> None:
        topics = [t for t in read_episode(self.bags[0]).topics if t.startswith("/")]
        for topic in index_topics([_mcap(folder)], topics).values():
            for index in range(min(len(topic), 5)):
                topic.read(index)

    def bag(self, content: bytes) -> None:
        self._look(self._bag(_mcap(self.bags[0]).name, content))

    def metadata(self, content: bytes) -> None:
        self._look(self._bag("metadata.yaml", content))

    def recovery(self, content: bytes) -> None:
        root = self.folder / "dead"
        shutil.rmtree(root, ignore_errors=True)
        file = root / f"{self.bags[0].name}.recording" / _mcap(self.bags[0]).name
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        (result,) = EpisodeStore(root, TYPES).recover()
        if isinstance(result, CosmosPolicyError):
            assert str(file.parent) in str(result) and file.read_bytes() == content
        else:
            self._look(result.path)

    def label_log(self, content: bytes) -> None:
        (self.folder / LABEL_LOG).write_bytes(content)
        labels, _ = read_log(self.folder)
        for label in labels:
            encode_label(TYPES, label)

    def definition(self, content: bytes) -> None:
        types = types_of_definition("cosmos_policy_ros/msg/Label", content.decode(errors="replace"))
        decode_label(types, _label())

    def message(self, content: bytes) -> None:
        for decode in (decode_metadata, decode_label):
            try:
                decode(TYPES, content)
            except CosmosPolicyError:
                continue

    def foreign(self, content: bytes) -> None:
        path = self._file("a.bag", content)
        shutil.rmtree(self.folder / "imported", ignore_errors=True)
        store = EpisodeStore(self.folder / "imported", TYPES)
        options = ImportOptions(rig=self._rig, prompt="fold")
        Importer(store, TYPES, options).take(RosBagSource(path, (path,)))

    def hdf5(self, content: bytes) -> None:
        with open_hdf5(self._file("a.hdf5", content), colours="bgr") as source:
            source.metadata(())
            for frames in source.frames.values():
                list(frames.every(2))

    def rig(self, content: bytes) -> None:
        load_rig(str(self._file("sim.yaml", content)), self.folder)

    def task(self, content: bytes) -> None:
        load_task(str(self._file("ziploc.yaml", content)), self.folder)

    def config(self, content: bytes) -> None:
        read_config(self._file("config.yaml", content))

    def statistics(self, content: bytes) -> None:
        load_statistics(self._file("s.json", content), 14, 14)

    def prompts(self, content: bytes) -> None:
        load_prompts(self._file("p.pkl", content))

    def index(self, content: bytes) -> None:
        load_index(self._file(".metadata", content))

    def weights(self, content: bytes) -> None:
        read_weights(self._file("w.pt", content))

    def safetensors(self, content: bytes) -> None:
        path = self._file("w.safetensors", content)
        try:
            read_weights(path)
        except CosmosPolicyError:
            load_text(path, 4, 3)

    def _file(self, name: str, content: bytes) -> Path:
        folder = self.folder / "files"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        return folder / name


def _foreign(folder: Path) -> list[bytes]:
    """Return bags of other recorders in every storage, with trajectories and with goals."""
    ours = record_ours(EpisodeStore(folder / "ours", TYPES), TYPES, seconds=0.6)
    types = foreign_types(TYPES)
    sent = goals(Made(types), teleoperated(), range(100, 600, 20))
    found = []
    for number, form in enumerate(FORMATS):
        path = folder / f"{number}.bag"
        messages = ours.messages if number % 2 else [*ours.sensors, *sent]
        written = write_bag(path, messages, types, form)
        files = (
            [p for p in written.iterdir() if p.suffix != ".yaml"] if written.is_dir() else [path]
        )
        content = files[0].read_bytes()
        found.append(_without_checksums(content) if content.startswith(b"\x89MCAP") else content)
    return found


def _mcap(bag: Path) -> Path:
    return bag / f"{bag.name}_0.mcap"


def _without_checksums(content: bytes) -> bytes:
    """Return an MCAP file that no checksum protects, so that what is behind them is reached."""
    spoilt, at = bytearray(content), 8
    while at + 9 <= len(spoilt) - 8:
        opcode, length = struct.unpack_from("<BQ", spoilt, at)
        if opcode == Opcode.CHUNK:
            spoilt[at + 9 + 24 : at + 9 + 28] = bytes(4)
        if opcode == Opcode.FOOTER:
            spoilt[at + 9 + 16 : at + 9 + 20] = bytes(4)
        at += 9 + length
    return bytes(spoilt)


def _label_log(folder: Path) -> bytes:
    labels = [Label("e", n, "score", 10**18, points=50.0, note="a\u2028b") for n in (1, 2, 3)]
    (folder / LABEL_LOG).unlink(missing_ok=True)
    with logged(folder, labels):
        pass
    return (folder / LABEL_LOG).read_bytes()


def _definition() -> bytes:
    return TYPES.generate_msgdef("cosmos_policy_ros/msg/Label", ros_version=2)[0].encode()


def _metadata() -> bytes:
    return encode_metadata(TYPES, EpisodeMetadata("t", "p", "sim", rig_yaml="a: b\n"), 10**18)


def _label() -> bytes:
    return encode_label(TYPES, Label("e", 1, "score", 10**18, points=50.0, note="good"))


def _chunked(path: Path) -> bytes:
    def change(file: h5py.File) -> None:
        for key in ("action", "observations/images/cam_high"):
            content = file[key][()]
            del file[key]
            file.create_dataset(key, data=content, compression="gzip", shuffle=True, chunks=True)

    return write_hdf5(path, rows=3, change=change).read_bytes()


def _statistics() -> bytes:
    return json.dumps({key: np.arange(14.0).tolist() for key in KEYS}).encode()


def _prompts(protocol: int) -> bytes:
    return pickle.dumps({"a": torch.ones(1, 3, 2), "b": torch.zeros(1, 2, 2)}, protocol)


def _index() -> bytes:
    entry = dcp.TensorStorageMetadata(dcp.TensorProperties(torch.float32), torch.Size([2, 2]), [])
    return pickle.dumps(dcp.Metadata({"a": entry, "b": entry}))


def _weights() -> bytes:
    content = io.BytesIO()
    torch.save({"net.a": torch.ones(2, 3), "net.b": torch.zeros(4)}, content)
    return content.getvalue()


def _old_weights() -> bytes:
    content = io.BytesIO()
    torch.save({"net.a": torch.ones(2, 3)}, content, _use_new_zipfile_serialization=False)
    return content.getvalue()


NAMES = (
    *("bag", "recovery", "metadata", "label_log", "definition", "message", "hdf5"),
    *("bag of others", "rig", "task", "config", "statistics"),
    *("lerobot info", "lerobot lines", "lerobot episodes", "lerobot rows", "lerobot video"),
    *("prompts pickle", "index pickle", "weights", "safetensors"),
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    return Readers(tmp_path_factory.mktemp("fuzz"))


def test_every_reader_is_tried(readers: Readers) -> None:
    assert set(readers.all) == set(NAMES)
    for seeds, read in readers.all.values():
        for seed in seeds:
            read(seed)


@pytest.mark.timeout(max(300, SECONDS * 2))
@pytest.mark.parametrize("name", NAMES)
def test_spoilt_bytes_are_one_clear_error(readers: Readers, name: str) -> None:
    seeds, read = readers.all[name]
    faults: Counter[str] = Counter()
    inputs, slowest = 0, 0.0
    short = HDF5_EXAMPLES if name == "hdf5" else EXAMPLES
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = Path(os.environ.get("COSMOS_FUZZ_KEEP", str(readers.folder)))

    @settings(
        max_examples=100 if SECONDS else short,
        derandomize=not SECONDS,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(seeds), st.lists(CHANGES, min_size=1, max_size=6))
    def spoil(content: bytes, changes: list[Change]) -> None:
        nonlocal inputs, slowest
        for change in changes:
            content = change(content)
        inputs += 1
        begun = time.process_time()
        try:
            read(content)
        except CosmosPolicyError as error:
            assert len(str(error)) < 5000
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__}: {str(error)[:80]} ({place.name}, {place.lineno})"
            if not faults[fault]:
                (kept / f"fault_{name.replace(' ', '_')}_{len(faults)}").write_bytes(content)
            faults[fault] += 1
        slowest = max(slowest, time.process_time() - begun)

    ends = time.monotonic() + SECONDS
    spoil()
    while time.monotonic() < ends:
        spoil()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"\n{name}: {inputs} inputs, {len(faults)} faults, slowest {slowest:.2f} s, {grown} kB more"
    )
    assert not faults, "\n".join(f"{count} times {fault}" for fault, count in faults.items())
    assert grown < MOST_KB
