"""Results as tables and a picture: Markdown, CSV, PNG."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cosmos_policy_ros.evaluation.results import Result
from cosmos_policy_ros.evaluation.significance import (
    Cell,
    Mean,
    average,
    bootstrap,
    cell,
    detectable,
    paired,
    states_needed,
    wilson,
)

ALL = ""  # in place of a condition: all of them, every trial weighing the same
CSV_COLUMNS = (
    *("contender", "task", "condition", "trials", "crashed"),
    *("score", "score_low", "score_high"),
    *("successes", "success_low", "success_high", "seconds", "refused"),
)
WORTH_FINDING = 10.0
"""Points of 100: the difference whose number of states is told beside what was found."""


def spoken(condition: str) -> str:
    """Return a condition's name as text."""
    return condition.replace("_", " ")


def _text(found: Cell) -> str:
    """Return the mean score with its bootstrap interval, and the rate with Wilson's."""
    if not found.trials:
        return "no trial"
    low, high = wilson(found.successes, found.trials)
    score = found.score
    return (
        f"**{score.value:.1f}** ({score.low:.1f} to {score.high:.1f}); "
        f"{100 * (found.successes / found.trials):.0f} % of {found.trials} "
        f"({100 * low:.0f} to {100 * high:.0f})"
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines; the first row is its head."""
    head, *others = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *others)]


def _crashes(results: Sequence[Result]) -> list[str]:
    crashed = [r for r in results if r.crashed]
    if not crashed:
        return []
    return ["", f"{len(crashed)} trials crashed and do not count: {crashed[-1].message}"]


def table_by_condition(
    results: Sequence[Result], contenders: Sequence[str], conditions: Sequence[str]
) -> list[str]:
    """Return one task's Markdown table: a row per contender, a column per condition, and all."""
    several = len(conditions) > 1
    rows = [["", *map(spoken, conditions), *(["all"] if several else [])]]
    for name in contenders:
        mine = [r for r in results if r.contender == name]
        cells = [cell(r for r in mine if r.condition == each) for each in conditions]
        if several:
            cells.append(cell(mine))
        rows.append([name, *map(_text, cells)])
    return markdown_table(rows) + _crashes(results)


def table_by_task(
    results: Sequence[Result],
    contenders: Sequence[str],
    tasks: Sequence[str],
    conditions: Sequence[str],
) -> list[str]:
    """Return a Markdown table in the form of the paper's Table 3.

    A column per task and the average of the tasks' means; a group of rows per condition, then the
    full rows, in which every trial of a task weighs the same; in a group a row per contender.
    """
    rows = [["", *tasks, "average"]]
    for condition in (*conditions, ALL):
        group = [r for r in results if condition in (r.condition, ALL)]
        rows.append([f"*{spoken(condition) or 'full'}*", *[""] * (len(tasks) + 1)])
        for name in contenders:
            cells = [[r for r in group if (r.contender, r.task) == (name, task)] for task in tasks]
            mean = average([[r.score for r in each if not r.crashed] for each in cells])
            whole = "" if math.isnan(mean.value) else _interval(mean)
            rows.append([name, *(_text(cell(each)) for each in cells), whole])
    return markdown_table(rows) + _crashes(results)


def _interval(mean: Mean) -> str:
    return f"**{mean.value:.1f}** ({mean.low:.1f} to {mean.high:.1f})"


def comparison(results: Sequence[Result], contenders: Sequence[str]) -> list[str]:
    """Return Markdown lines: every contender less the first, per group of states and over all."""
    first, *others = contenders
    tasks = list(dict.fromkeys(result.task for result in results))
    conditions = list(dict.fromkeys(result.condition for result in results))
    groups: dict[str, Sequence[Result]] = {"": results}
    if len(conditions) > 1 or len(tasks) > 1:
        groups = {
            f" ({spoken(name)})": [r for r in results if name in (r.condition, r.task)]
            for name in (*(tasks if len(tasks) > 1 else ()), *conditions)
        }
        groups[" (all)"] = results
    lines = []
    for name in others:
        for where, group in groups.items():
            found = paired(group, name, first)
            if not found.states:
                continue
            success, score = Mean(*(100 * each for each in found.success)), found.score
            lines.append(
                f"- {name} less {first}, {found.states} states{where}: success "
                f"{success.value:+.1f} points ({success.low:+.1f} to {success.high:+.1f}), score "
                f"{score.value:+.1f} ({score.low:+.1f} to {score.high:+.1f})"
            )
    return lines


def sensitivity(results: Sequence[Result], contenders: Sequence[str]) -> list[str]:
    """Return Markdown lines: which differences from the first contender could have been found."""
    first, *others = contenders
    lines = []
    for name in others:
        found = paired(results, name, first)
        if found.states > 1 and found.spread > 0:
            needed = states_needed(WORTH_FINDING, found.spread)
            lines.append(
                f"- {name} less {first}: the states' differences scatter by {found.spread:.0f} "
                f"points, so that {found.states} states find a difference of "
                f"{detectable(found.states, found.spread):.0f} points four times in five; one of "
                f"{WORTH_FINDING:g} takes {needed}"
            )
    return lines


def as_csv(results: Sequence[Result], contenders: Sequence[str]) -> str:
    """Return a row per contender, task and condition, and per contender and task over all.

    Scores in points, rates from 0 to 1, seconds of the rig's time and refused chunks per trial.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(CSV_COLUMNS)
    tasks = list(dict.fromkeys(result.task for result in results))
    conditions = list(dict.fromkeys(result.condition for result in results))
    for name in contenders:
        for task in tasks:
            for condition in (*conditions, ALL):
                mine = [
                    r
                    for r in results
                    if (r.contender, r.task) == (name, task) and condition in (r.condition, ALL)
                ]
                found, counted = cell(mine), [r for r in mine if not r.crashed]
                if not counted:
                    continue
                low, high = wilson(found.successes, found.trials)
                lines.writerow(
                    [name, task, condition or "full", found.trials, found.crashed]
                    + [f"{each:.2f}" for each in found.score]
                    + [found.successes, f"{low:.4f}", f"{high:.4f}"]
                    + [f"{np.mean([r.seconds for r in counted]):.2f}"]
                    + [f"{np.mean([r.refused for r in counted]):.2f}"]
                )
    return text.getvalue()


def effort(results: Sequence[Result], contenders: Sequence[str]) -> list[str]:
    """Return Markdown lines: how long each contender's trials took, and what was refused."""
    lines = []
    for name in contenders:
        mine = [r for r in results if r.contender == name]
        counted = [r for r in mine if not r.crashed]
        if not counted:
            continue
        seconds = bootstrap([r.seconds for r in counted])
        chunks, refused = sum(r.chunks for r in counted), sum(r.refused for r in counted)
        lines.append(
            f"- {name}: {seconds.value:.1f} s a trial ({seconds.low:.1f} to {seconds.high:.1f}), "
            f"{refused} of {chunks + refused} chunks refused, "
            f"{len(mine) - len(counted)} trials repeated after a fault"
        )
    return lines


def draw_scores(
    axes: Axes, groups: Sequence[tuple[str, Sequence[Result]]], contenders: Sequence[str]
) -> None:
    """Draw mean scores with their 95 % intervals: contenders side by side in each named group."""
    width = 0.8 / max(len(contenders), 4)
    for offset, name in enumerate(contenders):
        means = [cell(r for r in group if r.contender == name).score for _, group in groups]
        at = np.arange(len(groups)) + (offset - (len(contenders) - 1) / 2) * width
        scores, low, high = np.array(means).T
        axes.errorbar(
            at, scores, yerr=[scores - low, high - scores], fmt="o", capsize=4, label=name
        )
    axes.set_xticks(range(len(groups)), [name for name, _ in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_ylabel("mean score")
    axes.legend()


def picture(
    results: Sequence[Result], contenders: Sequence[str], conditions: Sequence[str]
) -> bytes:
    """Return a PNG of every task's mean scores, a panel per condition and one of all."""
    tasks = list(dict.fromkeys(result.task for result in results))
    panels = (*conditions, ALL) if len(conditions) > 1 else (ALL,)
    figure = Figure(figsize=(8, 3.2 * len(panels)), layout="constrained")
    found = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, condition in zip(found, panels, strict=True):
        mine = [r for r in results if condition in (r.condition, ALL)]
        draw_scores(axes, [(t, [r for r in mine if r.task == t]) for t in tasks], contenders)
        axes.set_title(spoken(condition) or "full")
    return _png(figure)


class _Price(NamedTuple):
    """What one contender's decisions cost, on average."""

    contender: str
    a_decision: float  # evaluations of the network
    an_episode: float
    decisions: float  # an episode
    outcome: Cell


def _prices(results: Sequence[Result], contenders: Sequence[str]) -> list[_Price]:
    """Return them for the contenders whose evaluations were counted."""
    found = []
    for name in contenders:
        mine = [r for r in results if r.contender == name and not r.crashed]
        decisions, evaluations = sum(r.decisions for r in mine), sum(r.evaluations for r in mine)
        if evaluations:
            each = evaluations / decisions, evaluations / len(mine), decisions / len(mine)
            found.append(_Price(name, *each, cell(mine)))
    return found


def price_table(results: Sequence[Result], contenders: Sequence[str]) -> list[str]:
    """Return what decisions cost as a Markdown table; empty where evaluations were not counted."""
    rows = [["", "evaluations a decision", "an episode", "decisions an episode"]]
    for each in _prices(results, contenders):
        numbers = each.a_decision, each.an_episode, each.decisions
        rows.append([each.contender, *(f"{number:.1f}" for number in numbers)])
    return markdown_table(rows) if len(rows) > 1 else []


def price_picture(results: Sequence[Result], contenders: Sequence[str]) -> bytes | None:
    """Return a PNG of success against evaluations of the network a decision, over all trials.

    None where fewer than two contenders have counted any.
    """
    counted = _prices(results, contenders)
    if len(counted) < 2:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, price, *_, found in sorted(counted, key=lambda each: each.a_decision):
        rate = found.successes / found.trials
        low, high = wilson(found.successes, found.trials)
        at = 100 * np.maximum([[rate - low], [high - rate]], 0.0)  # but for rounding they are
        axes.errorbar([price], [100 * rate], yerr=at, fmt="o", capsize=3, label=name)
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_xlabel("evaluations of the network a decision")
    axes.set_ylabel("successes, % (95 % Wilson interval)")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()
