"""The Cosmos policy: one network as policy, world model and value function.

The three differ in nothing but which latent frames are known and which are generated (Cosmos Policy
paper, joint training; layout.Layout.mask). Each is asked about many candidates at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.model import sequence
from cosmos_policy_ros.model.acceleration import (
    CudaGraphs,
    Run,
    attention,
    channels_last,
    compile_blocks,
    first_line,
    quantise,
    uncompile_blocks,
)
from cosmos_policy_ros.model.checkpoint import Checkpoint, choose_device, load_checkpoint
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.denoiser import Denoiser, InpaintMask, Level
from cosmos_policy_ros.model.draws import SampleSpec, count_evaluations
from cosmos_policy_ros.model.images import ImageArray, from_model, send
from cosmos_policy_ros.model.layout import (
    FUTURE,
    Mode,
    ValueFrames,
    ValueMode,
    extract,
    extract_value,
    inject,
)
from cosmos_policy_ros.model.sampler import initial_noise, plan, sample, schedule
from cosmos_policy_ros.model.sequence import Conditioning
from cosmos_policy_ros.model.transformer import CachedTransformer, TextKV
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, STATE_DIM
from cosmos_policy_ros.rig.decision import ActionPrefix, Candidate, Decision, EngineInfo, Query
from cosmos_policy_ros.rig.observation import Observation

RANDOM_WEIGHTS = "random weights, nothing was learned; "
RANDOM_WARNING = (
    "RANDOM WEIGHTS: the checkpoint folder holds none, so nothing was learned and the arms only "
    "tremble"
)
# Of one evaluation of the network: 15 samples of the 2B network, beyond which a GPU gains nothing
# and the activations (1 GB) grow.
TOKENS_AT_ONCE = 32_768
# Ways of sampling whose constants are kept: by mode, noise levels and frames that are read.
SAMPLINGS_KEPT = 64


class CosmosPolicy:
    """Samples chunks, predicts futures and their values; answers queries in policy mode.

    Latents are (B, 16, T, h, w) float32, one sample per :class:`SampleSpec`; frames not asked for
    are NaN in them. Not re-entrant; one instance serves one thread.
    """

    def __init__(self, checkpoint: Checkpoint, *, graphs: bool = True) -> None:
        """Bind a loaded checkpoint; ``graphs``: record :class:`CudaGraphs` where it is on a GPU."""
        self.checkpoint = checkpoint
        self.device = checkpoint.transformer.device
        self._network = CachedTransformer(checkpoint.transformer)
        self._graphs = CudaGraphs(self.device) if graphs and self.device.type == "cuda" else None
        # Holds the network, not this object: no cycle keeps a dropped one in memory.
        self._sampling = lru_cache(SAMPLINGS_KEPT)(partial(_sampling, checkpoint))
        self._warnings = [RANDOM_WARNING] if checkpoint.random_weights else []

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        threads: int = 1,
        compiled: bool = False,
        fp8_weights: bool = False,
        denoising_steps: int | None = None,
        numerics: Numerics | None = None,
    ) -> CosmosPolicy:
        """Load a checkpoint folder.

        Args:
            path: the folder.
            device: where the networks run; see :func:`choose_device`.
            threads: CPU threads of the whole process. One by default: a second one makes a small
                network slower whenever anything else wants the core.
            compiled: compile the transformer; see :meth:`compile`.
            fp8_weights: keep most of the transformer in 8 bits. 0.6 of the memory, and other
                results: ``cosmos gpu-check`` says by how much.
            denoising_steps: instead of the checkpoint's own.
            numerics: instead of the checkpoint's own.

        Raises:
            CheckpointError: the folder is not a checkpoint; see :func:`load_checkpoint`.
            ConfigError: no such device here, or fewer than one thread or step.
        """
        for name, number in (("CPU threads", threads), ("denoising steps", denoising_steps)):
            if number is not None and number < 1:
                raise ConfigError(f"{number} {name} asked for, at least 1 is needed")
        where = choose_device(device)
        torch.set_num_threads(threads)
        checkpoint = load_checkpoint(path, where)
        config = replace(
            checkpoint.config,
            denoising_steps=denoising_steps or checkpoint.config.denoising_steps,
            numerics=numerics or checkpoint.config.numerics,
        )
        if fp8_weights:
            quantise(checkpoint.transformer)
        if where.type == "cuda":
            channels_last(checkpoint.tokenizer)
        policy = cls(replace(checkpoint, config=config))
        if compiled:
            policy.compile()
        elif where.type == "cuda":
            policy.rehearse()
        return policy

    @property
    def info(self) -> EngineInfo:
        """The checkpoint's digest, and warnings to read before trusting it."""
        warnings = list(self._warnings)
        if self._graphs is not None and self._graphs.failure:
            warnings.append(
                "the sampler could not be recorded as a CUDA graph and runs slower, with the same "
                f"results ({self._graphs.failure})"
            )
        return EngineInfo(self.checkpoint.digest, "; ".join(warnings))

    def rehearse(self) -> None:
        """Do what a query asks for on an empty scene, so that no query waits for preparations."""
        config, prompt = self.checkpoint.config, next(iter(self.checkpoint.text.embeddings))
        channels, height, width = config.frame_shape
        shape = (1, channels, self.checkpoint.layout.count, height, width)
        empty = Conditioning(prompt, {}, torch.zeros(shape, device=self.device))
        begun = ActionPrefix(np.zeros((1, config.action_dims)), np.ones(1), 0.0)
        for committed in (None, begun):
            draw = SampleSpec(0, config.denoising_steps)
            self.sample_actions(empty, [draw], futures=True, committed=committed)

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the transformer and rehearse, so that no query waits for a compiler.

        Takes a minute at the first start, seconds at later ones. Results differ by rounding. Where
        it fails the transformer runs as it is, and ``info`` says why.
        """
        network = self.checkpoint.transformer
        try:
            compile_blocks(network, backend)
            self.rehearse()  # only then it is known whether it can be compiled
        # A compiler has many ways to fail, from a missing program to a bug, and none that matters.
        except Exception as error:
            uncompile_blocks(network)
            if self._graphs is not None:
                self._graphs.forget()  # it has met the same error
            cause = getattr(error, "inner_exception", error)
            self._warnings.append(
                f"the transformer runs uncompiled, slower with the same results, because it could "
                f"not be compiled ({type(cause).__name__}: {first_line(cause)})"
            )

    def decide(self, query: Query) -> Decision:
        """Answer one query. The same query gives the same answer, bit for bit, on one machine."""
        seconds: dict[str, float] = {}

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            """Measure wall time; of what runs on the device, until it is done."""
            start = time.perf_counter()
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds[name] = time.perf_counter() - start

        config = self.checkpoint.config
        with phase("preprocess"):
            images = sequence.prepare_images(query.observation, self.checkpoint)
        with phase("encode"):
            scene = self._encode(query.prompt, images, query.observation)
        with phase("denoise"):
            draw = SampleSpec(query.seed, config.denoising_steps)
            latents, variances = self.sample_actions_and_variance(
                scene, [draw], futures=True, committed=query.committed
            )
        with phase("extract"):
            (positions,) = self.chunks(latents, query.committed)
            (value,) = self.values(latents)
        candidate = Candidate(
            query.seed, (value,), value, own_value=value, variance=float(variances[0])
        )
        note = RANDOM_WEIGHTS if self.checkpoint.random_weights else ""
        return Decision(
            positions=positions,
            dt=config.dt,
            candidates=(candidate,),
            chosen=0,
            reason=f"{note}only candidate, value {value:.3f}",
            engine="cosmos",
            checkpoint_digest=self.checkpoint.digest,
            denoising_steps=count_evaluations(config.denoising_steps, config.numerics),
            evaluations=count_evaluations(config.denoising_steps, config.numerics),
            numerics=config.numerics,
            phases=seconds,
            imagined=latents.cpu().numpy(),
        )

    def encode_observation(self, prompt: str, observation: Observation) -> Conditioning:
        """Encode images and proprioception, once for all the questions about them."""
        images = sequence.prepare_images(observation, self.checkpoint)
        return self._encode(prompt, images, observation)

    def sample_actions(
        self,
        scene: Conditioning,
        draws: Sequence[SampleSpec],
        futures: bool = False,
        committed: ActionPrefix | None = None,
    ) -> Tensor:
        """Ask the policy: action, future and value are denoised together from the current state.

        Args:
            scene: the current state.
            draws: one per proposal.
            futures: whether the predicted future state will be read too. Leaving it out spares a
                part of the last evaluation and changes nothing else.
            committed: what the arms do anyway: those rows of the action, in all its copies, are
                held at every evaluation, and the rest is generated to go with them. Needs no
                training (inpainting, as in diffusion on images).

        Returns:
            Latents with the state, the action and the value, and the future if asked for.
        """
        return self.sample_actions_and_variance(scene, draws, futures, committed)[0]

    def sample_actions_and_variance(
        self,
        scene: Conditioning,
        draws: Sequence[SampleSpec],
        futures: bool = False,
        committed: ActionPrefix | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Ask the policy as :meth:`sample_actions` does; return also how sure it was of each chunk.

        That is the variance of the clean estimate of the action over the denoising steps, the mean
        over the frame's numbers, in units of the latents, (B,); NaN for one evaluation. It costs
        nothing: a policy that knows what to do says so at the first step already.
        """
        read = ("action", "value", *(self.checkpoint.layout.future if futures else ()))
        held = self._inpaint_mask(committed) if committed is not None and committed.binds else None
        return self._generate("policy", scene.prompt, scene.clean, draws, read, held)

    def perturb_actions(
        self,
        latents: Tensor,
        seeds: Sequence[int],
        distance: float,
        committed: ActionPrefix | None = None,
    ) -> Tensor:
        """Lead each chunk smoothly away from where it goes; a seed draws the direction.

        Args:
            latents: (B, 16, T, h, w) with the chunks; nothing but the action frame is changed.
            seeds: B.
            distance: mean absolute difference over rows and joints, in units of the statistics.
            committed: those rows stay, as far as they are held.
        """
        config, frame = self.checkpoint.config, self.checkpoint.layout.index("action")
        rows, dims = config.chunk_steps, config.action_dims
        grippers = GRIPPER_INDICES if dims == STATE_DIM else (dims - 1,)
        along = np.linspace(0.0, 1.0, rows + 1)[1:]
        pace = along**2 * (3.0 - 2.0 * along)  # from rest to rest
        if committed is not None:
            held = committed.first(rows).weights
            pace[: len(held)] *= 1.0 - held
        away = np.stack([np.random.RandomState(seed).standard_normal(dims) for seed in seeds])
        away[:, grippers] = 0.0
        offsets = pace[:, None] * away[:, None, :]
        moved = np.delete(np.abs(offsets), grippers, axis=2).mean(axis=(1, 2), keepdims=True)
        offsets *= distance / np.maximum(moved, np.finfo(np.float64).tiny)
        chunks = extract(latents[:, :, frame], rows * dims)
        chunks = chunks + torch.from_numpy(offsets).float().flatten(1).to(chunks.device)
        changed = latents.clone()
        changed[:, :, frame] = inject(chunks, config.frame_shape)
        return changed

    def predict_future(self, prompt: str, latents: Tensor, draws: Sequence[SampleSpec]) -> Tensor:
        """Ask the world model: what follows from the state and the action in each latent.

        The action is given as it was generated, all its copies, not as their mean: so does the
        released code. The latents may come from another checkpoint's policy; one serves all draws.
        The answer has the state, the action and the future.
        """
        read = self.checkpoint.layout.future
        return self._generate("world_model", prompt, latents, draws, read)[0]

    def predict_value(
        self,
        prompt: str,
        latents: Tensor,
        draws: Sequence[SampleSpec],
        mode: ValueMode = "value_s",
        frames: ValueFrames = "all",
    ) -> tuple[float, ...]:
        """Ask the value function for a value in [0, 1] per draw.

        The latents have the frames that the mode knows (:meth:`Layout.mask`), which must be one
        that the checkpoint was trained in; the released planning model takes V(s'). With frames
        "known" the network sees these and the value alone: for V(s') 6 of 11, without the noise in
        the place of state and action, which it has been trained with.
        """
        given = self.checkpoint.layout.needed(mode) if frames == "known" else None
        answer = self._generate(mode, prompt, latents, draws, ("value",), given=given)
        return self.values(answer[0])

    def chunks(self, latents: Tensor, committed: ActionPrefix | None = None) -> NDArray[np.float64]:
        """Read the action chunks (B, K, d) in policy units. Not clipped: that is the gate's.

        Smoothing, too, leaves committed rows where they are, by the weight they are held with: rows
        that are held exactly come back as given.
        """
        config = self.checkpoint.config
        frames = latents[:, :, self.checkpoint.layout.index("action")]
        flat = extract(frames, config.chunk_steps * config.action_dims).cpu().double().numpy()
        chunks = flat.reshape(-1, config.chunk_steps, config.action_dims)
        smoothed = smooth(self.checkpoint.statistics.actions.unnormalise(chunks), config.smoothing)
        if committed is not None:
            known = committed.first(config.chunk_steps)
            rows, fraction = len(known.weights), known.weights[:, None]
            smoothed[:, :rows] = fraction * known.positions + (1.0 - fraction) * smoothed[:, :rows]
        return smoothed

    def values(self, latents: Tensor) -> tuple[float, ...]:
        """Read the values, in [0, 1]."""
        frames = latents[:, :, self.checkpoint.layout.index("value")]
        return tuple(extract_value(frames).tolist())

    @torch.inference_mode()
    def decode_images(self, scene: Conditioning, latents: Tensor) -> list[dict[str, ImageArray]]:
        """Decode the predicted images of each latent, by camera role; (S, S, 3) uint8 RGB."""
        layout, tokenizer = self.checkpoint.layout, self.checkpoint.tokenizer
        frames = [layout.index(FUTURE + role) for role in layout.cameras]
        if latents[:, :, frames].isnan().any():
            raise ValueError("these latents have no future: sample with futures, or predict it")
        restored = sequence.restore_placeholders(self.checkpoint, scene, latents)
        # One at a time: this is for people's eyes, and takes far more memory than the rest.
        decoded = [tokenizer.decode_first_images(one.unsqueeze(0), frames) for one in restored]
        return [dict(zip(layout.cameras, from_model(video), strict=True)) for video in decoded]

    @torch.inference_mode()
    def _encode(
        self, prompt: str, images: dict[str, Tensor], observation: Observation
    ) -> Conditioning:
        self._read(prompt)  # an unknown prompt is refused before the work begins
        known = 1 + len(self.checkpoint.layout.state)
        clean = sequence.encode_known(self.checkpoint, [images], known, self.device)
        sequence.inject_proprio(self.checkpoint, clean, observation)
        return Conditioning(prompt, images, clean)

    def _read(self, prompt: str) -> TextKV:
        return self._network.read(prompt, self.checkpoint.text.embedding)

    def _inpaint_mask(self, committed: ActionPrefix) -> InpaintMask:
        """Return the action frame with the committed rows in all their copies."""
        config = self.checkpoint.config
        known = committed.first(config.chunk_steps)
        rows = len(known.weights)
        chunk, weights = np.zeros((2, config.chunk_steps, config.action_dims))
        chunk[:rows] = self.checkpoint.statistics.actions.normalise(known.positions)
        weights[:rows] = known.weights[:, None]
        values, mask = (
            inject(torch.from_numpy(each.astype(np.float32)).flatten(), config.frame_shape)
            for each in (chunk, weights)
        )
        frame = self.checkpoint.layout.index("action")
        return InpaintMask(frame, values.to(self.device), mask.to(self.device))

    @torch.inference_mode()
    def _generate(
        self,
        mode: Mode,
        prompt: str,
        latents: Tensor,
        draws: Sequence[SampleSpec],
        read: Sequence[str],
        held: InpaintMask | None = None,
        given: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Generate what ``mode`` does not know, of which the frames called ``read`` are wanted.

        ``given`` are the frames that the network sees, None for all.

        Returns the latents and :func:`_variance` (B,) of the action frame; 0 where it is known.

        As many draws run at once as the network takes, long with long ones.
        """
        if len(latents) not in (1, len(draws)):
            raise ValueError(f"{len(latents)} latents for {len(draws)} draws; one each, or one")
        layout, config = self.checkpoint.layout, self.checkpoint.config
        text, wanted = self._read(prompt), tuple(sorted(map(layout.index, read)))
        rest = [] if held is None else [held.values, held.weights]
        rest += [] if text.bias is None else [text.bias]
        clean = latents.expand(len(draws), -1, -1, -1, -1)
        schedules = [schedule(draw.steps, config.numerics, config.sigma_min) for draw in draws]
        order = sorted(range(len(draws)), key=lambda i: len(schedules[i]))
        at_once = max(TOKENS_AT_ONCE // config.tokens, 1)
        answers: dict[int, tuple[Tensor, ...]] = {}
        for batch in (order[i : i + at_once] for i in range(0, len(order), at_once)):
            run = self._sampling(
                self._network,
                mode,
                tuple(schedules[i] for i in batch),
                wanted,
                held is not None,
                given,
            )
            noise = initial_noise([draws[i].seed for i in batch], tuple(latents.shape[1:]))
            known = torch.stack([clean[i] for i in batch])
            inputs = [known, noise, text.keys, text.values, *rest]
            answers.update(zip(batch, zip(*self._run(run, inputs), strict=True), strict=True))
        generated, variances = (
            torch.stack([answers[i][part] for i in range(len(draws))]) for part in (0, 1)
        )
        # A longer run in the same batch may have made them: nothing may depend on its company.
        unread = [f for f, known in enumerate(layout.mask(mode)) if not known and f not in wanted]
        for frame in unread:
            generated[:, :, frame] = torch.nan
        return generated, variances

    def _run(self, run: Run, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        inputs = [send(each, self.device) for each in inputs]
        with attention(self.device):
            return run(*inputs) if self._graphs is None else self._graphs(run, inputs)


def _sampling(
    checkpoint: Checkpoint,
    network: CachedTransformer,
    mode: Mode,
    schedules: tuple[tuple[float, ...], ...],
    wanted: tuple[int, ...],
    held: bool,
    given: tuple[int, ...] | None,
) -> Run:
    """Return the sampling of one batch as a function of nothing but tensors.

    It returns the latents, and how much each sample's action varied over its steps (B,). It takes
    the clean latents (B, 16, T, h, w), the noise, the text's keys and values, then the numbers and
    the weights of the action frame if it is ``held``, and the text's bias if it has one. Whatever
    else it needs it makes at the first call and keeps where the network is.
    """
    known, action = checkpoint.layout.mask(mode), checkpoint.layout.index("action")
    turns = plan(schedules, checkpoint.transformer.device)
    levels: dict[tuple[float, ...], Level] = {}

    def run(
        clean: Tensor, noise: Tensor, keys: Tensor, values: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        mask = InpaintMask(action, *rest[:2]) if held else None
        bias = next(iter(rest[2:] if held else rest), None)
        denoiser = Denoiser(
            network=network,
            preconditioning=checkpoint.config.preconditioning,
            clean=clean,
            known=known,
            text=TextKV(keys, values, bias),
            held=mask,
            given=given,
            levels=levels,
        )
        estimates: list[list[Tensor]] = [[] for _ in schedules]

        def watch(samples: Sequence[int], estimate: Tensor) -> None:
            for row, index in enumerate(samples):
                estimates[index].append(estimate[row, :, action])

        last = partial(denoiser, wanted=wanted)
        latents = sample(denoiser, noise, turns, last, watch)
        return latents, torch.stack([_variance(each) for each in estimates])

    return run


def _variance(estimates: Sequence[Tensor]) -> Tensor:
    """Return the variance over the steps of a frame's estimates, the mean over its numbers."""
    if len(estimates) < 2:
        return torch.full_like(estimates[0][0, 0, 0], torch.nan)
    return torch.stack([*estimates]).var(dim=0, correction=0).mean()


DEGREE = 2  # of the polynomial: position, velocity and acceleration are kept


def smooth(chunks: Array, window: int) -> Array:
    """Replace each row by the value there of a parabola fitted to the rows around it.

    Every number of a chunk is generated with an error of its own: a hundredth of a joint's range by
    the released network, several times that by one a thousand times smaller, which would ask the
    arms for more speed than they have. Savitzky and Golay (1964); the rows at either end take the
    first and last whole window.

    Args:
        chunks: (..., K, d).
        window: rows, odd; 0 leaves the chunks as they are.
    """
    if not window:
        return chunks
    return np.asarray(_smoothing(chunks.shape[-2], window) @ chunks)


@lru_cache
def _smoothing(rows: int, window: int) -> Array:
    """Return the (K, K) matrix that smoothing is."""
    window = min(window, rows)
    weights = np.zeros((rows, rows))
    for row in range(rows):
        first = min(max(row - window // 2, 0), rows - window)
        at = np.arange(first, first + window) - row
        powers = at[:, None] ** np.arange(DEGREE + 1)
        weights[row, first : first + window] = np.linalg.pinv(powers.astype(np.float64))[0]
    return weights
