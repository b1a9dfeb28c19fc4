"""``config/training/*.yaml``: everything that decides what a training run does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cosmos_policy_ros.model.config import Numerics, Precision
from cosmos_policy_ros.model.layout import FUTURE, ValueMode

Role = Literal["policy", "world_model", "value"]


@dataclass(frozen=True)
class NoiseConfig:
    """How noise levels are drawn: log-normal, and now and then uniform over the high ones.

    Attributes:
        log_mean, log_std: mean and standard deviation of ln sigma.
        uniform_fraction: fraction of the samples that draw from the uniform part.
        uniform_low, uniform_high: its bounds.
        lowest: the lowest level, before what ``numerics`` makes of it. 0 is as in the paper; levels
            that no query ever visits are a waste of a small network's training.
    """

    log_mean: float = math.log(4.0)
    log_std: float = 1.2
    uniform_fraction: float = 0.3
    uniform_low: float = 1.0
    uniform_high: float = 85.0
    lowest: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.uniform_low:
            raise ValueError(
                f"lowest: {self.lowest} must be from 0 to uniform_low, {self.uniform_low}"
            )
        if not 0 <= self.uniform_fraction <= 1:
            raise ValueError(f"uniform_fraction: {self.uniform_fraction} lies outside 0 ... 1")
        if not 0 < self.uniform_low < self.uniform_high:
            raise ValueError(
                f"uniform_low: {self.uniform_low} must be above 0 and below uniform_high, "
                f"{self.uniform_high}"
            )
        if not self.log_std > 0:
            raise ValueError(f"log_std: {self.log_std} must be above 0")


Strength = Literal["none", "standard", "strong"]


@dataclass(frozen=True)
class StartConfig:
    """What the training begins with.

    Attributes:
        checkpoint: a checkpoint folder, or a name in ``config/models``.
        scratch: begin with random weights, on purpose; otherwise the checkpoint's are loaded.
        check: refuse weights that do nothing better than a network that knows nothing.
        statistics: "demonstrations" computes the ranges anew, for a policy on data of its own;
            "checkpoint" keeps those that the weights were trained with.
    """

    checkpoint: str
    scratch: bool = False
    check: bool = True
    statistics: Literal["checkpoint", "demonstrations"] = "checkpoint"


@dataclass(frozen=True)
class DataConfig:
    """The episodes.

    Attributes:
        demonstrations: folders of episodes, bags or HDF5 files of the released LIBERO layouts; each
            teaches as a success.
        rollouts: folders of scored episodes, good and bad, likewise.
        held_out: fraction of the demonstrations that is kept for the validation.
        use_no_go: learn from episodes that are NO-GO too, by the recorder's verdict or by the
            checks of ``config/checks.yaml``, as far as there is anything to learn from.
        hg_dagger: learn from what a person did in the episode of a run, after a takeover, as from a
            demonstration, whatever became of the episode. HG-DAgger (Kelly et al. 2019,
            arXiv:1810.02890) adds what the expert did while intervening to the demonstrations, and
            nothing of what the policy did.
        recap_seconds: seconds before a takeover that count as having led to it: their return is
            that of a failure, whatever the person made of the episode. RECAP (pi*0.6,
            arXiv:2511.14759) tells a policy by an advantage label which actions were bad; this
            model has a value instead of one. 0 leaves them the episode's return.
        augmentation: "strong" as all released checkpoints had, "standard" without rotation and with
            less colour, "none".
        prompt_augmentation: by an episode's prompt, other prompts that it is an example of as well:
            more general ones, or other words for the same. Each window of a demonstration or a
            success is learned with its own or one of these, drawn evenly; a failure keeps its own,
            since it need not have failed at the others.
        workers: loading processes per training process; 0 loads in the process itself.
        prepared_gb: images as the network takes them, kept on disk for all runs over the same
            episodes; 0.7 GB per minute of three cameras. They are made before the first run; the
            least recently used go when there are more. 0 reads the bags each time.
        cache_gb: prepared images kept in memory, per training process.
        latent_cache_gb: encoded windows kept in memory, per training process; only for images
            that are not augmented. Worth it for small data sets.
    """

    demonstrations: tuple[str, ...]
    rollouts: tuple[str, ...] = ()
    held_out: float = 0.01
    use_no_go: bool = False
    hg_dagger: bool = False
    recap_seconds: float = 0.0
    augmentation: Strength = "strong"
    prompt_augmentation: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    workers: int = 4
    prepared_gb: float = 0.0
    cache_gb: float = 0.0
    latent_cache_gb: float = 0.0

    def __post_init__(self) -> None:
        if not self.demonstrations and not self.rollouts:
            raise ValueError("demonstrations: no folder of episodes is given")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out: {self.held_out} must be at least 0 and below 1")
        for name in ("workers", "prepared_gb", "cache_gb", "latent_cache_gb", "recap_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} must be a number from 0 on")
        if self.latent_cache_gb and self.augmentation != "none":
            raise ValueError(
                f"latent_cache_gb: images with '{self.augmentation}' augmentation never come "
                f"twice; set augmentation: none, or latent_cache_gb: 0"
            )


@dataclass(frozen=True)
class MixtureConfig:
    """What a batch consists of.

    Attributes:
        policy, world_model, value: shares of the roles; they need not add up to 1.
        success_fraction: fraction of the rollouts that come from episodes that succeeded; the
            smaller of the two pools is gone through more often.
        demonstrations_as_rollouts: let demonstrations teach world model and value too, as rollouts
            that succeeded.
        draw: "exact" keeps the shares in every batch, "expected" only on the average, as released.
    """

    policy: float = 0.5
    world_model: float = 0.25
    value: float = 0.25
    success_fraction: float = 0.5
    demonstrations_as_rollouts: bool = True
    draw: Literal["exact", "expected"] = "exact"

    def __post_init__(self) -> None:
        shares = (self.policy, self.world_model, self.value)
        if min(shares) < 0 or sum(shares) <= 0:
            raise ValueError(f"policy, world_model, value: {shares} must be shares of a batch")
        if not 0 <= self.success_fraction <= 1:
            raise ValueError(f"success_fraction: {self.success_fraction} lies outside 0 ... 1")


@dataclass(frozen=True)
class FrameWeights:
    """How much each kind of frame counts in the loss; all alike in the paper."""

    action: float = 1.0
    proprio: float = 1.0
    images: float = 1.0
    value: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.action, self.proprio, self.images, self.value)
        if min(weights) < 0 or not max(weights) > 0:
            raise ValueError(f"action, proprio, images, value: {weights} must not be negative")

    def of(self, frame: str) -> float:
        """Return the weight of a frame of the layout."""
        name = frame.removeprefix(FUTURE)
        weights = {"action": self.action, "proprio": self.proprio, "value": self.value}
        return weights.get(name, self.images)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned.

    Attributes:
        numerics: "released" repeats what NVIDIA's code does, "paper" what the paper says: noise
            levels and returns differ.
        value: what the value is conditioned on: V(s, a, s') for a base, V(s') for a planning model.
        discount: per control step.
        auxiliary: let every role learn all it generates, as released; False leaves each its own
            target, the paper's ablation.
        loss_scale: NVIDIA's; it moves nothing but the gradient's clipping.
        noise: how noise levels are drawn.
        weights: how much each kind of frame counts.
    """

    numerics: Numerics = "released"
    value: ValueMode = "value_sas"
    discount: float = 0.998
    auxiliary: bool = True
    loss_scale: float = 10.0
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    weights: FrameWeights = field(default_factory=FrameWeights)

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount: {self.discount} lies outside 0 ... 1, without 0")


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW on all parameters, and its learning rate's shape.

    The factor rises from ``start_factor`` to 1 during the warm-up, falls to ``decayed_factor``
    until ``decay_steps``, and is ``final_factor`` from the next step on: a sharp drop that is meant
    to speed up convergence.

    Small networks on a CPU get further in the same time with two things that the paper's do not
    have, both off by default.

    Attributes:
        matrix_rate: learning rate of Muon for the blocks' matrices, which AdamW then leaves alone;
            0 is AdamW for all.
        matrix_weight_decay: Muon's.
        average: decay per step of a moving average of the weights, which is then validated and
            deployed; 0 takes the weights themselves.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    warmup_steps: int = 2000
    decay_steps: int = 20_000
    start_factor: float = 1e-6
    decayed_factor: float = 0.3
    final_factor: float = 0.06
    matrix_rate: float = 0.0
    matrix_weight_decay: float = 0.0
    average: float = 0.0

    def __post_init__(self) -> None:
        if min(self.matrix_rate, self.matrix_weight_decay) < 0:
            raise ValueError("matrix_rate and matrix_weight_decay must not be negative")
        if not 0 <= self.average < 1:
            raise ValueError(f"average: {self.average} must be at least 0 and below 1")
        for name in ("learning_rate", "epsilon", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")
        if not 0 <= self.warmup_steps <= self.decay_steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} must be 0 to decay_steps, {self.decay_steps}"
            )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters instead of all weights, for one small GPU; merged when exported.

    Attributes:
        rank: of each adapter.
        alpha: the adapters' output counts alpha / rank times.
        targets: layers by the last part of their name.
    """

    rank: int = 32
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "output_proj", "layer1", "layer2")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: {self.rank} must be at least 1")


@dataclass(frozen=True)
class RunConfig:
    """How the work is done; none of it but ``batch``, ``seed`` and ``precision`` changes a result.

    Attributes:
        steps: optimiser steps in all.
        batch: samples per step, over all processes.
        micro_batch: samples at once per process; gradients add up over the rest.
        seed: of everything random.
        precision: of the arithmetic; weights and optimiser are float32 throughout.
        activation_checkpointing: compute each block's activations a second time instead of keeping
            them.
        device: "auto" or in torch's words.
        threads: CPU threads per process.
        shard_size: processes that share one copy of weights and optimiser, usually a node's; a
            multiple of it keeps several copies.
        save_every: steps between two checkpoints.
        keep: newest checkpoints that are kept to resume from.
        validation_windows: windows of held-out episodes for the validation of each checkpoint.
    """

    steps: int
    batch: int
    micro_batch: int
    seed: int = 0
    precision: Precision = "bfloat16"
    activation_checkpointing: bool = True
    device: str = "auto"
    threads: int = 1
    shard_size: int = 8
    save_every: int = 1000
    keep: int = 2
    validation_windows: int = 16

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "micro_batch", "threads", "shard_size", "save_every", "keep")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.validation_windows < 0 or self.seed < 0:
            raise ValueError("validation_windows and seed must not be negative")


@dataclass(frozen=True)
class TrainingConfig:
    """One file of ``config/training``."""

    start: StartConfig
    data: DataConfig
    run: RunConfig
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    lora: LoraConfig | None = None
