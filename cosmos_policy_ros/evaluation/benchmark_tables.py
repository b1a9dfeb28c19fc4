"""Success rates on a benchmark as Markdown, in the form of the paper's Tables 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cosmos_policy_ros.environments.benchmark import Benchmark
from cosmos_policy_ros.evaluation.results import Result
from cosmos_policy_ros.evaluation.significance import Mean, paired, wilson
from cosmos_policy_ros.evaluation.tables import markdown_table

HOUR = 3600.0  # s
NONE = "—"


def benchmark_table(
    benchmark: Benchmark,
    chosen: Mapping[str, Sequence[str]],
    contenders: Sequence[str],
    results: Sequence[Result],
) -> list[str]:
    """Return the paper's table with a row per contender below, and what was measured beside it.

    Args:
        benchmark: with the paper's rows.
        chosen: tasks of each suite that trials were planned of.
        contenders: names, in order.
        results: of all trials.
    """
    columns = [suite.title for suite in benchmark.suites.values()]
    several, trained = len(columns) > 1, any(row.demonstrations for row in benchmark.published)
    head = ["", *(["demonstrations per task"] if trained else [])]
    head += [*columns, "average"] if several else ["average"]
    rows = [head]
    for published in benchmark.published:
        rates = [NONE if rate is None else f"{rate:.1f}" for rate in published.rates]
        first = [f"{published.name} (paper)", *([published.demonstrations] if trained else [])]
        rows.append([*first, *rates])
    for name in contenders:
        mine = [r for r in results if r.contender == name and not r.crashed]
        cells = [_suite(mine, suite) for suite in benchmark.suites]
        if several:
            cells.append(_average(benchmark, chosen, mine))
        rows.append([f"**{name}**", *([""] if trained else []), *cells])
    return [
        f"Success rates in % (95 % Wilson interval) of trials. {_average_of(benchmark)}",
        "",
        *markdown_table(rows),
        *_crashes(benchmark, contenders, results),
        "",
        *_cost(contenders, results),
        *_differences(benchmark, contenders, results),
        *_environments(results),
        "",
        *_by_task(chosen, contenders, results),
    ]


def _average_of(benchmark: Benchmark) -> str:
    if len(benchmark.suites) > 1:
        return f"The average is the mean of {len(benchmark.suites)} suites' rates."
    (suite,) = benchmark.suites.values()
    return f"The average is the mean of {len(suite.tasks)} tasks' rates."


def _rate(rates: Sequence[float], trials: int) -> str:
    """Return a mean of rates, with the interval of as many trials as were made in all.

    Of groups of one size that is the interval of all trials together, which is no smaller than that
    of the groups' mean.
    """
    if not trials or not rates or any(map(math.isnan, rates)):
        return NONE
    rate = float(np.mean(rates))
    low, high = wilson(rate * trials, trials)
    return f"**{100 * rate:.1f}** ({100 * low:.1f} to {100 * high:.1f}) of {trials}"


def _mean(results: Sequence[Result]) -> float:
    return float(np.mean([r.success for r in results])) if results else math.nan


def _suite(results: Sequence[Result], suite: str) -> str:
    """Return the mean of a suite's tasks, each of which weighs the same."""
    mine = [r for r in results if r.condition == suite]
    by_task = [[r for r in mine if r.task == task] for task in dict.fromkeys(r.task for r in mine)]
    return _rate([_mean(group) for group in by_task], len(mine))


def _average(
    benchmark: Benchmark, chosen: Mapping[str, Sequence[str]], results: Sequence[Result]
) -> str:
    """Return the mean of all suites; nothing where one was left out."""
    if set(chosen) != set(benchmark.suites):
        return NONE
    rates = [_mean([r for r in results if r.condition == suite]) for suite in benchmark.suites]
    return _rate(rates, len(results))


def _crashes(
    benchmark: Benchmark, contenders: Sequence[str], results: Sequence[Result]
) -> list[str]:
    """Return what the released evaluation would say, which counts a crash as a failure."""
    crashed = [r for r in results if r.crashed]
    if not crashed:
        return ["", "No trial crashed."]
    lines = [
        "",
        f"{len(crashed)} trials crashed, do not count above and are repeated by the same command "
        f"(the last: {crashed[-1].message}). With each trial counted as it first ended, a crash as "
        "a failure, as the released evaluation counts:",
        "",
    ]
    for name in contenders:
        first: dict[object, Result] = {}
        for r in results:
            if r.contender == name:
                first.setdefault(r.key, r)
        cells = [
            f"{suite.title} {_suite(list(first.values()), key)}"
            for key, suite in benchmark.suites.items()
        ]
        lines.append(f"- {name}: {', '.join(cells)}")
    return lines


def _cost(contenders: Sequence[str], results: Sequence[Result]) -> list[str]:
    lines = []
    for name in contenders:
        mine = [r for r in results if r.contender == name and not r.crashed]
        if mine:
            wall, cpu, thinking, steps = (
                float(np.mean([getattr(r, key) for r in mine]))
                for key in ("wall", "cpu", "thinking", "steps")
            )
            total = sum(r.cpu for r in mine) / HOUR
            lines.append(
                f"- {name}: an episode took {wall:.1f} s, {cpu:.1f} s of processor time, "
                f"{steps:.0f} steps; a decision {thinking:.2f} s; all {len(mine)} episodes "
                f"{total:.2f} h of processor time"
            )
    return lines


def _differences(
    benchmark: Benchmark, contenders: Sequence[str], results: Sequence[Result]
) -> list[str]:
    """Return every contender less the first, trial by trial."""
    lines = []
    groups = {f" ({suite.title})": key for key, suite in benchmark.suites.items()} | {"": ""}
    for name in contenders[1:]:
        for where, key in groups.items():
            found = paired([r for r in results if key in (r.condition, "")], name, contenders[0])
            if found.states and not (key and len(benchmark.suites) == 1):
                gain = Mean(*(100 * each for each in found.success))
                lines.append(
                    f"- {name} less {contenders[0]}, {found.states} trials{where}: "
                    f"{gain.value:+.1f} points ({gain.low:+.1f} to {gain.high:+.1f})"
                )
    return lines


def _environments(results: Sequence[Result]) -> list[str]:
    told = dict.fromkeys(r.environment for r in results if r.environment)
    return [f"- environment: {each}" for each in told]


def _by_task(
    chosen: Mapping[str, Sequence[str]], contenders: Sequence[str], results: Sequence[Result]
) -> list[str]:
    rows = [["task", *contenders]]
    for suite, tasks in chosen.items():
        for task in tasks:
            mine = [r for r in results if r.task == f"{suite}/{task}" and not r.crashed]
            cells = []
            for name in contenders:
                group = [r for r in mine if r.contender == name]
                cells.append(_rate([_mean(group)], len(group)))
            rows.append([f"{suite}/{task}", *cells])
    return markdown_table(rows)
