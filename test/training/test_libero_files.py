"""The released LIBERO layouts as a source of windows: what the released rule gives, or a reason."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from helpers.libero_hdf5 import NAME, TASK, images, jpeg, write_demonstrations, write_rollout
from PIL import Image
from rosbags.typesys.store import Typestore
from safetensors.torch import load_file, save_file

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.libero_hdf5 import task_of
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.images import centre_crop
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sequence import reduce_images
from cosmos_policy_ros.model.statistics import load_statistics, measure, write_statistics
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.training.batch import WindowRef
from cosmos_policy_ros.training.config import (
    DataConfig,
    MixtureConfig,
    ObjectiveConfig,
    TrainingConfig,
)
from cosmos_policy_ros.training.dataset_index import DatasetIndex, Mixture, index_episodes
from cosmos_policy_ros.training.parallel import joined
from cosmos_policy_ros.training.samples import SampleMaker
from cosmos_policy_ros.training.saving import begin_folder
from cosmos_policy_ros.training.trainer import Trainer

from .conftest import TINY, record_wave

CHUNK = 16


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of LIBERO's layout that knows one task; images of 32 px."""
    folder = tmp_path_factory.mktemp("libero") / "start"
    folder.mkdir()
    config = yaml.safe_load((TINY / files.CONFIG).read_text())
    config |= {"layout": "libero", "chunk_steps": CHUNK, "action_dims": 7, "proprio_dims": 9}
    config |= {"dt": 0.05, "flip_images": True, "jpeg_quality": 95, "image_size": 32}
    config["transformer"] |= {"layers": 2, "heads": 2}
    config["vae"]["base_width"] = 4
    (folder / files.CONFIG).write_text(yaml.safe_dump(config))
    embedding = next(iter(load_file(TINY / files.TEXT).values()))
    save_file({TASK: embedding}, folder / files.TEXT)
    ends = np.array([[-1.0], [1.0]])
    write_statistics(folder / files.STATISTICS, measure(ends.repeat(7, 1), ends.repeat(9, 1)))
    return folder


@pytest.fixture(scope="module")
def checkpoint(start: Path) -> Checkpoint:
    return load_checkpoint(start)


@pytest.fixture
def index(checkpoint: Checkpoint) -> Callable[..., DatasetIndex]:
    def find(*demonstrations: Path, **others: Any) -> DatasetIndex:
        rollouts = tuple(map(str, others.pop("rollouts", ())))
        data = DataConfig(tuple(map(str, demonstrations)), rollouts, **{"held_out": 0.0, **others})
        return index_episodes(data, checkpoint.config, checkpoint.text)

    return find


def maker_of(found: DatasetIndex, checkpoint: Checkpoint, **data: Any) -> SampleMaker:
    own = DataConfig(("unused",), **{"augmentation": "none", **data})
    objective = ObjectiveConfig(discount=0.99)
    mixture = Mixture(found, MixtureConfig(), 0)
    return SampleMaker(found, mixture, 8, checkpoint.config, checkpoint.statistics, own, objective)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("kind", ["demonstration", "success", "failure"])
def test_a_window_is_what_the_released_rule_gives(
    tmp_path: Path,
    index: Callable[..., DatasetIndex],
    checkpoint: Checkpoint,
    kind: str,
    raw: bool,
) -> None:
    """Computed here from the file alone: rows, repetition at the end, returns, images upright."""
    rows, demos = 40, tmp_path / "demos"
    demos.mkdir()
    file = write_demonstrations(demos / NAME, (rows,), raw=raw)
    names = ("data/demo_0/obs/eye_in_hand_rgb", "data/demo_0/obs/agentview_rgb")
    actions_key, states_key = "data/demo_0/actions", "data/demo_0/robot_states"
    rollouts: list[Path] = []
    if kind != "demonstration":
        attributes = {"success": kind == "success", "task_description": TASK}
        file = write_rollout(tmp_path / "tries" / "try.hdf5", rows, raw=raw, attributes=attributes)
        rollouts, names = [file.parent], ("wrist_images", "primary_images")
        actions_key, states_key = "actions", "proprio"
    found = index(demos, rollouts=rollouts)
    at = next(i for i, entry in enumerate(found.entries) if entry.pool == kind)
    maker = maker_of(found, checkpoint)
    with h5py.File(file) as opened:
        actions = opened[actions_key][:].astype(np.float32)
        states = opened[states_key][:].astype(np.float32)
        frames = [opened[name if raw else f"{name}_jpeg"][:] for name in names]

    def shown(camera: int, step: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        pixels = frames[camera][step]
        image = Image.fromarray(pixels) if raw else Image.open(io.BytesIO(pixels.tobytes()))
        for size in (256, 32):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return centre_crop(torch.tensor(np.asarray(image))).numpy()

    for step in (0, 3, 30, 39):
        sample = maker.make(WindowRef("policy", at, step, 0))
        later = min(step + CHUNK, rows - 1)
        chunk = np.stack([actions[min(row, rows - 1)] for row in range(step, step + CHUNK)])
        np.testing.assert_allclose(sample.actions, chunk.ravel(), atol=1e-6)
        np.testing.assert_allclose(sample.proprio, states[step], atol=1e-6)
        np.testing.assert_allclose(sample.future_proprio, states[later], atol=1e-6)
        wanted = [shown(camera, when) for when in (step, later) for camera in (0, 1)]
        np.testing.assert_array_equal(sample.images, np.stack(wanted))
        reward = 0.0 if kind == "failure" else 1.0
        assert sample.value == pytest.approx(2 * 0.99 ** (rows - 1 - later) * reward - 1)
        assert sample.prompt == TASK


def test_a_policy_sees_a_stored_image_as_it_would_have_seen_the_camera(
    tmp_path: Path, index: Callable[..., DatasetIndex], checkpoint: Checkpoint
) -> None:
    """What is stored is upright and went through JPEG; a camera's image is neither."""
    write_demonstrations(tmp_path / NAME, (20,))
    observation = index(tmp_path).entries[0].observe(4)
    stored = reduce_images(observation, checkpoint.config)
    seen = {"wrist": images(20, 5)[4][::-1], "primary": images(20, 0)[4][::-1]}
    camera = Observation(0, seen, observation.state, {})
    live = reduce_images(camera, checkpoint.config)
    for role in ("wrist", "primary"):
        torch.testing.assert_close(stored[role], live[role], atol=0, rtol=0)


def test_what_a_file_is_named_is_what_is_asked_for() -> None:
    assert task_of(NAME) == TASK
    name = "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it_demo.hdf5"
    assert task_of(name) == "turn on the stove and put the moka pot on it"
    assert task_of("LIVING_ROOM_SCENE2_put_both_pots_in_the_basket_demo.hdf5") == (
        "put both pots in the basket"
    )


def test_failures_teach_world_model_and_value_alone(
    tmp_path: Path, index: Callable[..., DatasetIndex]
) -> None:
    write_demonstrations(tmp_path / "demos" / NAME)
    write_rollout(tmp_path / "tries" / "try.hdf5", 60)
    found = index(tmp_path / "demos", rollouts=[tmp_path / "tries"])
    assert Counter(entry.pool for entry in found.entries) == {"demonstration": 2, "failure": 1}
    mixture = Mixture(found, MixtureConfig(), 0)
    drawn = [mixture.draw(step, place, 32) for step in range(20) for place in range(32)]
    roles = Counter(window.role for window in drawn)
    assert roles == {"policy": 320, "world_model": 160, "value": 160}
    failed = Counter(w.role for w in drawn if found.entries[w.entry].pool == "failure")
    assert failed == {"world_model": 80, "value": 80}


def test_a_demonstration_that_failed_is_named(
    tmp_path: Path, index: Callable[..., DatasetIndex]
) -> None:
    write_demonstrations(tmp_path / NAME)
    write_rollout(tmp_path / "failed.hdf5")
    found = index(tmp_path)
    assert len(found.entries) == 2
    ((path, reason),) = found.left_out
    assert path.name == "failed.hdf5"
    assert reason == "is a demonstration that failed: add it to data.rollouts"


def test_windows_lie_where_images_are(
    tmp_path: Path, index: Callable[..., DatasetIndex], checkpoint: Checkpoint
) -> None:
    """Drawing is what simulated demonstrations cost; those of 4 by 4 steps are enough to learn."""
    write_demonstrations(tmp_path / NAME, (41,), every=4)
    found = index(tmp_path)
    assert found.entries[0].starts.tolist() == list(range(0, 41, 4))
    assert found.windows_left_out == 30
    sample = maker_of(found, checkpoint).make(WindowRef("policy", 0, 36, 0))
    assert sample.future == 40


def unequal(file: h5py.File) -> None:
    del file["data/demo_1/robot_states"]
    file["data/demo_1/robot_states"] = np.zeros((49, 9))


def without(key: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[f"data/demo_1/{key}"]

    return change


def replaced(key: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[f"data/demo_1/{key}"]
        file[f"data/demo_1/{key}"] = value

    return change


def not_finite(file: h5py.File) -> None:
    file["data/demo_1/actions"][7, 3] = np.nan


def first_image(data: bytes) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file["data/demo_1/obs/agentview_rgb_jpeg"][0] = np.frombuffer(data, np.uint8)

    return change


def bomb() -> bytes:
    """A JPEG of 65 thousand pixels a side, by its head."""
    small = jpeg(np.zeros((16, 16, 3), np.uint8)).tobytes()
    at = small.index(b"\xff\xc0")
    return small[: at + 5] + b"\xff\xff\xff\xff" + small[at + 9 :]


def short(file: h5py.File) -> None:
    demo = file["data/demo_1"]
    for key in ("actions", "robot_states", "obs/agentview_rgb_jpeg", "obs/eye_in_hand_rgb_jpeg"):
        kept, dtype = demo[key][:9], demo[key].dtype
        del demo[key]
        demo.create_dataset(key, (9,) if kept.dtype.kind == "O" else kept.shape, dtype)
        for row, each in enumerate(kept):
            demo[key][row] = each


HALF = jpeg(np.full((48, 48, 3), 90, np.uint8)).tobytes()[:300]
SPOILED = {
    "rows": (unequal, "rows differ: /data/demo_1/actions has 50, /data/demo_1/robot_states has 49"),
    "no actions": (without("actions"), "has no /data/demo_1/actions; it holds /obs"),
    "no images": (
        without("obs/eye_in_hand_rgb_jpeg"),
        "has neither /data/demo_1/obs/eye_in_hand_rgb nor",
    ),
    "texts": (replaced("actions", np.full((50, 7), b"x")), "expected numbers (T, n)"),
    "one column": (replaced("actions", np.zeros(50)), "float64 (50,), expected numbers (T, n)"),
    "another robot": (
        replaced("actions", np.zeros((50, 14))),
        "its actions have 14 numbers, the checkpoint takes 7",
    ),
    "nan": (not_finite, "its actions are not finite at step 7"),
    "cut image": (first_image(HALF), "is no whole JPEG"),
    "bomb": (first_image(bomb()), "a JPEG of 65535x65535 pixels"),
    "no image": (
        replaced("obs/agentview_rgb_jpeg", np.zeros((50, 4, 4), np.float32)),
        "expected uint8 (T, height, width, 3)",
    ),
    "short": (short, "is 9 steps long, which is less than one chunk of 16"),
    "elsewhere": (
        replaced("actions", h5py.ExternalLink("other.hdf5", "actions")),
        "is a link to actions in other.hdf5",
    ),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_what_cannot_be_learned_from_is_named_and_the_rest_is_used(
    tmp_path: Path, index: Callable[..., DatasetIndex], spoiled: str
) -> None:
    change, reason = SPOILED[spoiled]
    write_demonstrations(tmp_path / NAME, change=change)
    found = index(tmp_path)
    assert [entry.windows.id for entry in found.entries] == [f"{NAME}:demo_0"]
    ((path, told),) = found.left_out
    assert path.name == f"{NAME}:demo_1"
    assert reason in told
    assert "Traceback" not in told


@pytest.mark.parametrize("left", [0, 100, 3000])
def test_a_file_that_was_cut_short_is_named(
    tmp_path: Path, index: Callable[..., DatasetIndex], left: int
) -> None:
    whole = write_demonstrations(tmp_path / NAME)
    cut = tmp_path / f"cut_{NAME}"
    cut.write_bytes(whole.read_bytes()[:left])
    found = index(tmp_path)
    assert len(found.entries) == 2
    ((path, reason),) = found.left_out
    assert path == cut
    assert "cannot be read" in reason and "copy it again" in reason


def test_a_file_that_changed_is_read_anew(
    tmp_path: Path, index: Callable[..., DatasetIndex]
) -> None:
    path = write_demonstrations(tmp_path / NAME)
    first = index(tmp_path)
    write_demonstrations(path, seed=3)
    os.utime(path, ns=(0, 10**15))
    again = index(tmp_path)
    assert first.entries[0].digest != again.entries[0].digest
    assert first.entries[0].windows.fingerprint != again.entries[0].windows.fingerprint


def test_a_copy_is_not_learned_from_twice(
    tmp_path: Path, index: Callable[..., DatasetIndex]
) -> None:
    path = write_demonstrations(tmp_path / "a" / NAME)
    (tmp_path / "b").mkdir()
    shutil.copy(path, tmp_path / "b")
    found = index(tmp_path)
    assert len(found.entries) == 2
    assert [reason.split(";")[1] for _, reason in found.left_out] == [
        " delete one of the copies"
    ] * 2


def test_a_rollout_says_how_it_ended(tmp_path: Path, index: Callable[..., DatasetIndex]) -> None:
    write_demonstrations(tmp_path / "demos" / NAME)
    tries = tmp_path / "tries"
    half = {"task_description": TASK, "success": False, "success_score": 0.5}
    write_rollout(tries / "half.hdf5", seed=1, attributes=half)
    write_rollout(tries / "silent.hdf5", seed=2, attributes={"task_description": TASK})
    write_rollout(tries / "strange.hdf5", seed=3, attributes={**half, "success_score": 50.0})
    write_rollout(tries / "other.hdf5", seed=4, attributes={**half, "task_description": "dance"})
    found = index(tmp_path / "demos", rollouts=[tries])
    assert [(e.pool, e.score) for e in found.entries if e.pool != "demonstration"] == [
        ("failure", 0.5)
    ]
    told = {path.name: reason for path, reason in found.left_out}
    assert "has no attribute success" in told["silent.hdf5"]
    assert "success_score: is 50, expected 0 to 1" in told["strange.hdf5"]
    assert "its prompt 'dance' has no embedding" in told["other.hdf5"]


def test_bags_are_of_another_robot(
    tmp_path: Path, types: Typestore, index: Callable[..., DatasetIndex]
) -> None:
    record_wave(EpisodeStore(tmp_path, types), types, 0)
    with pytest.raises(TrainingError, match="is a bag, whose states and actions have 14 numbers"):
        index(tmp_path)


def test_ranges_are_those_of_the_demonstrations(
    tmp_path: Path, index: Callable[..., DatasetIndex], checkpoint: Checkpoint
) -> None:
    path = write_demonstrations(tmp_path / "demos" / NAME)
    write_rollout(tmp_path / "tries" / "try.hdf5", seed=99)
    found = index(tmp_path / "demos", rollouts=[tmp_path / "tries"])
    output = tmp_path / "output"
    output.mkdir()
    begin_folder(output, checkpoint, found, "demonstrations")
    learned = load_statistics(output / files.STATISTICS, 7, 9)
    with h5py.File(path) as file:
        actions = np.concatenate([file[f"data/demo_{i}/actions"][:] for i in (0, 1)])
        states = np.concatenate([file[f"data/demo_{i}/robot_states"][:] for i in (0, 1)])
    np.testing.assert_allclose(learned.actions.low, actions.min(0), atol=1e-6)
    np.testing.assert_allclose(learned.proprio.high, states.max(0), atol=1e-6)


def test_a_training_from_such_files_makes_a_checkpoint_that_answers(
    tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_demonstrations(tmp_path / "demos" / NAME, (40, 44, 50), every=4)
    write_rollout(tmp_path / "tries" / "try.hdf5")
    config = from_mapping(
        TrainingConfig,
        {
            "start": {"checkpoint": str(start), "scratch": True, "statistics": "demonstrations"},
            "data": {
                "demonstrations": [str(tmp_path / "demos")],
                "rollouts": [str(tmp_path / "tries")],
                "held_out": 0.3,
                "augmentation": "standard",
                "workers": 0,
            },
            "run": {
                "steps": 2,
                "batch": 4,
                "micro_batch": 4,
                "precision": "float32",
                "device": "cpu",
                "validation_windows": 2,
            },
            "objective": {"discount": 0.99},
        },
        "config",
    )
    output = tmp_path / "output"
    output.mkdir()
    with joined("cpu") as world:
        validation = Trainer(config, output, world).run()
    assert validation is not None and validation.windows == 2
    assert validation.still == "repeating the last action"
    card = (output / "README.md").read_text()
    assert "the paper's LIBERO training ended at action 0.012" in card.replace("\n", " ")
    policy = CosmosPolicy.load(output)
    assert policy.checkpoint.config.layout == "libero"
    small = tmp_path / "small"
    assert cosmos.main(["round", str(output), str(small), "--prompts", TASK]) == 0
    assert list(CosmosPolicy.load(small).checkpoint.text.embeddings) == [TASK]
    assert cosmos.main(["round", str(output), str(small), "--prompts", "dance"]) != 0
    assert "has no embedding of 'dance'; it has pick up" in capsys.readouterr().err
