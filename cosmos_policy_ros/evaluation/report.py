"""What a turn of the loop of ``cosmos improve`` measures, shows and reports.

Three things must be true before a search can help. Proposals must differ, or there is nothing to
choose from; values must tell good from bad, or the choice is blind; and futures must be right where
it matters, or values are of something else.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import markdown  # type: ignore[import-untyped]
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.dataset.contact_sheet import tabulate
from cosmos_policy_ros.evaluation.contenders import DIRECT
from cosmos_policy_ros.evaluation.results import Result, read_results
from cosmos_policy_ros.evaluation.tables import (
    comparison,
    draw_scores,
    spoken,
    table_by_condition,
)
from cosmos_policy_ros.model.draws import SampleSpec
from cosmos_policy_ros.model.images import ImageArray
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sequence import Conditioning
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, ARMS
from cosmos_policy_ros.sim.kinematics import ArmKinematics
from cosmos_policy_ros.sim.tasks import USUAL
from cosmos_policy_ros.training.config import DataConfig
from cosmos_policy_ros.training.dataset_index import DatasetIndex, EpisodeEntry, index_episodes
from cosmos_policy_ros.training.value_evaluation import (
    WindowBatch,
    evaluate_values,
    read_batches,
    windows_of,
)

PROPOSALS = 8  # as in "best of 8"
COLUMNS = 6  # most windows in an image
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.3em .6em}"
    "img{max-width:100%}pre{white-space:pre-wrap}"
)


def scored(rollouts: Path, policy: CosmosPolicy) -> tuple[DataConfig, DatasetIndex]:
    """Return the scored rollouts in a folder, all of them to measure on.

    Raises:
        CosmosPolicyError: it holds none.
    """
    data = DataConfig(
        demonstrations=(),
        rollouts=(str(rollouts),),
        held_out=0.0,
        augmentation="none",
        workers=0,
    )
    return data, index_episodes(data, policy.checkpoint.config, policy.checkpoint.text)


def measure_preconditions(
    policy: CosmosPolicy, world_model: CosmosPolicy, data: DataConfig, dataset_index: DatasetIndex
) -> dict[str, Any]:
    """Measure a policy and a world model trained for V(s') on rollouts that neither learned from.

    Returns:
        What goes into ``preconditions.json``: numbers, and per window the values behind them.
    """
    steps = policy.checkpoint.config.denoising_steps
    spread = proposal_spread(policy, dataset_index.entries, steps)
    before = evaluate_values(policy, data, dataset_index, "value_sas", steps=steps)
    after = evaluate_values(world_model, data, dataset_index, "value_s", steps=steps)
    return {
        "episodes": len(dataset_index.entries),
        "successes": len(dataset_index.pool("success")),
        "windows": len(after.succeeded),
        "spread_mm": [round(1000 * float(x), 1) for x in np.median(spread, axis=0)],
        "policy": {"auc_true": before.auc_true, "world_l1": before.world_l1},
        "world_model": {
            "auc_true": after.auc_true,
            "auc_imagined": after.auc_imagined,
            "world_l1": after.world_l1,
        },
        "succeeded": after.succeeded,
        "value_true": after.true,
        "value_imagined": after.imagined,
    }


def proposal_spread(
    policy: CosmosPolicy, sources: Sequence[EpisodeEntry], steps: int
) -> NDArray[np.float64]:
    """Return how far apart proposals put the grippers, per episode's beginning and arm [m].

    The root mean square distance of the pinch points from their mean, in the middle of the chunk;
    (episodes, 2) left and right. Episodes whose beginning is damaged are left out.
    """
    arms = [ArmKinematics(arm) for arm in ARMS]
    found = []
    for source in sources:
        step = int(source.starts[0])
        try:
            seen = source.observe(step)
        except (ObservationError, RolloutError):
            continue
        observation = policy.encode_observation(source.prompt, seen)
        draws = [SampleSpec(seed, steps) for seed in range(PROPOSALS)]
        chunks = policy.chunks(policy.sample_actions(observation, draws))
        poses = chunks[:, chunks.shape[1] // 2]
        spread = []
        for index, arm in enumerate(arms):
            joints = poses[:, index * ARM_DIM : index * ARM_DIM + ARM_JOINTS]
            points = np.stack([arm.forward(each).position for each in joints])
            off = points - points.mean(axis=0)
            spread.append(float(np.sqrt((off**2).sum(axis=1).mean())))
        found.append(spread)
    return np.array(found).reshape(-1, len(arms))


def imagination_sheet(
    policies: Mapping[str, CosmosPolicy], data: DataConfig, dataset_index: DatasetIndex, steps: int
) -> ImageArray:
    """Draw windows of rollouts: seen, came, and imagined by each policy (paper, Figure 6).

    Args:
        policies: by the name of their row; at least one, all with the same cameras.
        data: names the rollouts.
        dataset_index: of them; the windows are spread evenly over all.
        steps: of denoising.

    Returns:
        An RGB image with a column per window.
    """
    first = next(iter(policies.values()))
    cameras = first.checkpoint.layout.cameras

    def images(batch: WindowBatch, part: slice) -> dict[str, ImageArray]:
        return dict(zip(cameras, batch.batch.images[0].numpy()[part], strict=True))

    seen, came = slice(None, len(cameras)), slice(len(cameras), None)
    every = windows_of(dataset_index, first)
    spread = np.linspace(0, len(every) - 1, min(COLUMNS, len(every))).astype(int)
    chosen = [every[index] for index in spread]
    rows: dict[str, list[Mapping[str, ImageArray]]] = {}
    heads = []
    for name, policy in policies.items():
        windows = list(read_batches(policy, data, dataset_index, chosen, 1))
        if not rows:
            rows["seen"] = [images(batch, seen) for batch in windows]
            rows["came"] = [images(batch, came) for batch in windows]
            for batch in windows:
                start = batch.batch.windows[0].start * policy.checkpoint.config.dt
                heads.append(f"{batch.entry.pool}, {start:.0f} s")
        rows[name] = []
        for batch in windows:
            prompt = batch.entry.prompt
            now = dict(zip(cameras, batch.batch.images[0][seen], strict=True))
            conditioning = Conditioning(prompt, now, batch.clean)
            future = policy.predict_future(prompt, batch.clean, [SampleSpec(0, steps)])
            rows[name] += policy.decode_images(conditioning, future)
    return tabulate(
        heads,
        {
            f"{camera}, {name}": [window[camera] for window in row]
            for camera in cameras
            for name, row in rows.items()
        },
    )


def write_report(report: Path, trials: Path, preconditions: Path, imagination: Path) -> None:
    """Write the report of what a turn's stages found, as Markdown and as a page with plots.

    Args:
        report: where to, without the suffixes ``.md`` and ``.html``.
        trials: of the comparison.
        preconditions: what :func:`measure_preconditions` found, JSON.
        imagination: the image of :func:`imagination_sheet`, in the report's folder.

    Raises:
        ConfigError: the comparison's trials cannot be read.
    """
    results = read_results(trials)
    found = json.loads(preconditions.read_text(encoding="utf-8"))
    lines = report_lines(results, found, imagination.name)
    replace_text(report.with_suffix(".md"), "\n".join(lines) + "\n")
    plots = {
        "Scores with 95 % intervals": _plot(lambda axes: _draw_scores(axes, results)),
        "Value of what came and of what was imagined, by how the episode ended": _plot(
            lambda axes: _draw_values(axes, found)
        ),
    }
    images = "".join(
        f"<h2>{html.escape(title)}</h2><img src='{source}' alt='{html.escape(title)}'>"
        for title, source in plots.items()
    )
    # The page is one file.
    imagined = f"({_image_source(imagination.read_bytes())})"
    text = "\n".join(lines).replace(f"({imagination.name})", imagined)
    replace_text(
        report.with_suffix(".html"),
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Does planning help?</title>"
        f"<style>{STYLE}</style>{markdown.markdown(text, extensions=['tables'])}{images}</html>\n",
    )


def report_lines(results: Sequence[Result], found: dict[str, Any], image: str) -> list[str]:
    """Return the report as Markdown lines; ``image`` is its file's name."""
    contenders, conditions = _names(results)
    policy, world_model = found["policy"], found["world_model"]
    left, right = found["spread_mm"]
    came, imagined, before = (
        "none (all ended alike)" if area is None else f"{area:.3f}"
        for area in (world_model["auc_true"], world_model["auc_imagined"], policy["auc_true"])
    )
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
        *table_by_condition(results, contenders, conditions),
        "",
        *comparison(results, contenders),
    ]


def _names(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Return contenders and conditions, what the others are compared with first."""
    contenders = sorted({r.contender for r in results}, key=lambda name: (name != DIRECT, name))
    conditions = sorted({r.condition for r in results}, key=lambda name: (name != USUAL, name))
    return contenders, conditions


def _image_source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _plot(draw: Callable[[Axes], None]) -> str:
    """Return a plot as the source of an image."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    draw(figure.subplots())
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return _image_source(drawn.getvalue())


def _draw_scores(axes: Axes, results: Sequence[Result]) -> None:
    contenders, conditions = _names(results)
    groups = [(spoken(name), [r for r in results if r.condition == name]) for name in conditions]
    draw_scores(axes, groups, contenders)


def _draw_values(axes: Axes, found: dict[str, Any]) -> None:
    true, imagined = np.array(found["value_true"]), np.array(found["value_imagined"])
    succeeded = np.array(found["succeeded"], dtype=bool)
    for ended, colour, name in ((True, "tab:green", "success"), (False, "tab:red", "failure")):
        chosen = succeeded == ended
        axes.scatter(true[chosen], imagined[chosen], s=10, alpha=0.5, color=colour, label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.set_xlabel("value of what came")
    axes.set_ylabel("value of what was imagined")
    axes.legend()
