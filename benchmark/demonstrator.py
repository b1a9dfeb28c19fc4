"""How often the scripted demonstrator succeeds, and what the simulated rig costs.

Run: ``python benchmark/demonstrator.py`` from the package's root. Stepped time, every
chunk through the safety gate; a success is the task's last stage.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import mujoco  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from helpers.sim_loop import episode  # noqa: E402

from cosmos_policy_ros.sim.demonstrator import Demonstrator  # noqa: E402
from cosmos_policy_ros.sim.render import Renderer  # noqa: E402
from cosmos_policy_ros.sim.rig import SimRig  # noqa: E402
from cosmos_policy_ros.sim.tasks import TASKS  # noqa: E402


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % score interval of a rate (Wilson 1927)."""
    z, rate = 1.96, successes / trials
    centre = rate + z**2 / (2 * trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return (centre - half) / (1 + z**2 / trials), (centre + half) / (1 + z**2 / trials)


def success_rate(task: str, height: int, width: int, options: argparse.Namespace) -> None:
    stages, seconds = [], []
    rig = SimRig(task)
    with Renderer(task, height, width) as renderer:
        for seed in range(options.first, options.first + options.seeds):
            rig.reset(task, seed)
            rig.advance(0.2)  # the objects fall onto the table
            start = rig.time_ns
            policy = Demonstrator(jitter=options.jitter)
            stages.append(episode(rig, renderer, policy, pause=options.pause))
            seconds.append((rig.time_ns - start) / 1e9)
    wins = sum(stage == len(rig.stages) for stage in stages)
    low, high = wilson(wins, options.seeds)
    lost = {
        seed: stage for seed, stage in enumerate(stages, options.first) if stage < len(rig.stages)
    }
    print(
        f"{task:14} {width:4}x{height:<4} {wins:3}/{options.seeds:<3} {wins / options.seeds:5.0%}"
        f"  [{low:4.0%}, {high:4.0%}]  longest {max(seconds):4.1f} s"
        + (f"  failed seed: stage {lost}" if lost else ""),
        flush=True,
    )


def costs() -> None:
    for task in TASKS:
        rig = SimRig(task)
        start = time.perf_counter()
        rig.advance(5.0)
        print(f"{task:14} physics {(time.perf_counter() - start) / 5.0:6.1%} of real time")
    snapshot = rig.snapshot()
    for height, width in ((480, 640), (240, 320), (128, 128)):
        times = {}
        for quality in ("fast", "full"):
            with Renderer(rig.task, height, width, quality=quality) as renderer:  # type: ignore[arg-type]
                renderer.render(snapshot)
                laps = []
                for _ in range(10):
                    start = time.perf_counter()
                    renderer.render(snapshot)
                    laps.append(time.perf_counter() - start)
            times[quality] = sorted(laps)[5]
        print(
            f"3 cameras {width:4}x{height:<4} fast {times['fast'] * 1e3:5.0f} ms, full "
            f"{times['full'] * 1e3:5.0f} ms, ratio {times['full'] / times['fast']:4.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=40, help="episodes per row")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--jitter", type=float, default=1.0, help="variation of demonstrations")
    parser.add_argument("--pause", type=float, default=0.0, help="rest [s] after each chunk")
    options = parser.parse_args()
    print(f"MuJoCo {mujoco.__version__}, jitter {options.jitter}, pause {options.pause} s")
    costs()
    for task in TASKS:
        for height, width in ((128, 128), (240, 320), (480, 640)):
            success_rate(task, height, width, options)


if __name__ == "__main__":
    main()
