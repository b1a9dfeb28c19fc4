"""The report of a turn of the loop: Markdown, and the same as a page with plots."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import markdown  # type: ignore[import-untyped]
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cosmos_policy_ros.evaluation.contenders import DIRECT
from cosmos_policy_ros.evaluation.results import Result, cell, comparison, read_results, table
from cosmos_policy_ros.sim.tasks import USUAL

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.3em .6em}"
    "img{max-width:100%}pre{white-space:pre-wrap}"
)


def write_report(report: Path, trials: Path, preconditions: Path, imagination: Path) -> None:
    """Write the report of what a turn's stages found.

    Args:
        report: where to, without the suffixes ``.md`` and ``.html``.
        trials: of the comparison.
        preconditions: what was measured, JSON.
        imagination: the image of what was imagined beside what came, in the report's folder.

    Raises:
        ConfigError: the comparison's trials cannot be read.
    """
    results = read_results(trials)
    found = json.loads(preconditions.read_text(encoding="utf-8"))
    lines = report_lines(results, found, imagination.name)
    report.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plots = {
        "Scores with 95 % intervals": _plot(lambda axes: _plot_scores(axes, results)),
        "Value of what came and of what was imagined, by how the episode ended": _plot(
            lambda axes: _plot_values(axes, found)
        ),
    }
    # The page is one file.
    imagined = _source(imagination.read_bytes())
    lines = [line.replace(f"({imagination.name})", f"({imagined})") for line in lines]
    report.with_suffix(".html").write_text(_page(lines, plots), encoding="utf-8")


def report_lines(results: Sequence[Result], found: dict[str, Any], image: str) -> list[str]:
    """Return the report as Markdown lines; ``image`` is its file's name."""
    contenders, conditions = _names(results)
    policy, world_model = found["policy"], found["world_model"]
    left, right = found["spread_mm"]
    came, imagined = _area(world_model["auc_true"]), _area(world_model["auc_imagined"])
    before = _area(policy["auc_true"])
    return [
        "# Does planning help?",
        "",
        "## What must be true first",
        "",
        f"On {found['episodes']} held-out rollouts, {found['successes']} of them successes, "
        f"{found['windows']} windows:",
        "",
        f"- eight proposals put the left gripper {left:g} mm and the right one {right:g} mm from "
        "their mean (root mean square, middle of the first chunk, median over scenes): nearly the "
        "same proposals leave nothing to choose;",
        "- the world model's values tell windows of successes from failures with an AUC of "
        f"{came} from what came and {imagined} from what it imagined (the policy's own values, "
        f"before the rollouts: {before}); 0.5 is a coin;",
        f"- the imagined cameras are {policy['world_l1']:.3f} off before fine-tuning on rollouts "
        f"and {world_model['world_l1']:.3f} after it (mean absolute error of latents of scale 1):",
        "",
        f"![what was imagined beside what came]({image})",
        "",
        "## With and without",
        "",
        "Mean score of 100 (95 % bootstrap interval); successes (95 % Wilson interval).",
        "",
        *table(results, contenders, conditions),
        "",
        *comparison(results, contenders),
    ]


def _area(area: float | None) -> str:
    return "none (all ended alike)" if area is None else f"{area:.3f}"


def _names(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Return contenders and conditions, what the others are compared with first."""
    contenders = sorted({r.contender for r in results}, key=lambda name: (name != DIRECT, name))
    conditions = sorted({r.condition for r in results}, key=lambda name: (name != USUAL, name))
    return contenders, conditions


def _plot(draw: Callable[[Axes], None]) -> str:
    """Return a plot as the source of an image."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    draw(figure.subplots())
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return _source(drawn.getvalue())


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _plot_scores(axes: Axes, results: Sequence[Result]) -> None:
    contenders, conditions = _names(results)
    for offset, name in enumerate(contenders):
        cells = [
            cell(r for r in results if (r.contender, r.condition) == (name, each))
            for each in conditions
        ]
        at = np.arange(len(conditions)) + (offset - (len(contenders) - 1) / 2) * 0.2
        scores = np.array([each.score for each in cells])
        low, high = np.array([each.score_interval for each in cells]).T
        axes.errorbar(
            at, scores, yerr=[scores - low, high - scores], fmt="o", capsize=4, label=name
        )
    axes.set_xticks(range(len(conditions)), [name.replace("_", " ") for name in conditions])
    axes.set_xlim(-0.5, len(conditions) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_ylabel("mean score")
    axes.legend()


def _plot_values(axes: Axes, found: dict[str, Any]) -> None:
    true, imagined = np.array(found["value_true"]), np.array(found["value_imagined"])
    succeeded = np.array(found["succeeded"], dtype=bool)
    for ended, colour, name in ((True, "tab:green", "success"), (False, "tab:red", "failure")):
        chosen = succeeded == ended
        axes.scatter(true[chosen], imagined[chosen], s=10, alpha=0.5, color=colour, label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.set_xlabel("value of what came")
    axes.set_ylabel("value of what was imagined")
    axes.legend()


def _page(lines: Sequence[str], plots: dict[str, str]) -> str:
    text = markdown.markdown("\n".join(lines), extensions=["tables"])
    images = "".join(
        f"<h2>{html.escape(title)}</h2><img src='{source}' alt='{html.escape(title)}'>"
        for title, source in plots.items()
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Does planning help?</title>"
        f"<style>{STYLE}</style>{text}{images}</html>\n"
    )
