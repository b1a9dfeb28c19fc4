"""The Cosmos policy: one observation in, one chunk of actions and its value out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmos_policy_ros.errors import ConfigError
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.denoiser import Denoiser
from cosmos_policy_ros.model.injection import extract, extract_value
from cosmos_policy_ros.model.sampler import count_evaluations, initial_noise, sample, schedule
from cosmos_policy_ros.model.sequence import encode_known, inject_proprio, prepare_pictures
from cosmos_policy_ros.model.transformer import Memory
from cosmos_policy_ros.model.transformer_cache import CachedTransformer
from cosmos_policy_ros.rig.decision import Candidate, Decision, EngineInfo, Query

ENGINE = "cosmos"
RANDOM_WEIGHTS = "random weights, nothing was learned; "


class CosmosPolicy:
    """Answers queries in policy mode: action, future and value are denoised together.

    Not re-entrant; one instance serves one thread.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self._device = device
        self._network = CachedTransformer(checkpoint.transformer)
        self._known = torch.tensor(checkpoint.layout.mask("policy"), device=device)
        self._sigmas = schedule(checkpoint.config.denoising_steps, checkpoint.config.numerics)

    @classmethod
    def load(cls, path: str | Path, threads: int = 1, device: str = "cpu") -> CosmosPolicy:
        """Load a checkpoint folder.

        Args:
            path: the folder.
            threads: CPU threads of the whole process. One by default: a second one makes a small
                network slower whenever anything else wants the core.
            device: where the networks run, in torch's names.

        Raises:
            CheckpointError: the folder is not a checkpoint; see :func:`load_checkpoint`.
            ConfigError: no such device here, or fewer than one thread.
        """
        if threads < 1:
            raise ConfigError(f"{threads} CPU threads asked for, at least 1 is needed")
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device '{device}' cannot be used ({reason}); try 'cpu'") from error
        torch.set_num_threads(threads)
        return cls(load_checkpoint(path, device), device)

    @property
    def info(self) -> EngineInfo:
        """The checkpoint's digest, and a warning when its weights are random."""
        return EngineInfo(
            self.checkpoint.digest,
            "RANDOM WEIGHTS: the checkpoint folder holds none, so nothing was learned and the "
            "arms only tremble"
            if self.checkpoint.random_weights
            else "",
        )

    def decide(self, query: Query) -> Decision:
        """Answer one query. The same query gives the same answer, bit for bit, on one machine.

        Raises:
            CheckpointError: the checkpoint does not know the prompt.
            ObservationError: a picture or the state is missing or unusable.
        """
        clock = _Phases()
        with torch.inference_mode():
            with clock.phase("preprocess"):
                embedding = self.checkpoint.text.embedding(query.prompt).to(self._device)
                text = self._network.read(query.prompt, embedding)
                pictures = prepare_pictures(query.observation, self.checkpoint)
            with clock.phase("encode"):
                known = int(self._known.sum())
                clean = encode_known(self.checkpoint, pictures, known, self._device)
                inject_proprio(self.checkpoint, clean, query.observation)
            with clock.phase("denoise"):
                latent = self._denoise(clean, text, query.seed)
            with clock.phase("extract"):
                positions, value = self._read(latent)
        note = RANDOM_WEIGHTS if self.checkpoint.random_weights else ""
        config = self.checkpoint.config
        return Decision(
            positions=positions,
            dt=config.dt,
            candidates=(Candidate(seed=query.seed, values=(value,), value=value),),
            chosen=0,
            reason=f"{note}only candidate, value {value:.3f}",
            engine=ENGINE,
            checkpoint_digest=self.checkpoint.digest,
            denoising_steps=count_evaluations(config.denoising_steps, config.numerics),
            phases=clock.seconds,
        )

    def _denoise(self, clean: Tensor, text: Memory, seed: int) -> Tensor:
        """Return the clean latent (1, 16, T, H, W) float32, its action and value frames only."""
        denoiser = Denoiser(
            network=self._network,
            preconditioning=self.checkpoint.config.preconditioning,
            clean=clean,
            known=self._known,
            text=text,
        )
        noise = initial_noise([seed], tuple(clean.shape[1:])).to(self._device)
        layout = self.checkpoint.layout
        read = partial(denoiser, wanted=(layout.index("action"), layout.index("value")))
        return sample(denoiser, noise, self._sigmas, last=read)

    def _read(self, latent: Tensor) -> tuple[NDArray[np.float64], float]:
        """Return the chunk (K, d) in policy units and the value in [0, 1]."""
        config, layout = self.checkpoint.config, self.checkpoint.layout
        frame = latent[0, :, layout.index("action")]
        flat = extract(frame, config.chunk_steps * config.action_dims).cpu().double().numpy()
        chunk = flat.reshape(config.chunk_steps, config.action_dims)
        value = extract_value(latent[0, :, layout.index("value")])
        return self.checkpoint.statistics.actions.unnormalise(chunk), float(value)


@dataclass
class _Phases:
    """Wall seconds per phase, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
