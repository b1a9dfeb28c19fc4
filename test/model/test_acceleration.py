"""Pins that faster ways to run the networks change no more than they say, and wait for nothing.

A GPU is not needed: what CUDA graphs record is traced here, the device is torch's "meta" device,
which computes nothing but shapes and refuses to be read.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cosmos_policy_ros.model import acceleration, images
from cosmos_policy_ros.model.acceleration import (
    CudaGraphs,
    Fp8Linear,
    attention_backend,
    attention_order,
    channels_last,
)
from cosmos_policy_ros.model.checkpoint import load_checkpoint
from cosmos_policy_ros.model.draws import SampleSpec
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sequence import Conditioning, prepare_images
from cosmos_policy_ros.rig.decision import ActionPrefix, Query
from cosmos_policy_ros.rig.observation import Observation

CPU = torch.device("cpu")
DRAWS = [SampleSpec(5, 3), SampleSpec(6, 1), SampleSpec(7, 3)]  # two go on without the third


class TracedGraphs(CudaGraphs):
    """Records like a CUDA graph: operations on given memory. All else is baked in as it was."""

    recordings = 0

    def _record(
        self, run: Callable[..., tuple[Tensor, ...]], inputs: Any
    ) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
        outputs = tuple(torch.empty_like(each) for each in run(*inputs))
        self.recordings += 1
        traced = make_fx(run)(*inputs)

        def play() -> None:
            for output, made in zip(outputs, traced(*inputs), strict=True):
                output.copy_(made)

        return play, outputs


@pytest.fixture(scope="module")
def tiny(shallow: Path) -> CosmosPolicy:
    return CosmosPolicy.load(shallow, device="cpu", denoising_steps=3)


@pytest.fixture
def scenes(tiny: CosmosPolicy) -> list[Conditioning]:
    draw = torch.Generator().manual_seed(1)
    prompts = list(tiny.checkpoint.text.embeddings)[:2]
    return [Conditioning(p, {}, torch.randn(1, 16, 11, 8, 8, generator=draw)) for p in prompts]


@pytest.fixture
def recording(tiny: CosmosPolicy) -> CosmosPolicy:
    policy = CosmosPolicy(tiny.checkpoint)
    policy._graphs = TracedGraphs(CPU)
    return policy


def test_a_recorded_sampler_answers_whatever_it_is_given(
    tiny: CosmosPolicy, recording: CosmosPolicy, scenes: list[Conditioning]
) -> None:
    """Other images, prompts, seeds and prefixes, none of which may have been baked in.

    Nor may an answer be written over by the next one.
    """
    answers = []
    moved = [DRAWS[0]._replace(seed=99), *DRAWS[1:]]
    for scene, draws in zip(
        (*scenes, scenes[0], scenes[0]), (DRAWS, DRAWS, moved, DRAWS), strict=True
    ):
        found = recording.sample_actions(scene, draws)
        expected = tiny.sample_actions(scene, draws)
        answers.append((found, expected))
    for found, expected in answers:
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert isinstance(recording._graphs, TracedGraphs) and recording._graphs.recordings == 1

    for value in (0.2, -0.1):
        held = ActionPrefix(np.full((5, 14), value), np.linspace(1, 0.2, 5), 0.2)
        found = recording.sample_actions(scenes[0], DRAWS[:1], committed=held)
        expected = tiny.sample_actions(scenes[0], DRAWS[:1], committed=held)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert recording._graphs.recordings == 2


def test_stages_are_recorded_apart(
    tiny: CosmosPolicy, recording: CosmosPolicy, scenes: Any
) -> None:
    latents = tiny.sample_actions(scenes[0], DRAWS, futures=True)
    for policy in (recording, recording):
        found = policy.predict_future(scenes[0].prompt, latents, DRAWS)
        assert torch.equal(
            found.nan_to_num(), tiny.predict_future(scenes[0].prompt, latents, DRAWS).nan_to_num()
        )
        values = policy.predict_value(scenes[0].prompt, found, DRAWS)
        assert values == tiny.predict_value(scenes[0].prompt, found, DRAWS)
    assert isinstance(recording._graphs, TracedGraphs) and recording._graphs.recordings == 2


def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "GRAPHS_KEPT", 2)
    graphs = TracedGraphs(CPU)

    def double(x: Tensor) -> tuple[Tensor]:
        return (x * 2,)

    for size in (1, 2, 3, 3, 1):
        (found,) = graphs(double, [torch.ones(size)])
        assert found.tolist() == [2.0] * size
    assert graphs.recordings == 4 and len(graphs._recorded) == 2


def test_a_driver_that_refuses_to_record_costs_speed_only(
    tiny: CosmosPolicy, scenes: list[Conditioning]
) -> None:
    class Refusing(CudaGraphs):
        def _record(self, *_: object) -> Any:
            raise RuntimeError("CUDA error: operation not permitted\nmore lines")

    policy = CosmosPolicy(tiny.checkpoint)
    policy._graphs = Refusing(CPU)
    for _ in range(2):
        found = policy.sample_actions(scenes[0], DRAWS)
        expected = tiny.sample_actions(scenes[0], DRAWS)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    warning = policy.info.warning
    assert "CUDA graph" in warning and "operation not permitted" in warning
    assert "more lines" not in warning


def test_a_compiler_that_fails_leaves_recordings_in_use(
    tiny: CosmosPolicy, shallow: Path, scenes: list[Conditioning]
) -> None:
    policy = CosmosPolicy.load(shallow, device="cpu", denoising_steps=1)
    policy._graphs = TracedGraphs(CPU)

    def broken(*_: object) -> None:
        raise RuntimeError("no C++ compiler")

    policy.compile(backend=broken)
    assert "runs uncompiled" in policy.info.warning and "CUDA graph" not in policy.info.warning
    found = policy.sample_actions(scenes[0], DRAWS[1:2])
    expected = tiny.sample_actions(scenes[0], DRAWS[1:2])
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert policy._graphs.recordings == 1


class Crossings(TorchDispatchMode):
    """Notes every operation that reads a device or copies between one and the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if len({t.device.type for t in tensors}) > 1 or "_local_scalar" in str(func):
            self.found.append(f"{func} {[tuple(t.shape) for t in tensors]}")
        return result


@pytest.fixture
def on_device(tiny_path: Path) -> Iterator[CosmosPolicy]:
    """A policy on a device that computes nothing and cannot be read."""
    checkpoint = load_checkpoint(tiny_path)
    networks: dict[str, nn.Module] = {
        "transformer": checkpoint.transformer.to("meta"),
        "tokenizer": checkpoint.tokenizer.to("meta"),
    }
    yield CosmosPolicy(dataclasses.replace(checkpoint, **networks))  # type: ignore[arg-type]


def test_sampling_crosses_to_the_device_once(on_device: CosmosPolicy) -> None:
    """With its noise. Each further crossing would make the CPU wait for thousands of kernels."""
    prompt = next(iter(on_device.checkpoint.text.embeddings))
    scene = Conditioning(prompt, {}, torch.zeros(1, 16, 11, 8, 8, device="meta"))
    held = ActionPrefix(np.zeros((5, 14)), np.ones(5), 0.2)
    for committed, expected in ((None, 1), (held, 3)):  # a prefix and its weights go along
        counts = []
        for _ in range(2):
            with Crossings() as crossings:
                on_device.sample_actions(scene, DRAWS, committed=committed)
            counts.append(len(crossings.found))
        assert counts[0] > counts[1] == expected, crossings.found


def test_images_cross_to_the_device_once_each(
    on_device: CosmosPolicy, observation: Observation
) -> None:
    """As the cameras took them; resized, cropped and encoded there, with the proprioception."""
    on_device.encode_observation(next(iter(on_device.checkpoint.text.embeddings)), observation)
    with Crossings() as crossings:
        scene = on_device.encode_observation(
            next(iter(on_device.checkpoint.text.embeddings)), observation
        )
    raw = [each for each in crossings.found if "(480, 640, 3)" in each]
    assert len(raw) == 3 and len(crossings.found) == 3 + 1, crossings.found
    assert scene.clean.device.type == "meta" and scene.clean.shape == (1, 16, 11, 8, 8)
    assert all(image.device.type == "meta" for image in scene.images.values())


def test_what_a_device_prepares_is_what_a_cpu_prepares(
    tiny: CosmosPolicy, observation: Observation
) -> None:
    """Its own arithmetic instead of Pillow's."""
    expected = prepare_images(observation, tiny.checkpoint)
    for role, image in observation.images.items():
        pixels = torch.from_numpy(image)
        for side in (images.STORED_SIZE, tiny.checkpoint.config.image_size):
            pixels = images.resize(pixels, side)
        assert torch.equal(images.centre_crop(pixels), expected[role])


def test_channels_last_changes_rounding_only(tiny_path: Path) -> None:
    video = torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokenizer = load_checkpoint(tiny_path).tokenizer
    expected = tokenizer.encode(video)
    channels_last(tokenizer)
    strides = [p.stride() for p in tokenizer.parameters() if p.ndim == 5 and p.shape[1] > 1]
    assert strides and all(stride[1] == 1 for stride in strides)
    torch.testing.assert_close(tokenizer.encode(video), expected, rtol=0, atol=2e-5)


def test_eight_bit_weights(tiny: CosmosPolicy, shallow: Path, query: Query) -> None:
    policy = CosmosPolicy.load(shallow, device="cpu", denoising_steps=3, fp8_weights=True)
    network = policy.checkpoint.transformer
    layers = [m for m in network.modules() if isinstance(m, Fp8Linear)]
    assert len(layers) == len(network.blocks) * 10
    found, expected = policy.decide(query).positions, tiny.decide(query).positions
    span = np.ptp(expected, axis=0).max()
    difference = np.abs(found - expected).max()
    assert 0 < difference < 0.2 * span


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_a_weight_keeps_four_significant_bits(scale: float) -> None:
    linear = nn.Linear(64, 8, bias=False)
    linear.weight.data = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * scale
    linear.weight.data[3] = 0  # a row of zeros must not divide by zero
    layer = Fp8Linear(linear)
    restored = layer.weight.float() * layer.scale
    error = (restored - linear.weight).abs()
    largest = linear.weight.abs().amax(dim=1, keepdim=True)
    # Three bits behind the leading one; the smallest lose more of themselves, and little in all.
    assert (error <= linear.weight.abs() / 16 + largest * 2**-17).all()
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ restored.T)


@pytest.mark.parametrize(("capability", "first"), [((9, 0), "CUDNN"), ((8, 9), "FLASH")])
def test_attention_backends_have_a_fixed_order(
    capability: tuple[int, int], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    order = attention_order.__wrapped__(CPU)  # a CPU's kernels stand in; none of them breaks
    assert order[0].name.startswith(first)
    assert order[-1] is SDPBackend.MATH and len(set(order)) == 4


@pytest.mark.parametrize(
    ("message", "kept"), [("No available kernel. Aborting", True), ("mha_graph failed", False)]
)
def test_an_attention_backend_that_breaks_is_left_out(
    message: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = nn.functional.scaled_dot_product_attention

    def breaking(*args: Any, attn_mask: Tensor | None = None) -> Tensor:
        if attn_mask is not None and torch.backends.cuda.cudnn_sdp_enabled():
            raise RuntimeError(message)
        return whole(*args, attn_mask=attn_mask)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", breaking)
    order = attention_order.__wrapped__(CPU)
    assert (SDPBackend.CUDNN_ATTENTION in order) == kept
    assert SDPBackend.FLASH_ATTENTION in order


def test_the_attention_backend_has_a_name() -> None:
    queries = torch.randn(1, 2, 8, 64)
    assert attention_backend(queries, queries) in ("flash", "math")


# Two starts of a process that has imported everything and done nothing else: importing is half of
# what a start takes.
COMPILE = """
import os
import torch
import torch._inductor.compile_fx
from torch._dynamo.utils import counters
from cosmos_policy_ros.model.acceleration import keep_compiled
for _ in range(2):
    if not os.fork():
        keep_compiled()
        torch.compile(lambda x: x @ x)(torch.ones(3, 3))  # nothing for a C++ compiler to do
        found = counters["aot_autograd"] | counters["inductor"]
        hits = found.get("autograd_cache_hit", 0) + found.get("fxgraph_cache_hit", 0)
        print(os.environ["TORCHINDUCTOR_CACHE_DIR"], hits, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_what_was_compiled_is_found_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "cosmos_policy_ros" / "compiled"
    (first, no_hits), (second, hits) = map(str.split, done.stdout.splitlines())
    assert first == second == str(folder) and list(folder.iterdir())
    assert int(no_hits) == 0 and int(hits) > 0


def test_a_place_that_was_chosen_for_compiled_code_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    acceleration.keep_compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")
    assert not (tmp_path / "cache").exists()
