"""Pins that a measured step is the trainer's, that its parts are all of it, and what is counted."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock
from torch import nn

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.layout import LAYOUTS
from cosmos_policy_ros.training import step_speed
from cosmos_policy_ros.training.config import LoraConfig, RunConfig
from cosmos_policy_ros.training.flops import encoding_flops, gradient_flops
from cosmos_policy_ros.training.parallel import joined
from cosmos_policy_ros.training.step_speed import (
    StepSpeed,
    StepTrial,
    main,
    make_batch,
    measure_processes,
    measure_step,
)
from cosmos_policy_ros.training.targets import TargetMaker

from .conftest import make_start


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    make_start(folder)
    return folder


@pytest.fixture
def checkpoint(small: Path) -> Checkpoint:
    return load_checkpoint(small)


def sizes(name: str) -> CheckpointConfig:
    return load_config(CheckpointConfig, config_folder("models") / name / files.CONFIG)


# ---------------------------------------------------------------- what is measured


def test_the_parts_are_all_of_the_step_in_the_middle(checkpoint: Checkpoint) -> None:
    speed = measure_step(checkpoint, "cpu", batch=3, steps=3, micro_batch=2, precision="float32")
    parts = (speed.encoding, speed.gradients, speed.optimiser)
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(speed.seconds)
    assert speed.seconds == sorted(speed.all_seconds)[1]
    assert speed.encoding_share == speed.encoding / speed.seconds
    assert speed.trained == sum(p.numel() for p in checkpoint.transformer.parameters())
    assert (speed.device, speed.processes, speed.batch) == ("cpu", 1, 3)
    assert speed.peak_memory is None
    model = checkpoint.config
    assert speed.flops == 3 * (encoding_flops(model) + gradient_flops(model))
    assert speed.tflops == pytest.approx(speed.flops / speed.seconds / 1e12)
    assert StepSpeed.from_json(speed.to_json()) == speed


def test_adapters_are_all_that_moves(checkpoint: Checkpoint) -> None:
    network = checkpoint.transformer
    before = {name: p.clone() for name, p in network.named_parameters()}
    run = RunConfig(steps=1, batch=1, micro_batch=1, precision="float32")
    with joined("cpu") as world:
        trial = StepTrial(checkpoint, world, run, LoraConfig(rank=2))
        trial.step(0)
    moved = set()
    for name, parameter in network.named_parameters():
        # An adapter begins with zeros behind it, so that only these move in the first step.
        if not torch.equal(parameter, before.get(name, torch.zeros_like(parameter))):
            moved.add(name)
    assert moved == set(trial.optimisers.parameters)
    assert all("lora_" in name for name in moved)
    # Queries and outputs twice, keys and values of the text: width 64, hidden 256, text 64.
    layers = (64 + 64,) * 6 + (64 + 64,) * 2 + (64 + 256,) * 2
    assert sum(p.numel() for p in trial.optimisers.parameters.values()) == 2 * 2 * sum(layers)


def test_two_processes_share_a_step_and_print_one_line(small: Path, checkpoint: Checkpoint) -> None:
    speed = measure_processes(2, small, batch=2, steps=1, device="cpu", precision="float32")
    assert (speed.processes, speed.batch, len(speed.all_seconds)) == (2, 2, 1)
    # Each holds half of the parameters, and names them all.
    assert speed.trained == sum(p.numel() for p in checkpoint.transformer.parameters())


def test_what_cannot_be_measured_is_refused_in_words(
    checkpoint: Checkpoint,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(TrainingError, match="batch 0, steps 1"):
        measure_step(checkpoint, "cpu", batch=0, steps=1)
    assert main([str(tmp_path)]) == 1
    printed, told = capsys.readouterr()
    assert not printed
    assert told.startswith(f"error: checkpoint '{tmp_path}' lacks config.yaml")
    monkeypatch.setattr(step_speed, "PROGRAM", "cosmos_policy_ros.nothing")
    with pytest.raises(TrainingError, match=r"2 processes ended with 1: .* No module named"):
        measure_processes(2, small, batch=2, device="cpu")


def test_too_little_memory_is_told(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand so on")

    monkeypatch.setattr(StepTrial, "step", fail)
    with pytest.raises(TrainingError, match=r"2 samples at once that trains all weights .* 9 GiB"):
        measure_step(checkpoint, "cpu", batch=2, steps=1)


# ---------------------------------------------------------------- what is counted


def by_hand(model: CheckpointConfig, recomputed: bool) -> float:
    """Return twice the products of a sample's way forward and back, by the network's sizes."""
    t = model.transformer
    width, frames, tokens, text = (
        t.heads * t.head_dim,
        LAYOUTS[model.layout].count,
        model.tokens,
        model.text_tokens,
    )
    hidden, patch = int(width * t.mlp_ratio), 16 * prod(t.patch)
    linear = tokens * width * (6 * width + 2 * hidden)  # two attentions' four, less the text's two
    said = text * 2 * t.text_width * width
    modulation = frames * 3 * (width * t.adaln_rank + t.adaln_rank * 3 * width)
    attention = 2 * tokens * (tokens + text) * width
    ends = tokens * patch * width * 2
    ends += frames * (width * width + width * 3 * width)  # the time's two layers
    ends += frames * (width * t.adaln_rank + t.adaln_rank * 2 * width)
    block = linear + said + modulation + attention
    # Two products back for each forward; none to what takes no gradient: text, time and patches.
    back = 2 * (t.layers * block + ends) - t.layers * said
    back -= tokens * patch * width + frames * width * (width + t.layers * 3 * t.adaln_rank)
    forward = t.layers * block * (2 if recomputed else 1) + ends
    return 2.0 * (forward + back)


@pytest.mark.parametrize("name", ["tiny_random", "aloha_2b"])
@pytest.mark.parametrize("recomputed", [True, False])
def test_products_are_as_many_as_by_hand(name: str, recomputed: bool) -> None:
    model = sizes(name)
    counted = gradient_flops(model, recompute=recomputed)
    assert counted == pytest.approx(by_hand(model, recomputed), rel=0.01)


def test_adapters_spare_the_weights_gradients() -> None:
    model = sizes("aloha_2b")
    assert 0.5 < gradient_flops(model, LoraConfig()) / gradient_flops(model) < 0.9


def test_the_encoders_products_are_those_of_the_layers_that_ran(checkpoint: Checkpoint) -> None:
    targets, batch = TargetMaker(checkpoint, torch.device("cpu")), make_batch(checkpoint, 1)
    targets(batch)  # what is black is encoded once
    sums = []

    def convolution(layer: Any, _: Any, out: torch.Tensor) -> None:
        sums.append(2 * out.numel() * layer.in_channels * prod(layer.kernel_size))

    def attention(_: Any, __: Any, out: torch.Tensor) -> None:
        batch, channels, images, *size = out.shape
        sums.append(4 * batch * images * prod(size) ** 2 * channels)

    for module in checkpoint.tokenizer.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(convolution)
        if isinstance(module, WanAttentionBlock):
            module.register_forward_hook(attention)
    targets(batch)
    assert encoding_flops(checkpoint.config) == pytest.approx(sum(sums), rel=0.01)
