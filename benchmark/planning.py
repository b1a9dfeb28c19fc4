"""Best-of-8 planning: batched against one by one, two workers against one, and at full size.

Run: ``python benchmark/planning.py [CHECKPOINT]`` from the package root; CHECKPOINT is a folder, by
default the shipped tiny one, whose size is the scale at which a CPU can search.

1.  One process, one thread. The literal procedure of the released code runs the network on one
    sample at a time; ours runs the futures of one candidate, and the values of one future, in one
    batch (batch 1), or those of all candidates (batch 8). The ways take turns; a ratio is of
    neighbouring laps. Where their values differ by more than rounding no ratio is printed and the
    exit status is 1.
2.  The same search by one worker process and by two: the decisions must be equal to the last bit.
3.  What a search at full size costs, counted on the meta device, and how long eight H100 would take
    at some shares of their peak, beside the paper's 4.9 s. Nothing of that was measured here.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from _machine import describe_machine  # noqa: E402
from helpers.search import TINY, query_of  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from cosmos_policy_ros.core.config import load_config  # noqa: E402
from cosmos_policy_ros.core.paths import config_folder  # noqa: E402
from cosmos_policy_ros.inference.cosmos_engine import SearchEngine  # noqa: E402
from cosmos_policy_ros.inference.spec import (  # noqa: E402
    Decide,
    EngineSpec,
    SearchConfig,
    SearchInfo,
)
from cosmos_policy_ros.inference.worker import WorkerLimits  # noqa: E402
from cosmos_policy_ros.model.config import read_config  # noqa: E402
from cosmos_policy_ros.model.draws import SampleSpec, ensemble  # noqa: E402
from cosmos_policy_ros.model.layout import LAYOUTS, Mode  # noqa: E402
from cosmos_policy_ros.model.policy import CosmosPolicy  # noqa: E402
from cosmos_policy_ros.model.transformer import Transformer  # noqa: E402
from cosmos_policy_ros.planning.deadline import price  # noqa: E402
from cosmos_policy_ros.planning.scheduler import Inference, start_inference  # noqa: E402
from cosmos_policy_ros.planning.search import run_search  # noqa: E402
from cosmos_policy_ros.rig.decision import Decision, Query  # noqa: E402

LAPS = 3
ROUNDING = 2e-4  # of a value in [0, 1]: other batches take other kernels
PEAK = 989e12  # dense bfloat16 FLOP per second of an H100 SXM, by its data sheet
PAPER = 4.9  # s, best of 8 on eight H100


def one_by_one(policy: CosmosPolicy, query: Query, config: SearchConfig) -> list[list[float]]:
    """Value every candidate as the released code does, a sample at a time."""
    settings = policy.checkpoint.config
    scene = policy.encode_observation(query.prompt, query.observation)
    found = []
    for index in range(config.candidates):
        seed, values = query.seed + index, []
        action = policy.sample_actions(scene, [SampleSpec(seed, settings.denoising_steps)])
        for draw in ensemble(seed, config.futures, config.future_steps, settings.numerics):
            future = policy.predict_future(query.prompt, action, [draw])
            for member in ensemble(seed, config.values, config.value_steps, settings.numerics):
                values += policy.predict_value(query.prompt, future, [member], config.value)
        found.append(values)
    return found


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def compare_batches(folder: Path) -> bool:
    """Print ratios of one process; return whether all ways gave the same values."""
    policy, query, config = CosmosPolicy.load(folder), query_of(), SearchConfig()
    engines = {
        batch: SearchEngine(policy, policy, SearchConfig(candidate_batch=batch)) for batch in (1, 8)
    }
    spent = price(config, engines[1].info).values()
    count = sum(each.evaluations for each in spent) // config.candidates
    print(f"\none process, {config.candidates} candidates, {count} evaluations each:")
    seconds: dict[str, list[float]] = {"one by one": [], "batch 1": [], "batch 8": []}
    worst = 0.0
    for lap in range(LAPS + 1):
        laps = [timed(lambda: one_by_one(policy, query, config))]
        for batch, engine in engines.items():
            searched = timed(
                lambda e=engine, n=batch: run_search(e, query, replace(config, candidate_batch=n))
            )
            laps.append((searched[0], [c.values for c in searched[1].candidates]))
        for _, values in laps[1:]:
            worst = max(worst, float(np.abs(np.array(values) - np.array(laps[0][1])).max()))
        if lap:  # the first one warms up
            for name, (took, _) in zip(seconds, laps, strict=True):
                seconds[name].append(took)
    print(f"largest difference of a value: {worst:.1e} (rounding is up to {ROUNDING:.0e})")
    if worst > ROUNDING:
        print("THE WAYS COMPUTE DIFFERENT THINGS: no ratio means anything")
        return False
    print_ratios(seconds)
    return True


def compare_workers(folder: Path) -> bool:
    """Print the ratio of two workers to one; return whether they decided alike."""
    query, config = query_of(), SearchConfig()
    spec = EngineSpec("cosmos", str(folder), search=config)
    pools = {f"{n} worker(s)": start_inference(spec, ["cpu"] * n, WorkerLimits()) for n in (1, 2)}
    try:
        seconds: dict[str, list[float]] = {name: [] for name in pools}
        decisions = []
        for lap in range(LAPS + 1):
            for name, pool in pools.items():
                took, decision = timed(lambda p=pool: ask(p, query))
                decisions.append(decision)
                if lap:
                    seconds[name].append(took)
    finally:
        for pool in pools.values():
            pool.close()
    same = all(d.candidates == decisions[0].candidates for d in decisions)
    print(
        f"\nworker processes, batch 1; decisions equal to the last bit: {'yes' if same else 'NO'}"
    )
    print_ratios(seconds)
    return same


def ask(pool: Inference, query: Query) -> Decision:
    decision: Decision = pool.submit(Decide(query)).result()
    return decision


def print_ratios(seconds: dict[str, list[float]]) -> None:
    first = next(iter(seconds))
    for name, laps in seconds.items():
        ratios = [a / b for a, b in zip(seconds[first], laps, strict=True)]
        print(
            f"- {name:>12}: {statistics.median(laps):6.2f} s, {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def full_size() -> None:
    """Count the shipped searches at the released model's size, and what it means for eight H100."""
    settings = read_config(config_folder("models") / "aloha_2b" / "config.yaml")
    layout, steps = LAYOUTS[settings.layout], settings.denoising_steps
    with torch.device("meta"):
        network = Transformer(settings.transformer).requires_grad_(False)
        channels, height, width = settings.frame_shape
        latent = torch.empty(1, channels, layout.count, height, width)
        memory = network.read(torch.empty(1, 16, 1024), torch.empty(1, 1, 1, 16))
        when = network.modulation(torch.empty(1, layout.count))

    def tera(wanted: Sequence[int], given: Sequence[int]) -> float:
        known = torch.empty(1, layout.count, dtype=torch.bool, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
            network(latent, when, known, memory, wanted, given=given)
        return counter.get_total_flops() / 1e12

    def costs(mode: Mode, read: Sequence[str]) -> tuple[float, float]:
        """Return TFLOP of an evaluation, and of a run's last one."""
        known, every = layout.mask(mode), range(layout.count)
        generated = [i for i in every if not known[i]]
        return tera(generated, every), tera([layout.index(name) for name in read], every)

    def costs_of_value(config: SearchConfig) -> tuple[float, float]:
        if config.value_frames == "all":
            return costs(config.value, ["value"])
        return (tera([layout.index("value")], layout.needed(config.value)),) * 2

    whole = costs("policy", ["action", "value", *layout.future])
    sampling, future = costs("policy", ["action", "value"]), costs("world_model", layout.future)
    info = SearchInfo(numerics=settings.numerics, evaluations=steps)
    print(
        f"\nat full size, counted ({settings.numerics}, {steps} steps of a proposal), a decision:"
    )
    print(f"- {'none':20} {steps:4d} evaluations {(steps - 1) * whole[0] + whole[1]:6.0f} TFLOP")
    released = 0.0
    for preset in sorted(config_folder("planning").glob("*.yaml")):
        config = load_config(SearchConfig, preset)
        each: dict[str, tuple[float, float]] = {
            "sample_actions": whole if config.reads_proposed_futures else sampling,
            "predict_future": future,
            "predict_value": costs_of_value(config),
        }
        spent = price(config, info)
        total = sum(
            each[stage][0] * (work.evaluations - work.runs) + each[stage][1] * work.runs
            for stage, work in spent.items()
        )
        count = sum(work.evaluations for work in spent.values())
        print(f"- {preset.stem:20} {count:4d} evaluations {total:6.0f} TFLOP")
        if config == SearchConfig():
            released = total
    implied = released / 8 / PAPER
    print(
        f"\nbest_of_8 on eight H100, a candidate each: the paper's {PAPER} s would be "
        f"{implied:.0f} TFLOP/s of ours per GPU, {implied * 1e12 / PEAK:.0%} of the peak. "
        "Estimates for ours:"
    )
    for share in (0.1, 0.2, 0.3, 0.4):
        print(f"- at {share:.0%} of the peak: {released / 8 * 1e12 / (share * PEAK):.1f} s")


def main() -> int:
    """Print all three parts; returns the exit status."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else TINY
    print(describe_machine())
    same = compare_batches(folder)
    same = compare_workers(folder) and same
    full_size()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
