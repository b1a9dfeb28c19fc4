"""The network that a training begins with: loaded, from scratch, or with low-rank adapters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.batch import Batch
from cosmos_policy_ros.training.config import LoraConfig, StartConfig
from cosmos_policy_ros.training.loss import JointLoss, LossMeter
from cosmos_policy_ros.training.parallel import DistContext

# Fraction of the loss of a network that knows nothing, in the kind of frame that the start does
# best. However strange statistics, images or prompts are to trained weights, something of what they
# learned remains: the shipped policy has at most 0.38, on other tasks and on noise for images, by
# either statistics; with its weights shuffled it has 1.03 and more.
MAX_OF_IGNORANT = 0.7
RANDOM_SEED = 1  # not the one that folders without weights are filled from
# Of every low-rank modulation, and of the network.
LAST_LAYERS = re.compile(r"adaln_modulation[a-z_]*\.2$|final_layer\.linear$")


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
            if isinstance(layer, nn.Linear):
                std = layer.in_features**-0.5
                weight = torch.zeros(layer.weight.shape)  # on the CPU: the same on every device
                if not LAST_LAYERS.search(name):
                    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
                layer.weight.data.copy_(weight)


def check_start(
    checkpoint: Checkpoint,
    joint_loss: JointLoss,
    batches: Sequence[Batch],
    world: DistContext,
    *,
    refuse: bool,
) -> tuple[float, float]:
    """Return the first loss, and a random network's on the same samples.

    The check asks whether the weights are there, not whether the data is like that of their
    training: the two losses may be close where statistics or cameras are others. So what decides is
    the kind of frame that the start does best, whether this training counts it or not, against the
    better of a random network and one that answers zero.

    Raises:
        TrainingError: ``refuse`` is set and the start does nothing much better than those two.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        random_network = Transformer(checkpoint.config.transformer).to(world.device).train()

    def zero(latent: Tensor, *_: Tensor) -> Tensor:
        return torch.zeros_like(latent)

    losses, kinds = [], []
    samples = world.size * sum(len(batch.windows) for batch in batches)
    for network in (checkpoint.transformer, random_network, zero):
        meter = LossMeter(checkpoint.layout.frames, world.device)
        for batch in batches:
            with torch.no_grad():
                joint_loss.loss(network, batch, meter, len(batch.windows) / samples)
        losses.append(float(world.total(meter.loss)))
        world.total(meter.losses)
        kinds.append(meter.losses_by_kind())
    started, random, _ = losses
    own, *ignorant = kinds
    fractions = {}
    for kind, loss in own.items():
        if least := min(each[kind] for each in ignorant):
            fractions[kind] = loss / least
    best = min(fractions, key=lambda kind: fractions[kind])
    if refuse and not fractions[best] < MAX_OF_IGNORANT:
        raise TrainingError(
            f"{checkpoint.path}: its first loss is {started:.3f}, a random network's {random:.3f}, "
            f"and what it does best, {best}, has {fractions[best]:.2f} of what knowing nothing "
            f"has; below {MAX_OF_IGNORANT:g} is expected of trained weights, whatever the data. Is "
            f"it the right checkpoint? start.check: false takes it all the same; start.scratch: "
            f"true trains from scratch"
        )
    return started, random


# ---------------------------------------------------------------- low-rank adapters
#
# A small network's worth of weights learns beside a frozen large one (LoRA; the fields are those
# that the released config has, and leaves off). What is written is a checkpoint like any other.

DOWN, UP = "lora_down", "lora_up"


class LoraLinear(nn.Linear):
    """A linear layer without bias whose weight is frozen, with an adapter beside it."""

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight.requires_grad_(False)
        self.register_parameter("bias", None)
        self.scale = config.alpha / config.rank
        self.lora_down = nn.Parameter(linear.weight.new_empty(config.rank, self.in_features))
        # Zero, so that the network begins as it was.
        self.lora_up = nn.Parameter(linear.weight.new_zeros(self.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        change = functional.linear(functional.linear(x, self.lora_down), self.lora_up)
        return functional.linear(x, self.weight) + self.scale * change


def add_adapters(network: nn.Module, config: LoraConfig, seed: int) -> None:
    """Freeze a network and put an adapter beside each layer that the config names.

    Raises:
        TrainingError: the network has no layer of such a name.
    """
    network.requires_grad_(False)
    found = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same adapters in every process
        for parent in list(network.modules()):
            for name, layer in list(parent.named_children()):
                if name in config.targets and isinstance(layer, nn.Linear):
                    setattr(parent, name, LoraLinear(layer, config))
                    found.add(name)
    if missing := set(config.targets) - found:
        raise TrainingError(
            f"lora.targets: the network has no linear layer called {', '.join(sorted(missing))}; "
            f"take some of q_proj, k_proj, v_proj, output_proj, layer1, layer2"
        )


def merge_adapters(tensors: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Return a network's tensors with the adapters added to the weights."""
    merged = {name: t for name, t in tensors.items() if not name.endswith((DOWN, UP))}
    for name, up in tensors.items():
        if name.endswith(UP):
            layer = name.removesuffix(UP)
            change = up.float() @ tensors[layer + DOWN].float()
            weight = merged[layer + "weight"]
            change = (config.alpha / config.rank * change).to(weight.dtype)
            merged[layer + "weight"] = weight + change
    return merged
