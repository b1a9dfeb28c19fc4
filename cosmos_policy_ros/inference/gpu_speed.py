"""How fast a device is, stage by stage, beside the straightforward way; and its memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch._dynamo.utils import counters
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from cosmos_policy_ros.inference.cosmos_engine import footprint
from cosmos_policy_ros.inference.gpu_bench import NEEDS_GPU, Bench, Row, tera_flops
from cosmos_policy_ros.inference.spec import EngineSpec, SearchConfig
from cosmos_policy_ros.model.acceleration import (
    attention_backend,
    attention_order,
    channels_last,
    first_line,
)
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.draws import SampleSpec, ensemble
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.random_checkpoint import SEED, random_query
from cosmos_policy_ros.model.sequence import Conditioning, encode_known, prepare_images
from cosmos_policy_ros.model.straightforward import Straightforward

# Dense bfloat16 peak of tensor cores [TFLOP/s], from NVIDIA's data sheets.
PEAKS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
    "RTX 5090": 209.0,
    "B200": 2250.0,
}
# s on an H100. Paper: 0.95, 0.61 and 0.16 for ten steps, five and one; 4.9 for a search on eight.
AIMS = {10: 0.30, 5: 0.17, 1: 0.06}
PAPER = {10: 0.95, 5: 0.61, 1: 0.16}
AIM_OF_SEARCH, PAPER_OF_SEARCH = 13.0, "paper: 4.9 s on eight cards"
GB = 1e9


class Speed:
    """Times stages of one checkpoint on one device."""

    def __init__(self, bench: Bench, checkpoint: Checkpoint) -> None:
        """Measure the device's best matrix product, which shares are of."""
        self._bench, self._checkpoint = bench, checkpoint
        self._query = random_query()
        self._plain = CosmosPolicy(checkpoint, graphs=False)
        self._way = Straightforward(checkpoint)
        self._laps = 5 if bench.is_gpu else 1
        self.best = best_product(bench, checkpoint.transformer.dtype)

    def rows(self) -> Iterator[Row]:
        """Yield a row per stage."""
        card = torch.cuda.get_device_name(self._bench.device) if self._bench.is_gpu else "CPU"
        peak = next((rate for name, rate in PEAKS.items() if name in card), None)
        remark = f"{self.best / peak:.0%} of the data sheet's {peak:.0f}" if peak else ""
        yield Row("fast", "best matrix product", self.best, "TFLOP/s", remark=remark)
        yield from self._stages()
        yield from self._sampling()
        yield from self._attention()

    @torch.inference_mode()
    def _stages(self) -> Iterator[Row]:
        checkpoint, observation = self._checkpoint, self._query.observation
        images = prepare_images(observation, checkpoint)
        frames = 1 + len(checkpoint.layout.state)
        encode = partial(encode_known, checkpoint, [images], frames, self._bench.device)
        yield self._row("prepare three images", partial(prepare_images, observation, checkpoint))
        yield self._row("encode", encode, partial(self._way.encode, images))
        if self._bench.is_gpu:
            # As it was loaded, and then for good as a policy has it.
            before = self._bench.seconds(encode, self._laps)
            channels_last(checkpoint.tokenizer)
            after = self._bench.seconds(encode, self._laps)
            text = f"{before / after:.2f} times as fast"
            yield Row("fast", "encode, channels last", after, "s", remark=text)
        else:
            yield Row("fast", "encode, channels last", None, remark=NEEDS_GPU)

    def _sampling(self) -> Iterator[Row]:
        bench, checkpoint, query = self._bench, self._checkpoint, self._query
        scene = self._plain.encode_observation(query.prompt, query.observation)
        with torch.inference_mode():
            images, text = self._way.preprocess(query)
            clean = self._way.inject(self._way.encode(images), query)
        for steps in PAPER:
            slow = torch.inference_mode()(partial(self._way.denoise, clean, text, SEED, steps))
            yield self._steps("as it is", self._plain, scene, steps, slow)
        if bench.is_gpu:
            recorded = CosmosPolicy(checkpoint)
            for steps in PAPER:
                yield self._steps("CUDA graph", recorded, scene, steps)
        else:
            yield Row("fast", "10 steps, CUDA graph", None, remark=NEEDS_GPU)
        # Its own transformer: blocks are compiled in place.
        network = copy.deepcopy(checkpoint.transformer)
        compiled = CosmosPolicy(replace(checkpoint, transformer=network))
        torch._dynamo.reset()  # as after a start
        counters.clear()
        start = time.perf_counter()
        compiled.compile()
        spent = time.perf_counter() - start
        hits = counters["aot_autograd"]["autograd_cache_hit"]
        hits += counters["inductor"]["fxgraph_cache_hit"]
        remark = compiled.info.warning or ("found on disk" if hits else "for the first time")
        yield Row("fast", "compile and rehearse", spent, "s", remark=remark)
        for steps in PAPER:
            yield self._steps("compiled", compiled, scene, steps)
        yield from self._answers(compiled, scene)

    def _steps(
        self,
        way: str,
        policy: CosmosPolicy,
        scene: Conditioning,
        steps: int,
        slow: Callable[[], object] | None = None,
    ) -> Row:
        """Time a policy's sampling with some steps, futures included."""
        draw = [SampleSpec(SEED, steps)]
        ask = partial(policy.sample_actions, scene, draw, futures=True)
        counted = partial(self._plain.sample_actions, scene, draw, futures=True)
        count = f"{steps} steps" if steps > 1 else "1 step"
        full = self._bench.size == "full"
        remark = f"paper: {PAPER[steps]} s on an H100" if full else ""
        aim = AIMS[steps] if full else None
        return self._row(f"{count}, {way}", ask, slow, counted, aim, remark)

    def _answers(self, policy: CosmosPolicy, scene: Conditioning) -> Iterator[Row]:
        """Time what follows the sampling, a whole decision and a whole search."""
        plain, config = self._plain, self._checkpoint.config
        latents = policy.sample_actions(scene, [SampleSpec(SEED, 1)], futures=True)
        yield self._row(
            "read chunk and value", lambda: (policy.chunks(latents), policy.values(latents))
        )
        yield self._row("decode the futures", partial(policy.decode_images, scene, latents))
        decide, counted = (partial(p.decide, self._query) for p in (policy, plain))
        yield self._row("a whole decision, compiled", decide, counted=counted)
        search, prompt, numerics = SearchConfig(), scene.prompt, config.numerics
        seeds = [SEED + i for i in range(search.candidates)]
        futures = [
            draw
            for seed in seeds
            for draw in ensemble(seed, search.futures, search.future_steps, numerics)
        ]
        values = [
            draw
            for seed in seeds
            for _ in range(search.futures)
            for draw in ensemble(seed, search.values, search.value_steps, numerics)
        ]
        proposals = [SampleSpec(seed, config.denoising_steps) for seed in seeds]
        given = policy.sample_actions(scene, proposals).repeat_interleave(search.futures, dim=0)
        imagined = policy.predict_future(prompt, given, futures)
        imagined = imagined.repeat_interleave(search.values, dim=0)

        def stages(p: CosmosPolicy) -> dict[str, Callable[[], object]]:
            return {
                f"propose {len(seeds)} candidates": partial(p.sample_actions, scene, proposals),
                f"imagine {len(futures)} futures": partial(
                    p.predict_future, prompt, given, futures
                ),
                f"appraise {len(values)} values": partial(
                    p.predict_value, prompt, imagined, values
                ),
            }

        total = 0.0
        for (name, work), count in zip(stages(policy).items(), stages(plain).values(), strict=True):
            found = self._row(name, work, counted=count)
            total += found.value or 0.0
            yield found
        full = self._bench.size == "full"
        aim, remark = (AIM_OF_SEARCH, PAPER_OF_SEARCH) if full else (None, "")
        yield Row("fast", "best of 8, on one device", total, "s", aim=aim, remark=remark)

    def _attention(self) -> Iterator[Row]:
        """Time every backend of attention on one layer's own shape, and name the one in use."""
        bench, config = self._bench, self._checkpoint.config
        heads, dims = config.transformer.heads, config.transformer.head_dim
        draw = torch.Generator(bench.device).manual_seed(SEED)
        dtype = self._checkpoint.transformer.dtype
        q = torch.randn(
            1, heads, config.tokens, dims, dtype=dtype, device=bench.device, generator=draw
        )
        text, bias = q[:, :, :16], torch.zeros(1, 1, 1, 16, dtype=dtype, device=bench.device)
        names = attention_backend(q, q), attention_backend(q, text, bias)
        remark = f"in use: {names[0]}, to the text {names[1]}"
        for backend in attention_order(bench.device) if bench.is_gpu else ():
            name = f"attention, {backend.name.removesuffix('_ATTENTION').lower()}"
            try:
                with sdpa_kernel(backend):
                    seconds = bench.seconds(partial(scaled_dot_product_attention, q, q, q), 20)
            except RuntimeError as error:
                yield Row("fast", name, None, remark=f"not here: {first_line(error)}")
            else:
                yield Row("fast", name, seconds, "s", remark=remark)
        if not bench.is_gpu:
            seconds = bench.seconds(partial(scaled_dot_product_attention, q, q, q), 3)
            yield Row("fast", "attention", seconds, "s", remark=remark)

    def _row(
        self,
        name: str,
        work: Callable[[], object],
        slow: Callable[[], object] | None = None,
        counted: Callable[[], object] | None = None,
        aim: float | None = None,
        remark: str = "",
    ) -> Row:
        """Time ``work``; ``slow`` is the straightforward way, ``counted`` the same unrecorded."""
        seconds = self._bench.seconds(work, self._laps)
        figures, parts = {"tera_flops": tera_flops(counted or work)}, []
        if slow is not None:
            figures["straightforward_seconds"] = self._bench.seconds(slow, min(self._laps, 2))
            ratio = figures["straightforward_seconds"] / seconds
            parts.append(f"{ratio:.2f} times as fast as diffusers")
        if figures["tera_flops"]:
            rate = figures["tera_flops"] / seconds
            parts.append(f"{rate:.3g} TFLOP/s, {rate / self.best:.0%} of its best product")
        remark = "; ".join(filter(None, [*parts, remark]))
        return Row("fast", name, seconds, "s", aim=aim, remark=remark, figures=figures)


def best_product(bench: Bench, dtype: torch.dtype) -> float:
    """Return the TFLOP/s of a large matrix product in the checkpoint's format."""
    side = 8192 if bench.is_gpu else 512
    draw = torch.Generator(bench.device).manual_seed(SEED)
    one, other = (
        torch.randn(side, side, device=bench.device, generator=draw).to(dtype) for _ in range(2)
    )
    return 2 * side**3 / bench.seconds(lambda: one @ other, 10) / 1e12


def measure_memory(bench: Bench, folder: Path, written: int) -> Iterator[Row]:
    """Load a checkpoint from disk, search with it, and hold what was counted against the card."""
    search = SearchConfig(candidate_batch=8)
    counted = footprint(EngineSpec("cosmos", str(folder), str(bench.device), search=search))
    bench.collect()
    if bench.is_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
        before = torch.cuda.memory_allocated(bench.device)
    bench.wait()
    start = time.perf_counter()
    policy = CosmosPolicy(load_checkpoint(folder, bench.device), graphs=False)
    bench.wait()
    seconds = time.perf_counter() - start
    rate = f"{written / GB:.2f} GB, {written / seconds / GB:.2f} GB/s"
    yield Row("memory", "load from disk", seconds, "s", remark=rate)
    names = {"policy": "weights", "working space": "working space of a search"}
    if not bench.is_gpu:
        for part, name in names.items():
            text = f"{NEEDS_GPU}; counted {counted.needs[part] / GB:.3g} GB"
            yield Row("memory", name, None, "GB", remark=text)
        return
    weights = torch.cuda.memory_allocated(bench.device) - before
    query = random_query()
    scene = policy.encode_observation(query.prompt, query.observation)
    draws = [SampleSpec(SEED + i, 1) for i in range(search.candidate_batch * search.values)]
    policy.predict_value(scene.prompt, scene.clean, draws)
    working = torch.cuda.max_memory_allocated(bench.device) - before - weights
    for (part, name), taken in zip(names.items(), (weights, working), strict=True):
        need = counted.needs[part]
        text = f"counted {need / GB:.2f} GB; the card says {taken / need:.2f} times that"
        figures = {"counted_bytes": float(need), "taken_bytes": float(taken)}
        yield Row("memory", name, taken / GB, "GB", aim=need / GB, remark=text, figures=figures)
