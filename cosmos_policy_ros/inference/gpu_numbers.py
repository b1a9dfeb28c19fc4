"""Whether a device computes what it must: against a CPU, against diffusers, against itself.

Differences of latents are relative to their standard deviation, differences of chunks in radians
of joints that range over half a turn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cosmos_policy_ros.inference.gpu_bench import NEEDS_GPU, SMALL, WIDE, Bench, Row
from cosmos_policy_ros.model.acceleration import quantise
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.denoiser import Denoiser
from cosmos_policy_ros.model.draws import SampleSpec
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.random_checkpoint import SEED, random_query
from cosmos_policy_ros.model.sampler import initial_noise
from cosmos_policy_ros.model.sequence import Conditioning, encode_known, prepare_images
from cosmos_policy_ros.model.straightforward import Straightforward
from cosmos_policy_ros.model.transformer import CachedTransformer
from cosmos_policy_ros.rig.decision import Decision

# Of a standard deviation, in float32. Rounding comes to a few 1e-6 on a CPU; a GPU adds in other
# orders. A text position left out, or a timestep of 1e-4 in known frames, comes to more.
FLOAT32 = 2e-4
FLOAT32_CHUNK = 1e-3  # rad
SIGMA = 12.595  # in the middle of the released schedule
# Other kernels for the same arithmetic may differ as much as the number format itself does.
ROUNDINGS = 2.0


def check_numbers(bench: Bench, checkpoint: Checkpoint) -> Iterator[Row]:
    """Yield a row per comparison; ``checkpoint`` is the one of the bench's size, on its device."""
    with exact_float32():
        yield from _against_the_cpu(bench)
        yield from _against_diffusers(bench)
    yield from _against_itself(bench, checkpoint)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep float32 at 24 bits within the block; GPUs otherwise round convolutions to 11."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _against_the_cpu(bench: Bench) -> Iterator[Row]:
    """Every stage in float32 at a small size."""
    names = ("images", "encoding", "denoising, 10 steps", "chunk", "decoded futures")
    if not bench.is_gpu:
        yield from (Row("right", f"{name}, as on a CPU", None, remark=NEEDS_GPU) for name in names)
        return
    folder, _ = bench.write("float32", SMALL)
    cpu, gpu = (CosmosPolicy(load_checkpoint(folder, device)) for device in ("cpu", bench.device))
    query = random_query()
    mine, theirs = (prepare_images(query.observation, p.checkpoint) for p in (gpu, cpu))
    levels = max(float((mine[r].cpu().int() - theirs[r].int()).abs().max()) for r in theirs)
    yield Row("right", f"{names[0]}, as on a CPU", levels, "levels", 1.0)
    scenes = [p.encode_observation(query.prompt, query.observation) for p in (gpu, cpu)]
    known = slice(0, 1 + len(cpu.checkpoint.layout.state))
    encoded = relative(*(scene.clean[:, :, known] for scene in scenes))
    yield Row("right", f"{names[1]}, as on a CPU", encoded, "sd", FLOAT32)
    # From the CPU's encoding, so that each stage answers for itself.
    same = replace(scenes[1], clean=scenes[1].clean.to(bench.device))
    draw = [SampleSpec(SEED, 10)]
    latents = [
        policy.sample_actions(scene, draw, futures=True)
        for policy, scene in ((gpu, same), (cpu, scenes[1]))
    ]
    yield Row("right", f"{names[2]}, as on a CPU", relative(*latents), "sd", FLOAT32)
    chunks = [p.chunks(each)[0] for p, each in zip((gpu, cpu), latents, strict=True)]
    yield Row("right", f"{names[3]}, as on a CPU", radians(*chunks), "rad", FLOAT32_CHUNK)
    shown = [
        p.decode_images(scene, latents[1].to(p.device))[0]
        for p, scene in zip((gpu, cpu), scenes, strict=True)
    ]
    off = max(float(np.abs(shown[0][r].astype(int) - shown[1][r]).max()) for r in shown[0])
    yield Row("right", f"{names[4]}, as on a CPU", off, "levels", 2.0)


@torch.inference_mode()
def _against_diffusers(bench: Bench) -> Iterator[Row]:
    """One evaluation of the transformer and the autoencoder, in float32, on the device."""
    full = bench.size == "full"
    folder, _ = bench.write("wide", WIDE if full else SMALL)
    size = "full width" if full else "small"
    checkpoint = load_checkpoint(folder, bench.device)
    way, query = Straightforward(checkpoint), random_query()
    images, text = way.preprocess(query)
    encoded = way.encode(images)
    frames = 1 + len(checkpoint.layout.state)
    ours = encode_known(checkpoint, [images], frames, bench.device)[:, :, :frames]
    found = relative(ours, encoded[:, :, :frames])
    yield Row("right", f"encoding, as diffusers ({size})", found, "sd", FLOAT32)
    network = CachedTransformer(checkpoint.transformer)
    clean = way.inject(encoded, query)
    noise = initial_noise([SEED], tuple(clean.shape[1:])).to(bench.device)
    noisy = clean + noise / 80 * SIGMA
    expected = way.evaluate(noisy, SIGMA, clean, text)
    memory = network.read(query.prompt, lambda _: text[0].cpu())
    known = checkpoint.layout.mask("policy")
    denoiser = Denoiser(network, checkpoint.config.preconditioning, clean, known, memory)
    estimate = denoiser(noisy, torch.tensor([SIGMA]), (0,))
    generated = list(denoiser.generated)
    found = relative(estimate[:, :, generated], expected[:, :, generated])
    yield Row("right", f"one evaluation, as diffusers ({size})", found, "sd", FLOAT32)


def _against_itself(bench: Bench, checkpoint: Checkpoint) -> Iterator[Row]:
    """Whole answers in the released number format: what may not change them, and what does."""
    plain, query = CosmosPolicy(checkpoint, graphs=False), random_query()
    expected = plain.decide(query)
    again = answers(plain.decide(query), expected)
    yield Row("right", "same seed, same answer", again, "rad", 0.0, remark="bit for bit")
    half = checkpoint.transformer.dtype == torch.bfloat16
    other = torch.float32 if half else torch.bfloat16
    changed = replace(
        checkpoint,
        transformer=copy.deepcopy(checkpoint.transformer).to(other),
        tokenizer=copy.deepcopy(checkpoint.tokenizer).to(other),
    )
    with exact_float32():
        rounding = answers(CosmosPolicy(changed, graphs=False).decide(query), expected)
    yield Row("right", "bfloat16 against float32", rounding, "rad", remark="for comparison")
    del changed
    limit = ROUNDINGS * rounding if half else FLOAT32_CHUNK
    if bench.is_gpu:
        graphs = CosmosPolicy(checkpoint)
        differs = max(answers(graphs.decide(query), expected) for _ in range(2))
        remark = graphs.info.warning or "bit for bit"
        yield Row("right", "CUDA graph, as it is", differs, "rad", 0.0, remark=remark)
    else:
        yield Row("right", "CUDA graph, as it is", None, remark=NEEDS_GPU)
    scene = plain.encode_observation(query.prompt, query.observation)
    together = relative_chunks(plain, scene)
    yield Row("right", "batch of 8, one by one", together, "rad", limit, remark="rounding")
    # Its own transformer: blocks are compiled in place.
    network = copy.deepcopy(checkpoint.transformer)
    compiled = CosmosPolicy(replace(checkpoint, transformer=network))
    compiled.compile()
    differs = answers(compiled.decide(query), expected)
    remark = compiled.info.warning or "rounding"
    yield Row("right", "compiled, as it is", differs, "rad", limit, remark=remark)
    network = copy.deepcopy(checkpoint.transformer)
    quantise(network)
    small = CosmosPolicy(replace(checkpoint, transformer=network), graphs=False)
    differs = answers(small.decide(query), expected)
    yield Row("right", "8-bit weights", differs, "rad", remark="opt-in: what fp8_weights costs")


def relative_chunks(policy: CosmosPolicy, scene: Conditioning) -> float:
    """Return how far 8 chunks that are sampled together are from those sampled one by one [rad]."""
    draws = [SampleSpec(SEED + i, policy.checkpoint.config.denoising_steps) for i in range(8)]
    together = policy.chunks(policy.sample_actions(scene, draws))
    alone = [policy.chunks(policy.sample_actions(scene, [draw]))[0] for draw in draws]
    return radians(together, np.stack(alone))


def answers(found: Decision, expected: Decision) -> float:
    """Return how far two decisions' chunks are apart [rad]."""
    return radians(found.positions, expected.positions)


def radians(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of two chunks; not a number where one holds any."""
    return float(np.abs(found - expected).max())


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the expected values' standard deviation."""
    mine, theirs = found.double().cpu(), expected.double().cpu()
    return float((mine - theirs).abs().max() / theirs.std().clamp_min(1e-9))
