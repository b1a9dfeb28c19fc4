"""The network that a training begins with, and the proof that it is not a random one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import ObservationError, RolloutError, TrainingError
from cosmos_policy_ros.core.files import replace_text, replacing
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.statistics import measure, write_statistics
from cosmos_policy_ros.model.text import TextTable
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import DataConfig, StartConfig, TrainingConfig
from cosmos_policy_ros.training.dataset_index import DatasetIndex, EpisodeEntry, take_census
from cosmos_policy_ros.training.lora import add_adapters
from cosmos_policy_ros.training.loss import JointLoss, LossMeter
from cosmos_policy_ros.training.parallel import DistContext
from cosmos_policy_ros.training.samples import Batch

# Of the loss that a network has which knows nothing, in the kind of frame that the start does best.
# However strange statistics, images or prompts are to trained weights, something of what they
# learned remains: the shipped policy has at most 0.38, on other tasks and on noise for images, by
# either statistics; with its weights shuffled it has 1.03 and more.
MOST_OF_NOTHING = 0.7
CHECKED = 8  # samples per process, at least, unless a step has fewer
# Of the whole loss: above, the data is not like what the weights were trained on.
UNLIKE = 0.8
# Of every low-rank modulation, and of the network.
LAST_LAYERS = re.compile(r"adaln_modulation[a-z_]*\.2$|final_layer\.linear$")
RANDOM_SEED = 1  # not the one that folders without weights are filled from


def start_folder(name: str) -> Path:
    """Return the checkpoint's folder: a path, or a name in ``config/models``."""
    path = Path(name).expanduser()
    shipped = config_folder("models") / name
    return path if path.exists() or not shipped.is_dir() else shipped


def load_start(start: StartConfig, device: torch.device, seed: int) -> Checkpoint:
    """Load the checkpoint that a training begins with; its transformer is float32.

    Raises:
        TrainingError: it has no weights, and ``scratch`` does not say that this is meant.
        CheckpointError: it is no checkpoint.
    """
    folder = start_folder(start.checkpoint)
    checkpoint = load_checkpoint(folder, device, unfinished=start.scratch)
    if checkpoint.random_weights and not start.scratch:
        raise TrainingError(
            f"{folder}: holds no weights, so the training would begin with random ones; give a "
            f"checkpoint that has some, or say start.scratch: true if that is what you want"
        )
    checkpoint.transformer.float().requires_grad_(True).train()
    if start.scratch:
        initialise(checkpoint.transformer, seed)
    return checkpoint


def initialise(network: Transformer, seed: int) -> None:
    """Fill a network with what a training from scratch begins with.

    As Cosmos-Predict2 does: normal numbers that keep their size from layer to layer, and every
    modulation zero, so that each block begins as if it were not there. The last layer is zero too:
    the first answer is an empty one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in network.named_modules():
            if isinstance(layer, torch.nn.Linear):
                std = layer.in_features**-0.5
                weight = torch.zeros(layer.weight.shape)  # on the CPU: the same on every device
                if not LAST_LAYERS.search(name):
                    torch.nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
                layer.weight.data.copy_(weight)


def dataset_index_for(data: DataConfig, model: CheckpointConfig, text: TextTable) -> DatasetIndex:
    """Look at the episodes with the eyes of a checkpoint: its steps, and the prompts it knows."""

    def check_prompt(prompt: str) -> str:
        if prompt in text.embeddings:
            return ""
        return (
            f"its prompt '{prompt}' has no embedding in {text.path}; 'cosmos embed-prompts' adds "
            f"one"
        )

    return take_census(data, model.chunk_steps, model.dt, check_prompt)


def measure_demonstrations(dataset_index: DatasetIndex, folder: Path) -> Path:
    """Write the ranges of all demonstrations, held out ones too; return the file.

    Raises:
        TrainingError: there are none.
    """
    actions, states = [], []
    for source in (*dataset_index.sources, *dataset_index.held_out):
        if source.pool != "demonstration":
            continue
        actions.append(source.windows.steps.actions)
        for step in range(len(source.windows)):
            try:
                states.append(source.windows.state(step))
            except (ObservationError, RolloutError):
                continue  # a gap: its windows are not used either
    if not states:
        raise TrainingError(
            "start.statistics: there are no demonstrations to take the ranges from; set it to "
            "checkpoint"
        )
    file = folder / files.STATISTICS
    write_statistics(file, measure(np.concatenate(actions), np.stack(states)))
    return file


def note_camera_size(dataset_index: DatasetIndex, folder: Path) -> None:
    """Write into a checkpoint's config what cameras it is trained on, if others than it says.

    Images of the same aspect ratio are no others: all are squeezed to a square. Images that have
    the model's own size were squeezed before they were recorded, as evaluations do, and tell of no
    camera.

    Raises:
        TrainingError: the disk refused.
    """
    size = _camera_size((*dataset_index.sources, *dataset_index.held_out))
    file = folder / files.CONFIG
    config = load_config(CheckpointConfig, file)
    rows, columns = config.trained_on
    squeezed = (config.image_size, config.image_size)
    if size is None or size == squeezed or size[0] * columns == size[1] * rows:
        return
    text = re.sub(r"^camera_size:.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    line = f"camera_size: [{size[0]}, {size[1]}]  # px, rows and columns of what it was trained on"
    try:
        replace_text(file, f"{text.rstrip()}\n{line}\n")
    except OSError as error:
        raise TrainingError(f"{file}: cannot be written: {error}") from error


def _camera_size(sources: Sequence[EpisodeEntry]) -> tuple[int, int] | None:
    """Return rows and columns of the first image that can be read."""
    for source in sources:
        step = int(source.starts[0])
        try:
            seen = source.windows.observe(int(source.windows.steps.times_ns[step]))
        except (ObservationError, RolloutError):
            continue
        rows, columns, _ = next(iter(seen.images.values())).shape
        return rows, columns
    return None


def prepare_network(checkpoint: Checkpoint, config: TrainingConfig) -> Transformer:
    """Return the network that learns, with adapters if they are asked for."""
    network = checkpoint.transformer
    if config.lora is not None:
        add_adapters(network, config.lora, config.run.seed)
    return network


def check_start(
    checkpoint: Checkpoint,
    lesson: JointLoss,
    batches: Sequence[Batch],
    world: DistContext,
    *,
    refuse: bool = True,
) -> tuple[float, float]:
    """Compare the first loss with a random network's on the same samples.

    What is asked is whether the weights are there, not whether the data is like that of their
    training: the two losses may be close where statistics or cameras are others. So what decides is
    the kind of frame that the start does best, whether this training counts it or not, held against
    the better of a random network and one that answers zero.

    Args:
        checkpoint: with the network to begin with.
        lesson: makes losses of batches.
        batches: of this process; all processes have as many samples.
        world: the processes.
        refuse: raise where the weights do not seem to be there.

    Returns:
        Both losses.

    Raises:
        TrainingError: the start does nothing much better than a network that knows nothing.
    """
    losses, kinds = [], []
    samples = world.size * sum(len(batch.picks) for batch in batches)
    for network in (checkpoint.transformer, _random(checkpoint, world.device), _answer_zero):
        tally = LossMeter(checkpoint.layout.frames, world.device)
        for batch in batches:
            with torch.no_grad():
                lesson.loss(network, batch, tally, len(batch.picks) / samples)
        losses.append(float(world.total(tally.loss)))
        world.total(tally.losses)
        kinds.append(tally.losses_by_kind())
    started, random, _ = losses
    own, *ignorant = kinds
    nothing = {kind: min(each[kind] for each in ignorant) for kind in own}
    shares = {kind: own[kind] / loss for kind, loss in nothing.items() if loss}
    best = min(shares, key=lambda kind: shares[kind])
    if refuse and not shares[best] < MOST_OF_NOTHING:
        raise TrainingError(
            f"{checkpoint.path}: its first loss is {started:.3f}, a random network's {random:.3f}, "
            f"and what it does best, {best}, has {shares[best]:.2f} of what knowing nothing has; "
            f"below {MOST_OF_NOTHING:g} is expected of trained weights, whatever the data. Is it "
            f"the right checkpoint? start.check: false takes it all the same; start.scratch: true "
            f"trains from scratch"
        )
    return started, random


def _answer_zero(latent: Tensor, *_: Tensor) -> Tensor:
    return torch.zeros_like(latent)


def _random(checkpoint: Checkpoint, device: torch.device) -> Transformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return Transformer(checkpoint.config.transformer).to(device).train()


def copy_fixed_files(checkpoint: Checkpoint, target: Path) -> None:
    """Copy what the training does not change; the autoencoder only if there is one.

    Raises:
        TrainingError: the disk refused.
    """
    for name in (files.CONFIG, files.TEXT, files.VAE):
        source = checkpoint.path / name
        if source.is_file():
            copy_file(source, target / name)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file whole or not at all. Raises TrainingError when the disk refuses."""
    try:
        with replacing(target) as draft:
            shutil.copyfile(source, draft)
    except OSError as error:
        raise TrainingError(f"{target}: cannot be written: {error}") from error
