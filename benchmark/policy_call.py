"""One policy call, ours against the straightforward way with the same weights, in one run.

Run: ``python benchmark/policy_call.py [mid|wide]`` from the package's root.

The straightforward way is the released algorithm built from diffusers' classes (see
``model/straightforward.py``). Random weights, float32, 224 px, 41 images, 11x28x28 latent, 2156
tokens, 10 denoising steps, 6 prompt tokens padded to 512. Both ways take turns; a ratio is of two
neighbouring laps, so that other work on the machine slows both. Where what they compute differs no
ratio is printed and the exit status is 1.

``mid``
    8 layers, width 512, autoencoder of base width 32 (the released one has 96).
``wide``
    The released width 2048 in 2 of its 28 layers, and the whole autoencoder. On one core a lap
    takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from _machine import describe_machine  # noqa: E402
from torch import Tensor  # noqa: E402

from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from cosmos_policy_ros.model.denoiser import Denoiser  # noqa: E402
from cosmos_policy_ros.model.draws import SampleSpec  # noqa: E402
from cosmos_policy_ros.model.layout import first_image  # noqa: E402
from cosmos_policy_ros.model.policy import CosmosPolicy  # noqa: E402
from cosmos_policy_ros.model.random_checkpoint import (  # noqa: E402
    SEED,
    random_query,
    write_config,
)
from cosmos_policy_ros.model.sampler import initial_noise  # noqa: E402
from cosmos_policy_ros.model.sequence import Conditioning  # noqa: E402
from cosmos_policy_ros.model.straightforward import Straightforward  # noqa: E402
from cosmos_policy_ros.model.transformer import CachedTransformer  # noqa: E402
from cosmos_policy_ros.rig.decision import Decision, Query  # noqa: E402

T = TypeVar("T")

PRESETS: dict[str, dict[str, Any]] = {
    "mid": {"transformer": {"layers": 8, "heads": 4}, "vae": {"base_width": 32}},
    "wide": {"transformer": {"layers": 2}},
}
EVALUATION, WHOLE = "one evaluation", "whole call"
AIMS = {"encode": 3.5, EVALUATION: 1.15, WHOLE: 2.0}
SIGMAS = (80.0, 12.595, 4.0)  # where single evaluations are compared: both ends and the middle
# Relative to the standard deviation of what is compared. Rounding comes to a few 1e-6. Exceeded by:
# one of the 512 text positions left out, a timestep of 1e-4 in the known frames, rotary exponents
# in full precision. Not exceeded by an epsilon of 1e-5 in the query and key norms instead of 1e-6.
TOLERANCE = 2e-5
CONTENT = 1e-3  # standard deviation; outputs with less would agree with anything


class WatchedPolicy(CosmosPolicy):
    """Keeps what went into the sampler and what came out of it in the last call."""

    clean: Tensor
    latent: Tensor

    @property
    def network(self) -> CachedTransformer:
        """The transformer with what it keeps, warm after the first call."""
        return self._network

    def sample_actions(
        self, scene: Conditioning, draws: Sequence[SampleSpec], *args: Any, **options: Any
    ) -> Tensor:
        """Ask the policy, and keep the scene's latent and the answer's."""
        self.clean = scene.clean
        self.latent = super().sample_actions(scene, draws, *args, **options)
        return self.latent


def enliven(checkpoint: Checkpoint) -> None:
    """Give the random transformer layers that keep the size of their input.

    As torch makes them they shrink it, and the shrunken gates leave each block a small part of what
    it computes: a difference in there would drown in rounding.
    """
    for parameter in checkpoint.transformer.parameters():
        if parameter.ndim > 1:
            parameter.mul_(math.sqrt(3))


@dataclass
class Laps:
    """Wall seconds per phase and lap, of one way."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, phase: str, seconds: float) -> None:
        """Add one lap of a phase."""
        self.seconds.setdefault(phase, []).append(seconds)

    def time(self, phase: str, run: Callable[[], T]) -> T:
        """Run one lap of a phase and hand on what it returns."""
        start = time.perf_counter()
        result = run()
        self.add(phase, time.perf_counter() - start)
        return result


@dataclass(frozen=True)
class Answer:
    """What a call of the straightforward way leaves behind."""

    encoded: Tensor
    clean: Tensor
    latent: Tensor
    chunk: np.ndarray[Any, Any]
    value: float


def ask_ours(policy: WatchedPolicy, query: Query, laps: Laps) -> Decision:
    decision = laps.time(WHOLE, lambda: policy.decide(query))
    for phase, seconds in decision.phases.items():
        laps.add(phase, seconds)
    return decision


def ask_straightforward(way: Straightforward, query: Query, laps: Laps) -> Answer:
    start = time.perf_counter()
    images, text = laps.time("preprocess", lambda: way.preprocess(query))
    encode_start = time.perf_counter()
    encoded = way.encode(images)
    clean = way.inject(encoded, query)
    laps.add("encode", time.perf_counter() - encode_start)
    latent = laps.time("denoise", lambda: way.denoise(clean, text, query.seed))
    chunk, value = laps.time("extract", lambda: way.extract(latent))
    laps.add(WHOLE, time.perf_counter() - start)
    return Answer(encoded, clean, latent, chunk, value)


@dataclass
class Differences:
    """Largest differences found, relative to the standard deviation of what was compared."""

    found: dict[str, float] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)

    def compare(self, name: str, ours: Tensor, theirs: Tensor, scale: float | None = None) -> None:
        """Note the largest difference, over ``scale`` or the standard deviation of ``theirs``."""
        scale = float(theirs.double().std()) if scale is None else scale
        distance = float((ours.double() - theirs.double()).abs().max()) / max(scale, CONTENT)
        if not (torch.isfinite(theirs).all() and scale > CONTENT):
            self.empty.add(name)
        # A comparison that is not a number must not pass for a small one.
        worst = max(self.found.get(name, 0.0), distance if distance == distance else np.inf)
        self.found[name] = worst

    def same(self) -> bool:
        """Return whether both ways computed the same, and something at all."""
        return not self.empty and max(self.found.values()) <= TOLERANCE

    def report(self) -> None:
        """Print every difference."""
        print(f"\nlargest differences in standard deviations, tolerance {TOLERANCE:.0e}:")
        for name, distance in self.found.items():
            remark = ", NOT FINITE OR WITHOUT CONTENT" if name in self.empty else ""
            print(f"- {name}: {distance:.1e}{remark}")
        if not self.same():
            print("THE TWO WAYS COMPUTE DIFFERENT THINGS: no ratio means anything")


def compare_answers(
    policy: WatchedPolicy, decision: Decision, answer: Answer, differences: Differences
) -> None:
    layout = policy.checkpoint.layout

    def compare(what: str, frames: list[int], ours: Tensor, theirs: Tensor) -> None:
        differences.compare(what, ours[:, :, frames], theirs[:, :, frames])

    compare("images", [layout.index(c) for c in layout.cameras], policy.clean, answer.clean)
    compare("proprioception", [layout.index("proprio")], policy.clean, answer.clean)
    for name in ("action", "value"):
        compare(f"sampled {name} frame", [layout.index(name)], policy.latent, answer.latent)
    chunk, expected = torch.from_numpy(decision.positions), torch.from_numpy(answer.chunk)
    differences.compare("chunk", chunk, expected)
    value, expected = torch.tensor(decision.candidates[0].value), torch.tensor(answer.value)
    scale = float(answer.latent[:, :, layout.index("value")].std())
    differences.compare("value", value, expected, scale)


class Contest:
    """Both ways take turns over the same queries."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.policy = WatchedPolicy(checkpoint)
        self.way = Straightforward(checkpoint)
        self.ours, self.theirs, self.differences = Laps(), Laps(), Differences()

    def warm_up(self) -> float:
        """Let ours fill its caches, as a prompt's first query does; return its seconds."""
        start = time.perf_counter()
        self.policy.decide(random_query(0))
        return time.perf_counter() - start

    def lap(self, index: int, decode: bool) -> None:
        """Ask both ways for one query, then let them evaluate their networks in turns."""
        query = random_query(index)
        decision = ask_ours(self.policy, query, self.ours)
        answer = ask_straightforward(self.way, query, self.theirs)
        for phase in ("encode", "denoise", WHOLE):
            ours, theirs = (way.seconds[phase][-1] for way in (self.ours, self.theirs))
            print(f"lap {index}, {phase}: {ours:.3g} s, {theirs:.3g} s", flush=True)
        compare_answers(self.policy, decision, answer, self.differences)
        if decode:
            images = self.theirs.time(
                "decode", lambda: self.way.decode(answer.latent, answer.encoded)
            )
            assert images.shape[2] == first_image(self.policy.checkpoint.layout.count)
        self._evaluate(answer.clean, query)

    def _evaluate(self, clean: Tensor, query: Query) -> None:
        checkpoint = self.policy.checkpoint
        known = checkpoint.layout.mask("policy")
        preconditioning = checkpoint.config.preconditioning
        _, text = self.way.preprocess(query)
        memory = self.policy.network.read(query.prompt, lambda _: text[0])
        ours = Denoiser(self.policy.network, preconditioning, clean, known, memory)
        noise = initial_noise([SEED + 1], tuple(clean.shape[1:])) / SIGMAS[0]
        for sigma in SIGMAS:
            noisy, level = clean + sigma * noise, torch.tensor([sigma])
            estimate = self.ours.time(EVALUATION, partial(ours, noisy, level, (0,)))
            expected = self.theirs.time(
                EVALUATION, partial(self.way.evaluate, noisy, sigma, clean, text)
            )
            generated = list(ours.generated)
            self.differences.compare(
                EVALUATION, estimate[:, :, generated], expected[:, :, generated]
            )


def row(phase: str, ours: list[float], theirs: list[float]) -> str:
    """Return a row of the table; ratios are of neighbouring laps."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=False)]
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    seconds = " | ".join(f"{statistics.median(laps):.3g}" for laps in (ours, theirs))
    aim = f"{AIMS[phase]:g}" if phase in AIMS else ""
    return f"| {phase} | {seconds} | {middle:.2f} ({low:.2f} to {high:.2f}) | {aim} |"


def report(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> None:
    print("\n| phase | ours [s] | straightforward [s] | ratio | aim |\n|---|---|---|---|---|")
    for phase in ("preprocess", "encode", EVALUATION, "denoise", "extract", WHOLE):
        print(row(phase, ours[phase], theirs[phase]))
    if "decode" in theirs:
        print(f"| decode, 41 images | - | {statistics.median(theirs['decode']):.3g} | | |")
        both = [sum(pair) for pair in zip(theirs[WHOLE], theirs["decode"], strict=False)]
        print(row(f"{WHOLE}, straightforward decodes", ours[WHOLE], both))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("preset", nargs="?", choices=PRESETS, default="mid")
    parser.add_argument("--laps", type=int, default=3, help="calls of both ways")
    parser.add_argument("--decodes", type=int, default=1, help="laps in which futures are decoded")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.preset}: {describe_machine()}", flush=True)
    changes = {"precision": "float32", **PRESETS[options.preset]}
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = load_checkpoint(write_config(Path(temporary), changes))
    enliven(checkpoint)
    contest = Contest(checkpoint)
    with torch.inference_mode():
        print(f"first call of ours, nothing kept yet: {contest.warm_up():.3g} s", flush=True)
        for index in range(1, options.laps + 1):
            contest.lap(index, decode=index <= options.decodes)
            if not contest.differences.same():
                break
    contest.differences.report()
    if not contest.differences.same():
        return 1
    report(contest.ours.seconds, contest.theirs.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
